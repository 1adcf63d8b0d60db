"""Small TFLite models, each odd in its own way, and samples for them; needs `ai_edge_litert`. Everything is seeded.

Models are written through the schema's own classes, so that every operator and every odd thing can be chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from tests.zoo import Array, Build

_OPERATORS = schema.BuiltinOperator
_RELU, _NONE = schema.ActivationFunctionType.RELU, schema.ActivationFunctionType.NONE
_TYPES = {
    "float32": schema.TensorType.FLOAT32, "int8": schema.TensorType.INT8, "int32": schema.TensorType.INT32,
    "int64": schema.TensorType.INT64, "bool": schema.TensorType.BOOL, "resource": schema.TensorType.RESOURCE,
    "float16": schema.TensorType.FLOAT16, "uint8": schema.TensorType.UINT8,
}  # fmt: skip
STEP, ZERO = 0.05, -3  # of the quantised models' inputs and outputs


def _weights(seed: int, *shape: int) -> Array:
    return (np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)


def _new(kind: type[Any], **fields: Any) -> Any:
    """One of the schema's objects; those of older releases take no arguments."""
    made = kind()
    for name, value in fields.items():
        setattr(made, name, value)
    return made


class _Graph:
    """One subgraph under construction, alone or `within` the model of another. Tensors are known by their index."""

    def __init__(self, within: _Graph | None = None) -> None:
        self._tensors: list[Any] = []
        self._operators: list[Any] = []
        self._buffers: list[Any] = within._buffers if within else [_new(schema.BufferT, data=[])]
        self._codes: list[Any] = within._codes if within else []

    def tensor(
        self, name: str, shape: Sequence[int], dtype: str = "float32", *, value: Array | None = None, scale: Sequence[float] = (),
        zero: int = 0, variable: bool = False,
    ) -> int:  # fmt: skip
        """Adds one; -1 in `shape` is an open axis."""
        quantization = None
        if scale:
            quantization = _new(schema.QuantizationParametersT, scale=list(scale), zeroPoint=[zero] * len(scale), quantizedDimension=0)
        buffer = 0
        if value is not None:
            buffer = len(self._buffers)
            self._buffers.append(_new(schema.BufferT, data=np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)))
        self._tensors.append(
            _new(
                schema.TensorT, shape=[1 if d < 0 else d for d in shape], shapeSignature=list(shape) if min(shape, default=1) < 0 else None,
                type=_TYPES[dtype], buffer=buffer, name=name, quantization=quantization, isVariable=variable,
            )
        )  # fmt: skip
        return len(self._tensors) - 1

    def constant(self, name: str, value: Array, **how: Any) -> int:
        return self.tensor(name, value.shape, value.dtype.name, value=value, **how)

    def operator(
        self, code: int, inputs: Sequence[int], outputs: Sequence[int], options: Any = None, *, custom: str = "", version: int = 1
    ) -> None:
        self._codes.append(
            _new(schema.OperatorCodeT, deprecatedBuiltinCode=min(code, 127), builtinCode=code, customCode=custom or None, version=version)
        )
        kind = 0 if options is None else getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self._operators.append(
            _new(
                schema.OperatorT,
                opcodeIndex=len(self._codes) - 1,
                inputs=list(inputs),
                outputs=list(outputs),
                builtinOptionsType=kind,
                builtinOptions=options,
            )
        )

    def dense(self, name: str, x: int, y: int, weights: Array, activation: int = _NONE, *, keep: bool = False) -> None:
        """A fully connected layer. weights: float32[out, in]."""
        weight, bias = self.constant(f"{name}/w", weights), self.constant(f"{name}/b", np.zeros(len(weights), np.float32))
        options = _new(schema.FullyConnectedOptionsT, fusedActivationFunction=activation, keepNumDims=keep)
        self.operator(_OPERATORS.FULLY_CONNECTED, [x, weight, bias], [y], options, version=5 if keep else 1)

    def subgraph(self, inputs: Sequence[int], outputs: Sequence[int]) -> Any:
        return _new(schema.SubGraphT, tensors=self._tensors, inputs=list(inputs), outputs=list(outputs), operators=self._operators)

    def save(self, folder: Path, inputs: Sequence[int], outputs: Sequence[int], *others: _Graph, functions: Sequence[str] = ()) -> Path:
        """Writes the model; `functions`: a signature for each subgraph."""
        subgraphs = [self.subgraph(inputs, outputs), *(other.subgraph([], []) for other in others)]
        signatures = [
            _new(schema.SignatureDefT, signatureKey=key, subgraphIndex=index, inputs=[], outputs=[]) for index, key in enumerate(functions)
        ]
        model = _new(
            schema.ModelT, version=3, operatorCodes=self._codes, subgraphs=subgraphs, description="zoo", buffers=self._buffers,
            signatureDefs=signatures,
        )  # fmt: skip
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        path = folder / "model.tflite"
        path.write_bytes(bytes(builder.Output()))
        return path


def dense(folder: Path, width: int = 64) -> Path:
    """x: float32[N, 16] -> y: float32[N, 10], two layers."""
    graph = _Graph()
    x, hidden, y = graph.tensor("x", [-1, 16]), graph.tensor("h", [-1, width]), graph.tensor("y", [-1, 10])
    graph.dense("first", x, hidden, _weights(1, width, 16), _RELU)
    graph.dense("second", hidden, y, _weights(2, 10, width))
    return graph.save(folder, [x], [y])


def convolution(folder: Path, channels: int = 8) -> Path:
    """x: float32[1, 16, 16, 3] -> y: float32[1, 10], a convolution and a pooled head; channels last."""
    graph = _Graph()
    x, c, p, y = graph.tensor("x", [1, 16, 16, 3]), graph.tensor("c", [1, 8, 8, channels]), graph.tensor("p", [1, channels]), -1
    y = graph.tensor("y", [1, 10])
    kernel, bias = graph.constant("k", _weights(1, channels, 3, 3, 3)), graph.constant("b", np.zeros(channels, np.float32))
    options = _new(schema.Conv2DOptionsT, padding=schema.Padding.SAME, strideW=2, strideH=2, fusedActivationFunction=_RELU)
    graph.operator(_OPERATORS.CONV_2D, [x, kernel, bias], [c], options)
    axes = graph.constant("axes", np.array([1, 2], np.int32))
    graph.operator(_OPERATORS.MEAN, [c, axes], [p], _new(schema.ReducerOptionsT, keepDims=False))
    graph.dense("head", p, y, _weights(3, 10, channels))
    return graph.save(folder, [x], [y])


def several_inputs(folder: Path) -> Path:
    """left: float32[1, 8], right: float32[1, 4] -> y: float32[1, 6]."""
    graph = _Graph()
    left, right, both, y = (graph.tensor(*t) for t in (("left", [1, 8]), ("right", [1, 4]), ("both", [1, 12]), ("y", [1, 6])))
    graph.operator(_OPERATORS.CONCATENATION, [left, right], [both], _new(schema.ConcatenationOptionsT, axis=1))
    graph.dense("mix", both, y, _weights(1, 6, 12))
    return graph.save(folder, [left, right], [y])


def integer_inputs(folder: Path) -> Path:
    """tokens: int32[1, T] -> y: float32[1, T, 4]: an embedding."""
    graph = _Graph()
    tokens, y = graph.tensor("tokens", [1, -1], "int32"), graph.tensor("y", [1, -1, 4])
    graph.operator(_OPERATORS.GATHER, [graph.constant("table", _weights(1, 10, 4)), tokens], [y], _new(schema.GatherOptionsT, axis=0))
    return graph.save(folder, [tokens], [y])


def dynamic_axes(folder: Path) -> Path:
    """x: float32[N, T, 8] -> y: float32[N, T, 8], both leading axes open."""
    graph = _Graph()
    x, mixed, y = (graph.tensor(name, [-1, -1, 8]) for name in ("x", "m", "y"))
    graph.dense("mix", x, mixed, _weights(1, 8, 8), keep=True)
    graph.operator(_OPERATORS.SOFTMAX, [mixed], [y], _new(schema.SoftmaxOptionsT, beta=1.0))
    return graph.save(folder, [x], [y])


def several_outputs(folder: Path) -> Path:
    """x: float32[1, 8] -> scores: float32[1, 5], features: float32[1, 6], best: int64[1]."""
    graph = _Graph()
    x, features, scores, best = (
        graph.tensor("x", [1, 8]), graph.tensor("features", [1, 6]), graph.tensor("scores", [1, 5]), graph.tensor("best", [1], "int64"),
    )  # fmt: skip
    graph.dense("features", x, features, _weights(1, 6, 8))
    graph.dense("scores", features, scores, _weights(2, 5, 6))
    axis = graph.constant("axis", np.array(1, np.int32))
    graph.operator(_OPERATORS.ARG_MAX, [scores, axis], [best], _new(schema.ArgMaxOptionsT, outputType=schema.TensorType.INT64))
    return graph.save(folder, [x], [scores, features, best])


def colon_names(folder: Path) -> Path:
    """`serving_default_x:0`: float32[1, 8] -> `StatefulPartitionedCall:0`: float32[1, 3], as converters name them."""
    graph = _Graph()
    x, y = graph.tensor("serving_default_x:0", [1, 8]), graph.tensor("StatefulPartitionedCall:0", [1, 3])
    graph.dense("model/dense/MatMul", x, y, _weights(1, 3, 8))
    return graph.save(folder, [x], [y])


def int8(folder: Path) -> Path:
    """x: int8[1, 16] -> y: int8[1, 10], weights int8 with a scale for each of their rows; see STEP and ZERO."""
    graph = _Graph()
    x = graph.tensor("x", [1, 16], "int8", scale=[STEP], zero=ZERO)
    y = graph.tensor("y", [1, 10], "int8", scale=[STEP], zero=ZERO)
    _dense_int8(graph, x, y)
    return graph.save(folder, [x], [y])


def int8_inside(folder: Path) -> Path:
    """x: float32[1, 16] -> y: float32[1, 10]: `int8` between QUANTIZE and DEQUANTIZE."""
    graph = _Graph()
    x, y = graph.tensor("x", [1, 16]), graph.tensor("y", [1, 10])
    quantised_x = graph.tensor("xq", [1, 16], "int8", scale=[STEP], zero=ZERO)
    quantised_y = graph.tensor("yq", [1, 10], "int8", scale=[STEP], zero=ZERO)
    graph.operator(_OPERATORS.QUANTIZE, [x], [quantised_x])
    _dense_int8(graph, quantised_x, quantised_y)
    graph.operator(_OPERATORS.DEQUANTIZE, [quantised_y], [y], version=2)
    return graph.save(folder, [x], [y])


def _dense_int8(graph: _Graph, x: int, y: int) -> None:
    weights = _weights(1, 10, 16)
    scales = np.abs(weights).max(axis=1) / 127
    quantised = np.rint(weights / scales[:, None]).astype(np.int8)
    weight = graph.constant("w", quantised, scale=scales.tolist())
    bias = graph.constant("b", np.zeros(10, np.int32), scale=(scales * STEP).tolist())
    graph.operator(_OPERATORS.FULLY_CONNECTED, [x, weight, bias], [y], _new(schema.FullyConnectedOptionsT), version=4)


def hidden_state(folder: Path) -> Path:
    """x: float32[1, 16] -> y: float32[1, 10], a recurrent layer whose state lives in the interpreter, in a variable tensor."""
    graph = _Graph()
    x, y, state = graph.tensor("x", [1, 16]), graph.tensor("y", [1, 10]), graph.tensor("state", [1, 10], variable=True)
    weights = [graph.constant("w", _weights(1, 10, 16)), graph.constant("r", _weights(2, 10, 10))]
    bias = graph.constant("b", np.full(10, 0.5, np.float32))
    options = _new(schema.RNNOptionsT, fusedActivationFunction=schema.ActivationFunctionType.TANH)
    graph.operator(_OPERATORS.RNN, [x, *weights, bias, state], [y], options)
    return graph.save(folder, [x], [y])


def resource_state(folder: Path) -> Path:
    """x: float32[1, 16] -> y: float32[1, 16], the sum of all that was fed so far: a resource variable, as streaming models keep them."""
    graph = _Graph()
    first = _Graph(within=graph)
    fresh = first.tensor("handle", [], "resource")
    first.operator(_OPERATORS.VAR_HANDLE, [], [fresh], _new(schema.VarHandleOptionsT, container="", sharedName="sum"))
    zeros = first.constant("zeros", np.zeros((1, 16), np.float32))
    first.operator(_OPERATORS.ASSIGN_VARIABLE, [fresh, zeros], [], _new(schema.AssignVariableOptionsT))
    x, y = graph.tensor("x", [1, 16]), graph.tensor("y", [1, 16])
    handle, old = graph.tensor("handle", [], "resource"), graph.tensor("old", [1, 16])
    graph.operator(_OPERATORS.CALL_ONCE, [], [], _new(schema.CallOnceOptionsT, initSubgraphIndex=1))
    graph.operator(_OPERATORS.VAR_HANDLE, [], [handle], _new(schema.VarHandleOptionsT, container="", sharedName="sum"))
    graph.operator(_OPERATORS.READ_VARIABLE, [handle], [old], _new(schema.ReadVariableOptionsT))
    graph.operator(_OPERATORS.ADD, [x, old], [y], _new(schema.AddOptionsT))
    graph.operator(_OPERATORS.ASSIGN_VARIABLE, [handle, y], [], _new(schema.AssignVariableOptionsT))
    return graph.save(folder, [x], [y], first)


def two_functions(folder: Path) -> Path:
    """`encode` and `decode`, each a graph of its own in one file; the first one is `dense`'s."""
    graph = _Graph()
    x, y = graph.tensor("x", [1, 16]), graph.tensor("y", [1, 10])
    graph.dense("first", x, y, _weights(1, 10, 16))
    return graph.save(folder, [x], [y], _Graph(within=graph), functions=["encode", "decode"])


def partly_delegated(folder: Path) -> Path:
    """x: float32[1, 16] -> y: float32[1, 10]; a CUMSUM, which XNNPACK does not take, between two layers."""
    graph = _Graph()
    x, hidden, total, y = (graph.tensor(*t) for t in (("x", [1, 16]), ("h", [1, 12]), ("t", [1, 12]), ("y", [1, 10])))
    graph.dense("first", x, hidden, _weights(1, 12, 16))
    axis = graph.constant("axis", np.array(1, np.int32))
    graph.operator(_OPERATORS.CUMSUM, [hidden, axis], [total], _new(schema.CumsumOptionsT))
    graph.dense("second", total, y, _weights(2, 10, 12))
    return graph.save(folder, [x], [y])


def unknown_operator(folder: Path) -> Path:
    """`dense`'s inputs and outputs through an operator that no runtime has."""
    graph = _Graph()
    x, y = graph.tensor("x", [1, 16]), graph.tensor("y", [1, 10])
    graph.operator(_OPERATORS.CUSTOM, [x], [y], custom="Frobnicate")
    return graph.save(folder, [x], [y])


def truncated(folder: Path) -> Path:
    """`dense`, cut in the middle."""
    path = dense(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


MODELS: dict[str, Build] = {
    "dense": dense,
    "convolution": convolution,
    "several_inputs": several_inputs,
    "integer_inputs": integer_inputs,
    "dynamic_axes": dynamic_axes,
    "several_outputs": several_outputs,
    "colon_names": colon_names,
    "int8": int8,
    "int8_inside": int8_inside,
    "hidden_state": hidden_state,
    "resource_state": resource_state,
    "partly_delegated": partly_delegated,
}


def samples(model: Path, count: int = 4, open_axis: int = 5, seed: int = 0) -> dict[str, list[Array]]:
    """Inputs as a shard holds them: for each input one array per sample, batch axis included (1 where it is open)."""
    random = np.random.default_rng(seed)
    found: dict[str, list[Array]] = {}
    for detail in Interpreter(
        str(model), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    ).get_input_details():
        sizes = [int(d) if d >= 0 else (open_axis if axis else 1) for axis, d in enumerate(detail["shape_signature"])]
        dtype = np.dtype(detail["dtype"])
        whole = dtype.kind != "f"
        values = (random.integers(0, 5, sizes) if whole else random.normal(size=sizes) for _ in range(count))
        found[detail["name"]] = [value.astype(dtype) for value in values]
    return found

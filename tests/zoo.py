"""Small ONNX models, each odd in its own way, and samples for them. Everything is seeded: equal calls give equal files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgefarm.tensors import pack

Array = NDArray[Any]
Build = Callable[[Path], Path]
_IR = {9: 4, 11: 6, 13: 7, 15: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10}


def _weights(seed: int, *shape: int) -> Array:
    return (np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[-1])).astype(np.float32)


def _value(name: str, shape: Sequence[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _save(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Mapping[str, Array],
    opset: int = 17,
    **how: Any,
) -> Path:
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(list(nodes), "zoo", list(inputs), list(outputs), tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=_IR[opset], producer_name="zoo")
    onnx.checker.check_model(model)
    path = folder / "model.onnx"
    onnx.save(model, path, **how)
    return path


def dense(folder: Path, opset: int = 17, width: int = 64) -> Path:
    """x: float32[N, 16] -> y: float32[N, 10], two layers."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h1"], name="first"),
        helper.make_node("Relu", ["h1"], ["h2"], name="relu"),
        helper.make_node("MatMul", ["h2", "w2"], ["y"], name="second"),
    ]
    constants = {"w1": _weights(1, 16, width), "w2": _weights(2, width, 10)}
    return _save(folder, nodes, [_value("x", ["N", 16])], [_value("y", ["N", 10])], constants, opset)


def convolution(folder: Path, opset: int = 17, channels: int = 8) -> Path:
    """x: float32[N, 3, 16, 16] -> y: float32[N, 10], two convolutions and a pooled head."""
    nodes = [
        helper.make_node("Conv", ["x", "k1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "k2"], ["c2"], name="conv2", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w", "b"], ["y"], name="head", transB=1),
    ]
    wide = 2 * channels
    kernels = {"k1": _weights(1, channels, 3, 3, 3), "k2": _weights(2, wide, channels, 3, 3)}
    constants = {**kernels, "w": _weights(3, 10, wide), "b": _weights(4, 10)}
    return _save(folder, nodes, [_value("x", ["N", 3, 16, 16])], [_value("y", ["N", 10])], constants, opset)


def several_inputs(folder: Path) -> Path:
    """left: float32[N, 8], right: float32[N, 4] -> y: float32[N, 6]."""
    nodes = [
        helper.make_node("Concat", ["left", "right"], ["both"], name="join", axis=1),
        helper.make_node("MatMul", ["both", "w"], ["y"], name="mix"),
    ]
    inputs = [_value("left", ["N", 8]), _value("right", ["N", 4])]
    return _save(folder, nodes, inputs, [_value("y", ["N", 6])], {"w": _weights(1, 12, 6)})


def integer_inputs(folder: Path) -> Path:
    """tokens: int64[N, T], mask: bool[N, T] -> y: float32[N, T, 4]: an embedding, masked."""
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["embedded"], name="embed"),
        helper.make_node("MatMul", ["embedded", "w"], ["mixed"], name="mix"),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"], name="widen"),
        helper.make_node("Where", ["wide", "mixed", "zero"], ["y"], name="hide"),
    ]
    constants = {
        "table": _weights(1, 10, 8), "w": _weights(2, 8, 4), "last": np.array([2], dtype=np.int64), "zero": np.zeros(1, dtype=np.float32),
    }  # fmt: skip
    inputs = [_value("tokens", ["N", "T"], TensorProto.INT64), _value("mask", ["N", "T"], TensorProto.BOOL)]
    return _save(folder, nodes, inputs, [_value("y", ["N", "T", 4])], constants)


def dynamic_axes(folder: Path) -> Path:
    """x: float32[N, T, 8] -> y: float32[N, T, 8], both leading axes open."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="mix"),
        helper.make_node("Softmax", ["m"], ["y"], name="softmax", axis=-1),
    ]
    return _save(folder, nodes, [_value("x", ["N", "T", 8])], [_value("y", ["N", "T", 8])], {"w": _weights(1, 8, 8)})


def stateful(folder: Path) -> Path:
    """x: float32[1, 128], state: float32[2, 1, 128] -> y: float32[1, 4], next_state: float32[2, 1, 128]."""
    nodes = [
        helper.make_node("Gather", ["state", "zero"], ["old"], name="pick", axis=0),
        helper.make_node("Add", ["x", "old"], ["sum"], name="remember"),
        helper.make_node("MatMul", ["sum", "w"], ["y"], name="head"),
        helper.make_node("Tanh", ["sum"], ["squashed"], name="squash"),
        helper.make_node("Unsqueeze", ["squashed", "axis"], ["row"], name="row"),
        helper.make_node("Concat", ["row", "row"], ["next_state"], name="stack", axis=0),
    ]
    constants = {"w": _weights(1, 128, 4), "zero": np.array(0, dtype=np.int64), "axis": np.array([0], dtype=np.int64)}
    outputs = [_value("y", [1, 4]), _value("next_state", [2, 1, 128])]
    return _save(folder, nodes, [_value("x", [1, 128]), _value("state", [2, 1, 128])], outputs, constants)


def several_outputs(folder: Path) -> Path:
    """x: float32[N, 8] -> scores: float32[N, 5], features: float32[N, 6], best: int64[N, 1]."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["features"], name="features"),
        helper.make_node("MatMul", ["features", "w2"], ["scores"], name="scores"),
        helper.make_node("ArgMax", ["scores"], ["best"], name="best", axis=1),
    ]
    outputs = [_value("scores", ["N", 5]), _value("features", ["N", 6]), _value("best", ["N", 1], TensorProto.INT64)]
    return _save(folder, nodes, [_value("x", ["N", 8])], outputs, {"w1": _weights(1, 8, 6), "w2": _weights(2, 6, 5)})


def colon_names(folder: Path) -> Path:
    """`serving_default_x:0`: float32[N, 8] -> `StatefulPartitionedCall:0`: float32[N, 3], as converters name them."""
    nodes = [helper.make_node("MatMul", ["serving_default_x:0", "model/w:0"], ["StatefulPartitionedCall:0"], name="model/dense/MatMul")]
    inputs, outputs = [_value("serving_default_x:0", ["N", 8])], [_value("StatefulPartitionedCall:0", ["N", 3])]
    return _save(folder, nodes, inputs, outputs, {"model/w:0": _weights(1, 8, 3)})


def channels_last(folder: Path) -> Path:
    """x: float32[N, 16, 16, 3] -> y: float32[N, 10]: NHWC outside, NCHW inside."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], name="to_nchw", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "k"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["y"], name="flatten"),
    ]
    return _save(folder, nodes, [_value("x", ["N", 16, 16, 3])], [_value("y", ["N", 10])], {"k": _weights(1, 10, 3, 3, 3)})


def mixture(folder: Path) -> Path:
    """What is odd about most of `MODELS`, in one.

    `serving_default_tokens:0`: int64[N, T], mask: bool[N, T], image: float32[N, 16, 16, 3] -> `StatefulPartitionedCall:0`:
    float32[N, T, 10], features: float32[N, 10], best: int64[N, T, 1].
    """
    nodes = [
        helper.make_node("Gather", ["table", "serving_default_tokens:0"], ["embedded"], name="model/embed:0"),
        helper.make_node("MatMul", ["embedded", "w"], ["mixed"], name="model/dense/MatMul"),
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide"], name="widen"),
        helper.make_node("Where", ["wide", "mixed", "zero"], ["hidden"], name="hide"),
        helper.make_node("Transpose", ["image"], ["t"], name="to_nchw", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "k"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["features"], name="flatten"),
        helper.make_node("Unsqueeze", ["features", "middle"], ["row"], name="row"),
        helper.make_node("Add", ["hidden", "row"], ["StatefulPartitionedCall:0"], name="sum"),
        helper.make_node("ArgMax", ["StatefulPartitionedCall:0"], ["best"], name="best", axis=2),
    ]
    axes = {"last": np.array([2], dtype=np.int64), "middle": np.array([1], dtype=np.int64)}
    weights = {"table": _weights(1, 10, 8), "w": _weights(2, 8, 10), "k": _weights(3, 10, 3, 3, 3)}
    inputs = [
        _value("serving_default_tokens:0", ["N", "T"], TensorProto.INT64),
        _value("mask", ["N", "T"], TensorProto.BOOL),
        _value("image", ["N", 16, 16, 3]),
    ]
    outputs = [
        _value("StatefulPartitionedCall:0", ["N", "T", 10]),
        _value("features", ["N", 10]),
        _value("best", ["N", "T", 1], TensorProto.INT64),
    ]
    return _save(folder, nodes, inputs, outputs, {**weights, **axes, "zero": np.zeros(1, dtype=np.float32)})


def external_data(folder: Path, location: str = "weights.bin") -> Path:
    """`dense` with its weights in a file of their own."""
    path = dense(folder)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=location, size_threshold=0)
    return path


def external_data_below(folder: Path) -> Path:
    """The same, with the weights in a folder beside the model."""
    (folder / "weights").mkdir(parents=True)
    return external_data(folder, "weights/part.bin")


def not_finite(folder: Path) -> Path:
    """`dense`'s inputs and outputs, every output NaN."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="mix"),
        helper.make_node("Mul", ["m", "nan"], ["y"], name="spoil"),
    ]
    constants = {"w": _weights(1, 16, 10), "nan": np.array([np.nan], dtype=np.float32)}
    return _save(folder, nodes, [_value("x", ["N", 16])], [_value("y", ["N", 10])], constants)


def greedy(folder: Path) -> Path:
    """`dense`'s inputs and outputs; wants some 2 GiB in between."""
    nodes = [
        helper.make_node("Expand", ["x", "large"], ["wide"], name="expand"),
        helper.make_node("Exp", ["wide"], ["exp"], name="exp"),
        helper.make_node("ReduceMean", ["exp"], ["mean"], name="mean", axes=[0, 1], keepdims=0),
        helper.make_node("MatMul", ["mean", "w"], ["row"], name="mix"),
        helper.make_node("Unsqueeze", ["row", "axis"], ["y"], name="row"),
    ]
    constants = {
        "large": np.array([2**14, 2**10, 16], dtype=np.int64), "w": _weights(1, 16, 10), "axis": np.array([0], dtype=np.int64),
    }  # fmt: skip
    return _save(folder, nodes, [_value("x", ["N", 16])], [_value("y", [1, 10])], constants)


def unknown_operator(folder: Path) -> Path:
    """`dense`'s inputs and outputs through an operator that no runtime has."""
    node = helper.make_node("Frobnicate", ["x"], ["y"], name="odd", domain="org.example")
    graph = helper.make_graph([node], "zoo", [_value("x", ["N", 16])], [_value("y", ["N", 10])])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("org.example", 1)]
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    return path


def truncated(folder: Path) -> Path:
    """`dense`, cut in the middle."""
    path = dense(folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def _at_opset(opset: int) -> Build:
    return lambda folder: convolution(folder, opset)


MODELS: dict[str, Build] = {
    "dense": dense,
    "convolution": convolution,
    "several_inputs": several_inputs,
    "integer_inputs": integer_inputs,
    "dynamic_axes": dynamic_axes,
    "stateful": stateful,
    "several_outputs": several_outputs,
    "colon_names": colon_names,
    "channels_last": channels_last,
    "external_data": external_data,
    "external_data_below": external_data_below,
    **{f"opset_{n}": _at_opset(n) for n in (9, 11, 13, 15, 17, 18, 19, 20, 21)},
}
BROKEN: dict[str, Build] = {"unknown_operator": unknown_operator, "truncated": truncated}


def samples(model: Path, count: int = 4, open_axis: int = 5, seed: int = 0) -> dict[str, list[Array]]:
    """Inputs as a shard holds them: for each input one array per sample, batch axis included (1 where it is open)."""
    random = np.random.default_rng(seed)
    graph = onnx.load(model, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    found: dict[str, list[Array]] = {}
    for value in (v for v in graph.input if v.name not in constants):
        axes = enumerate(value.type.tensor_type.shape.dim)
        sizes = [d.dim_value if d.HasField("dim_value") else (open_axis if axis else 1) for axis, d in axes]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        found[value.name] = [_random(random, sizes, dtype) for _ in range(count)]
    return found


def _random(random: np.random.Generator, sizes: Sequence[int], dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "f":
        return random.normal(size=sizes).astype(dtype)
    return random.integers(0, 2 if dtype.kind == "b" else 5, sizes).astype(dtype)


def write_shard(path: Path, model: Path, count: int = 4) -> Path:
    """A shard of `samples`."""
    path.write_bytes(pack(samples(model, count)))
    return path

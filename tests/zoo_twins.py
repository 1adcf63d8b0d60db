"""Pairs of one network in ONNX and in TFLite, each odd in its own way, as converters make them. Everything is seeded.

The ONNX file is the source, its samples are in the source's terms; the TFLite file is what a user would name as an alternative.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as schema
from onnx import TensorProto, helper

from tests import zoo, zoo_tflite
from tests.zoo import Array
from tests.zoo_tflite import _OPERATORS as OPERATORS
from tests.zoo_tflite import _Graph as Graph
from tests.zoo_tflite import _new as new

_RELU = schema.ActivationFunctionType.RELU
_INT32 = np.int32


@dataclass(frozen=True)
class Twins:
    """`source` writes the ONNX file, `other` the TFLite file, each into a folder of its own; `samples`: input -> array[n, *fed shape]."""

    source: Callable[[Path], Path]
    other: Callable[[Path], Path]
    samples: dict[str, Array]


def _random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _value(name: str, shape: list[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _image(height: int, width: int) -> Twins:
    """x: [N, 3, H, W] against [1, H, W, 3]; a convolution and a dense layer over the whole plane, so that turning it is seen."""
    kernel, dense = _random(4, 3, 3, 3, seed=1), _random(5, 4 * height * width, seed=2) / 20

    def source(folder: Path) -> Path:
        nodes = [
            helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["r"]),
            helper.make_node("Transpose", ["r"], ["t"], perm=[0, 2, 3, 1]),
            helper.make_node("Flatten", ["t"], ["f"]),
            helper.make_node("Gemm", ["f", "w"], ["y"], transB=1),
        ]
        return zoo._save(folder, nodes, [_value("x", ["N", 3, height, width])], [_value("y", ["N", 5])], {"k": kernel, "w": dense})

    def other(folder: Path) -> Path:
        graph = Graph()
        x, c, y = graph.tensor("in", [1, height, width, 3]), graph.tensor("c", [1, height, width, 4]), graph.tensor("out", [1, 5])
        weights = [graph.constant("k", kernel.transpose(0, 2, 3, 1)), graph.constant("b", np.zeros(4, np.float32))]
        options = new(schema.Conv2DOptionsT, padding=schema.Padding.SAME, strideW=1, strideH=1, fusedActivationFunction=_RELU)
        graph.operator(OPERATORS.CONV_2D, [x, *weights], [c], options)
        graph.dense("head", c, y, dense)
        return graph.save(folder, [x], [y])

    return Twins(source, other, {"x": _random(6, 1, 3, height, width)})


def _signal() -> Twins:
    """x: [N, 2, 32] against [1, 32, 2]: channels of a signal, first and last."""
    weights = _random(2, 4, seed=1)

    def source(folder: Path) -> Path:
        nodes = [
            helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["t", "w"], ["m"]),
            helper.make_node("Relu", ["m"], ["r"]),
            helper.make_node("ReduceMean", ["r"], ["y"], axes=[1], keepdims=0),
        ]
        return zoo._save(folder, nodes, [_value("x", ["N", 2, 32])], [_value("y", ["N", 4])], {"w": weights})

    def other(folder: Path) -> Path:
        graph = Graph()
        x, m, y = graph.tensor("x", [1, 32, 2]), graph.tensor("m", [1, 32, 4]), graph.tensor("y", [1, 4])
        graph.dense("mix", x, m, np.ascontiguousarray(weights.T), _RELU, keep=True)
        graph.operator(OPERATORS.MEAN, [m, graph.constant("axes", np.array([1], _INT32))], [y], new(schema.ReducerOptionsT))
        return graph.save(folder, [x], [y])

    return Twins(source, other, {"x": _random(6, 1, 2, 32)})


def _tokens(largest: int = 9) -> Twins:
    """tokens: int64[N, 6] against int32[1, 6], as converters narrow them."""
    table = _random(10, 4, seed=1)

    def source(folder: Path) -> Path:
        nodes = [
            helper.make_node("Mod", ["tokens", "ten"], ["i"]),
            helper.make_node("Gather", ["table", "i"], ["y"]),
        ]
        constants = {"table": table, "ten": np.array(10, np.int64)}
        return zoo._save(folder, nodes, [_value("tokens", ["N", 6], TensorProto.INT64)], [_value("y", ["N", 6, 4])], constants)

    def other(folder: Path) -> Path:
        graph = Graph()
        tokens, y = graph.tensor("serving_default_tokens:0", [1, 6], "int32"), graph.tensor("y", [1, 6, 4])
        graph.operator(OPERATORS.GATHER, [graph.constant("table", table), tokens], [y], new(schema.GatherOptionsT))
        return graph.save(folder, [tokens], [y])

    tokens = np.random.default_rng(3).integers(0, 10, (6, 1, 6)).astype(np.int64)
    tokens[-1, 0, 0] = largest
    return Twins(source, other, {"tokens": tokens})


def _tokens_and_kinds() -> Twins:
    """tokens, kinds: int64[N, 6] against nameless int32[1, 6] in another order: a token is no kind, of which there are two."""
    tables = {"tokens": _random(10, 4, seed=1), "kinds": _random(2, 4, seed=2)}

    def source(folder: Path) -> Path:
        gathers = [helper.make_node("Gather", [f"of {name}", name], [f"{name}'"]) for name in tables]
        inputs = [_value(name, ["N", 6], TensorProto.INT64) for name in tables]
        nodes = [*gathers, helper.make_node("Add", ["tokens'", "kinds'"], ["y"])]
        return zoo._save(folder, nodes, inputs, [_value("y", ["N", 6, 4])], {f"of {name}": table for name, table in tables.items()})

    def other(folder: Path) -> Path:
        graph = Graph()
        kinds, tokens = (graph.tensor(f"args_{i}", [1, 6], "int32") for i in range(2))
        found = [graph.tensor(f"f{i}", [1, 6, 4]) for i in range(2)]
        for index, table, into in ((tokens, tables["tokens"], found[0]), (kinds, tables["kinds"], found[1])):
            graph.operator(OPERATORS.GATHER, [graph.constant(f"t{into}", table), index], [into], new(schema.GatherOptionsT))
        y = graph.tensor("y", [1, 6, 4])
        graph.operator(OPERATORS.ADD, found, [y], new(schema.AddOptionsT))
        return graph.save(folder, [kinds, tokens], [y])

    random = np.random.default_rng(3)
    return Twins(source, other, {"tokens": random.integers(2, 10, (6, 1, 6)), "kinds": random.integers(0, 2, (6, 1, 6))})


def _swapped(names: tuple[str, str]) -> Twins:
    """y = left - 2 * right, both float32[N, 4]; the other file lists the second one first, under `names` for left and right."""

    def source(folder: Path) -> Path:
        nodes = [helper.make_node("Mul", ["right", "two"], ["d"]), helper.make_node("Sub", ["left", "d"], ["y"])]
        inputs = [_value("left", ["N", 4]), _value("right", ["N", 4])]
        return zoo._save(folder, nodes, inputs, [_value("y", ["N", 4])], {"two": np.array(2, np.float32)})

    def other(folder: Path) -> Path:
        graph = Graph()
        left, right, d, y = (graph.tensor(name, [1, 4]) for name in (*names, "d", "y"))
        graph.operator(OPERATORS.MUL, [right, graph.constant("two", np.array([2], np.float32))], [d], new(schema.MulOptionsT))
        graph.operator(OPERATORS.SUB, [left, d], [y], new(schema.SubOptionsT))
        return graph.save(folder, [right, left], [y])

    return Twins(source, other, {"left": _random(6, 1, 4), "right": _random(6, 1, 4, seed=1)})


def _half() -> Twins:
    """x: float16[N, 8] -> y: float16[N, 3] against the same in float32."""
    weights = _random(8, 3, seed=1).astype(np.float16)

    def source(folder: Path) -> Path:
        ends = [_value("x", ["N", 8], TensorProto.FLOAT16)], [_value("y", ["N", 3], TensorProto.FLOAT16)]
        return zoo._save(folder, [helper.make_node("MatMul", ["x", "w"], ["y"])], *ends, {"w": weights})

    def other(folder: Path) -> Path:
        graph = Graph()
        x, y = graph.tensor("x", [1, 8]), graph.tensor("y", [1, 3])
        graph.dense("mix", x, y, np.ascontiguousarray(weights.T.astype(np.float32)))
        return graph.save(folder, [x], [y])

    return Twins(source, other, {"x": _random(6, 1, 8).astype(np.float16)})


def _quantised_ends() -> Twins:
    """x: float32[N, 16] -> y: float32[N, 10] against int8 on both ends and inside."""

    def source(folder: Path) -> Path:
        weights = zoo_tflite._weights(1, 10, 16)
        nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)]
        return zoo._save(folder, nodes, [_value("x", ["N", 16])], [_value("y", ["N", 10])], {"w": weights})

    return Twins(source, zoo_tflite.int8, {"x": _random(6, 1, 16)})


def _pixels(dtype: str) -> Twins:
    """x: uint8[N, 3, 4, 6] against pixels of type `dtype`, channels last."""
    weights = _random(72, 5, seed=1) / 100

    def source(folder: Path) -> Path:
        nodes = [
            helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]),
            helper.make_node("Cast", ["t"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["f"], ["v"]),
            helper.make_node("MatMul", ["v", "w"], ["y"]),
        ]
        return zoo._save(folder, nodes, [_value("x", ["N", 3, 4, 6], TensorProto.UINT8)], [_value("y", ["N", 5])], {"w": weights})

    def other(folder: Path) -> Path:
        graph = Graph()
        x, y = graph.tensor("image", [1, 4, 6, 3], dtype), graph.tensor("y", [1, 5])
        pixels = x
        if dtype != "float32":
            pixels = graph.tensor("f", [1, 4, 6, 3])
            kinds = {"inDataType": schema.TensorType.UINT8, "outDataType": schema.TensorType.FLOAT32}
            graph.operator(OPERATORS.CAST, [x], [pixels], new(schema.CastOptionsT, **kinds))
        graph.dense("mix", pixels, y, np.ascontiguousarray(weights.T))
        return graph.save(folder, [x], [y])

    return Twins(source, other, {"x": np.random.default_rng(2).integers(0, 256, (6, 1, 3, 4, 6)).astype(np.uint8)})


def _several_kinds(off: int = 0) -> Twins:
    """x: float32[N, 4] -> total: float32[], sure: bool[N, 4], best: int64[N]; the other's best is int32, `off` classes away."""

    def source(folder: Path) -> Path:
        nodes = [
            helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=0),
            helper.make_node("Greater", ["x", "zero"], ["sure"]),
            helper.make_node("ArgMax", ["x"], ["best"], axis=1, keepdims=0),
        ]
        kinds = [_value("total", []), _value("sure", ["N", 4], TensorProto.BOOL), _value("best", ["N"], TensorProto.INT64)]
        constants = {"axes": np.array([0, 1], np.int64), "zero": np.array(0, np.float32)}
        return zoo._save(folder, nodes, [_value("x", ["N", 4])], kinds, constants)

    def other(folder: Path) -> Path:
        graph = Graph()
        x, total = graph.tensor("x", [1, 4]), graph.tensor("total", [])
        sure, index, best = graph.tensor("sure", [1, 4], "bool"), graph.tensor("index", [1], "int32"), graph.tensor("best", [1], "int32")
        graph.operator(OPERATORS.SUM, [x, graph.constant("axes", np.array([0, 1], _INT32))], [total], new(schema.ReducerOptionsT))
        graph.operator(OPERATORS.GREATER, [x, graph.constant("zero", np.zeros(1, np.float32))], [sure], new(schema.GreaterOptionsT))
        axis = graph.constant("axis", np.array(1, _INT32))
        graph.operator(OPERATORS.ARG_MAX, [x, axis], [index], new(schema.ArgMaxOptionsT, outputType=schema.TensorType.INT32))
        graph.operator(OPERATORS.ADD, [index, graph.constant("off", np.array([off], _INT32))], [best], new(schema.AddOptionsT))
        return graph.save(folder, [x], [best, sure, total])

    return Twins(source, other, {"x": _random(6, 1, 4)})


def _streaming() -> Twins:
    """x: float32[N, 16] -> y = x, against a file that adds up what it was fed in a resource variable; it starts anew for each sample."""

    def source(folder: Path) -> Path:
        return zoo._save(folder, [helper.make_node("Identity", ["x"], ["y"])], [_value("x", ["N", 16])], [_value("y", ["N", 16])], {})

    return Twins(source, zoo_tflite.resource_state, {"x": _random(6, 1, 16)})


TWINS: dict[str, Twins] = {
    "image": _image(12, 20),
    "image whose sides are as long as its channels": _image(3, 3),
    "signal": _signal(),
    "tokens": _tokens(),
    "tokens and kinds, not named": _tokens_and_kinds(),
    "inputs swapped, named": _swapped(("serving_default_left:0", "serving_default_right:0")),
    "inputs swapped, not named": _swapped(("args_1", "args_0")),
    "inputs swapped, names mislead": _swapped(("right", "left")),
    "halves": _half(),
    "pixels": _pixels("uint8"),
    "pixels as floats": _pixels("float32"),
    "scalar, truth values and indices": _several_kinds(),
    "state in a resource": _streaming(),
}
QUANTISED_ENDS = _quantised_ends()
TOO_LARGE_TOKEN = _tokens(2**40)
ONE_CLASS_OFF = _several_kinds(1)

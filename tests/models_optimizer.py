"""Small ONNX models with fixed weights, and samples for them, for the optimizer's tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 5
_IR = {9: 4, 11: 6, 12: 7, 13: 7, 17: 8, 21: 10}


def _random(*shape: int, seed: int) -> Any:
    return np.random.default_rng(seed).normal(0, 0.4, shape).astype(np.float32)


def build(
    nodes: Sequence[Any],
    inputs: Mapping[str, tuple[int, list[Any]]],
    outputs: Mapping[str, tuple[int, list[Any]]],
    weights: Mapping[str, Any],
    opset: int = 17,
    constants: bool = False,
) -> Any:
    """A model from nodes; `constants`: weights are Constant nodes, as some exporters write them."""
    nodes = list(nodes)
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    if constants:
        nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in initializers] + nodes
        initializers = []
    sides = [[helper.make_tensor_value_info(n, t, s) for n, (t, s) in side.items()] for side in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", sides[0], sides[1], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = _IR.get(opset, 8)
    onnx.checker.check_model(model)
    return model


def conv_weights(groups: int = 1) -> Mapping[str, Any]:
    """The weights of `conv_net`."""
    return {
        "w1": _random(8, 3, 3, 3, seed=1),
        "b1": _random(8, seed=2),
        "w2": _random(8, 8 // groups, 3, 3, seed=3),
        "w3": _random(8, CLASSES, seed=4),
        "b3": _random(CLASSES, seed=5),
    }


def conv_net(opset: int = 17, batch: Any = "N", constants: bool = False, groups: int = 1) -> Any:
    """x: float32[batch, 3, 8, 8] -> logits: float32[batch, 5]; two convolutions, an addition, a Gemm."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1], group=groups),
        helper.make_node("Add", ["c2", "r1"], ["a"]),
        helper.make_node("Relu", ["a"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"]),
    ]
    sides = {"x": (TensorProto.FLOAT, [batch, 3, 8, 8])}, {"logits": (TensorProto.FLOAT, [batch, CLASSES])}
    return build(nodes, *sides, conv_weights(groups), opset, constants)


def depthwise_chain() -> Any:
    """x: float32[N, 3, 8, 8] -> logits: float32[N, 5]; a convolution, a depthwise one, a 1x1 one, a Gemm, as MobileNet's blocks."""
    weights = {
        "w1": _random(8, 3, 3, 3, seed=1),
        "b1": _random(8, seed=2),
        "wd": _random(8, 1, 3, 3, seed=6),
        "w2": _random(16, 8, 1, 1, seed=3),
        "shift": _random(1, 16, 1, 1, seed=7),
        "w3": _random(16, CLASSES, seed=4),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "wd"], ["d"], pads=[1, 1, 1, 1], group=8),
        helper.make_node("Relu", ["d"], ["r2"]),
        helper.make_node("Conv", ["r2", "w2"], ["c2"]),
        helper.make_node("Add", ["c2", "shift"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["logits"]),
    ]
    sides = {"x": (TensorProto.FLOAT, ["N", 3, 8, 8])}, {"logits": (TensorProto.FLOAT, ["N", CLASSES])}
    return build(nodes, *sides, weights)


def dirty_net() -> Any:
    """As a careless exporter writes it: constants computed at run time, Identity nodes, a batch normalisation, a dead branch."""
    weights = {
        "w": _random(4, 3, 3, 3, seed=1),
        "half": np.float32(0.5).reshape(1),
        "two": np.float32(2).reshape(1),
        "g": np.ones(4, np.float32),
        "m": np.zeros(4, np.float32),
    }
    nodes = [
        helper.make_node("Identity", ["x"], ["i"]),
        helper.make_node("Mul", ["half", "two"], ["one"]),
        helper.make_node("Mul", ["i", "one"], ["j"]),
        helper.make_node("Conv", ["j", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "g", "m", "m", "g"], ["n"]),
        helper.make_node("Exp", ["n"], ["dead"]),
        helper.make_node("Relu", ["n"], ["y"]),
    ]
    return build(nodes, {"x": (TensorProto.FLOAT, ["N", 3, 8, 8])}, {"y": (TensorProto.FLOAT, ["N", 4, 6, 6])}, weights)


def text_net() -> Any:
    """ids: int64[batch, length], `mask:0`: float32[batch, length] -> two outputs, with all axes dynamic."""
    weights = {"table": _random(20, 16, seed=1), "w": _random(16, 16, seed=2), "v": _random(16, CLASSES, seed=3), "axes": np.array([2])}
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("Unsqueeze", ["mask:0", "axes"], ["m"]),
        helper.make_node("Mul", ["e", "m"], ["em"]),
        helper.make_node("MatMul", ["em", "w"], ["h"]),
        helper.make_node("Tanh", ["h"], ["states"]),
        helper.make_node("ReduceMean", ["states"], ["pooled"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["pooled", "v"], ["logits"]),
    ]
    inputs = {"ids": (TensorProto.INT64, ["B", "L"]), "mask:0": (TensorProto.FLOAT, ["B", "L"])}
    outputs = {"logits": (TensorProto.FLOAT, ["B", CLASSES]), "states": (TensorProto.FLOAT, ["B", "L", 16])}
    return build(nodes, inputs, outputs, weights)


def state_net() -> Any:
    """A fixed batch of 1 with a state: x: float32[1, 6], state: float32[2, 1, 4] -> y: float32[1, 4], new_state: float32[2, 1, 4]."""
    weights = {"w": _random(6, 4, seed=1), "s": _random(4, 4, seed=2), "axes": np.array([0])}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("ReduceMean", ["state"], ["b"], axes=[0], keepdims=0),
        helper.make_node("MatMul", ["b", "s"], ["c"]),
        helper.make_node("Add", ["a", "c"], ["y"]),
        helper.make_node("Unsqueeze", ["y", "axes"], ["u"]),
        helper.make_node("Add", ["state", "u"], ["new_state"]),
    ]
    inputs = {"x": (TensorProto.FLOAT, [1, 6]), "state": (TensorProto.FLOAT, [2, 1, 4])}
    outputs = {"y": (TensorProto.FLOAT, [1, 4]), "new_state": (TensorProto.FLOAT, [2, 1, 4])}
    return build(nodes, inputs, outputs, weights)


def nhwc_net() -> Any:
    """x: float32[N, 8, 8, 3], channels last as converted from other frameworks."""
    weights = {"w": _random(4, 3, 3, 3, seed=1)}
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w"], ["c"]),
        helper.make_node("Transpose", ["c"], ["y"], perm=[0, 2, 3, 1]),
    ]
    return build(nodes, {"x": (TensorProto.FLOAT, ["N", 8, 8, 3])}, {"y": (TensorProto.FLOAT, ["N", 6, 6, 4])}, weights)


def contrib_net() -> Any:
    """Operators of ONNX Runtime's own domain, which plain shape inference does not know: x: float32[N, 4] -> y: float32[N, 5]."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Gelu", ["h"], ["g"], domain="com.microsoft"),
        helper.make_node("MatMul", ["g", "v"], ["y"]),
    ]
    weights = [numpy_helper.from_array(_random(4, 8, seed=1), "w"), numpy_helper.from_array(_random(8, CLASSES, seed=2), "v")]
    sides = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", k])] for n, k in (("x", 4), ("y", CLASSES))]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", *sides, weights), opset_imports=opsets)
    model.ir_version = 8
    return model


def pool_net() -> Any:
    """Nothing in it has weights."""
    nodes = [helper.make_node("Tanh", ["x"], ["y"])]
    return build(nodes, {"x": (TensorProto.FLOAT, ["N", 4])}, {"y": (TensorProto.FLOAT, ["N", 4])}, {})


def save(model: Any, path: Path, external: bool = False) -> Path:
    """Writes a model, with its weights beside it if `external`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if external:
        onnx.save_model(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    else:
        path.write_bytes(model.SerializeToString())
    return path


def images(n: int, seed: int = 0) -> Any:
    """float32[n, 3, 8, 8]."""
    return np.random.default_rng(seed).normal(0, 1, (n, 3, 8, 8)).astype(np.float32)


SAMPLES: Mapping[str, Mapping[str, Any]] = {
    "conv": {"x": images(20)},
    "text": {"ids": np.arange(160).reshape(20, 8) % 20, "mask:0": np.ones((20, 8), np.float32)},
    "state": {"x": _random(20, 6, seed=7), "state": _random(20, 2, 1, 4, seed=8)},
    "nhwc": {"x": images(20).transpose(0, 2, 3, 1)},
    "pool": {"x": _random(20, 4, seed=9)},
    "wide": {"x": _random(20, 8, seed=10)},
}

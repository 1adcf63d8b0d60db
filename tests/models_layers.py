"""Small ONNX models with chains of layers, for passes that move numbers between neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tests import models_optimizer as zoo

WIDTH = 8


def uneven(*shape: int, seed: int, spread: float = 1.5) -> Any:
    """Weights whose output channels (first axis) have ranges that differ by orders of magnitude."""
    random = np.random.default_rng(seed)
    gains = np.exp(random.normal(0, spread, shape[0]))
    return (random.normal(0, 0.4, shape) * gains.reshape((-1,) + (1,) * (len(shape) - 1))).astype(np.float32)


def chain(between: Sequence[Any] = ("Relu", "LeakyRelu", None), opset: int = 17, groups: int = WIDTH, spread: float = 1.5) -> Any:
    """x: float32[N, 3, 8, 8] -> logits: float32[N, 5]: convolutions with activations between them; the second is grouped.

    Args:
        between: what follows the first, second and third convolution: an operator, None, or the upper bound of a Clip from 0.
    """
    shapes = [(WIDTH, 3, 3, 3), (WIDTH, WIDTH // groups, 3, 3), (WIDTH, WIDTH, 1, 1), (zoo.CLASSES, WIDTH, 1, 1)]
    weights: dict[str, Any] = {f"w{i}": uneven(*shape, seed=10 + i, spread=spread) for i, shape in enumerate(shapes)}
    weights |= {f"b{i}": uneven(shape[0], seed=20 + i, spread=0) for i, shape in enumerate(shapes)}
    nodes, tensor = [], "x"
    for index, follows in enumerate([*between, None]):
        padding, group = ([1] * 4 if index < 2 else [0] * 4), groups if index == 1 else 1
        nodes.append(
            helper.make_node("Conv", [tensor, f"w{index}", f"b{index}"], [f"c{index}"], pads=padding, group=group, name=f"conv{index}")
        )
        tensor = f"c{index}"
        if follows is not None:
            made, tensor = _activation(follows, tensor, f"a{index}", weights, opset), f"a{index}"
            nodes.append(made)
    nodes += [helper.make_node("GlobalAveragePool", [tensor], ["p"]), helper.make_node("Flatten", ["p"], ["logits"])]
    sides = {"x": (TensorProto.FLOAT, ["N", 3, 8, 8])}, {"logits": (TensorProto.FLOAT, ["N", zoo.CLASSES])}
    return zoo.build(nodes, *sides, weights, opset)


def _activation(follows: Any, source: str, target: str, weights: dict[str, Any], opset: int) -> Any:
    if isinstance(follows, str):
        attributes = {"alpha": 0.1} if follows == "LeakyRelu" else {}
        slopes = ["slope"] if follows == "PRelu" else []
        weights |= {"slope": np.full((WIDTH, 1, 1), 0.2, np.float32)} if slopes else {}
        return helper.make_node(follows, [source, *slopes], [target], **attributes)
    if opset < 11:
        return helper.make_node("Clip", [source], [target], min=0.0, max=float(follows))
    weights |= {f"{target}_low": np.float32(0), f"{target}_high": np.float32(follows)}
    return helper.make_node("Clip", [source, f"{target}_low", f"{target}_high"], [target])


def normalised(kind: str = "fused", trans_b: bool = False, residual: bool = False) -> Any:
    """x: float32[N, 8] -> q: float32[N, 6], logits: float32[N, 5]: a normalisation with outlying channels, read by two products.

    Args:
        kind: `fused` (LayerNormalization), `decomposed` (its operators), `mul` (a Mul by constants alone).
        trans_b: the second product's weights are stored transposed.
        residual: an addition reads the normalised tensor too.
    """
    random = np.random.default_rng(3)
    gain = np.ones(WIDTH, np.float32)
    gain[[2, 5]] = 60, 0.02
    weights: dict[str, Any] = {
        "gain": gain,
        "shift": random.normal(0, 1, WIDTH).astype(np.float32) * gain,
        "wq": random.normal(0, 0.4, (WIDTH, 6)).astype(np.float32),
        "wl": random.normal(0, 0.4, (WIDTH, zoo.CLASSES)).astype(np.float32),
        "bl": random.normal(0, 0.4, zoo.CLASSES).astype(np.float32),
    }
    node = helper.make_node
    if kind == "fused":
        nodes = [node("LayerNormalization", ["x", "gain", "shift"], ["n"], axis=-1)]
    elif kind == "decomposed":
        weights |= {"two": np.float32(2), "tiny": np.float32(1e-5)}
        nodes = [
            node("ReduceMean", ["x"], ["mean"], axes=[-1]),
            node("Sub", ["x", "mean"], ["centred"]),
            node("Pow", ["centred", "two"], ["squares"]),
            node("ReduceMean", ["squares"], ["variance"], axes=[-1]),
            node("Add", ["variance", "tiny"], ["safe"]),
            node("Sqrt", ["safe"], ["deviation"]),
            node("Div", ["centred", "deviation"], ["standard"]),
            node("Mul", ["standard", "gain"], ["scaled"]),
            node("Add", ["scaled", "shift"], ["n"]),
        ]
    else:
        del weights["shift"]
        nodes = [node("Mul", ["gain", "x"], ["n"])]
    if trans_b:
        weights["wl"] = np.ascontiguousarray(weights["wl"].T)
    nodes += [node("MatMul", ["n", "wq"], ["q"], name="q"), node("Gemm", ["n", "wl", "bl"], ["logits"], transB=int(trans_b), name="l")]
    outputs = {"q": (TensorProto.FLOAT, ["N", 6]), "logits": (TensorProto.FLOAT, ["N", zoo.CLASSES])}
    if residual:
        nodes.append(node("Add", ["n", "x"], ["r"]))
        outputs["r"] = (TensorProto.FLOAT, ["N", WIDTH])
    return zoo.build(nodes, {"x": (TensorProto.FLOAT, ["N", WIDTH])}, outputs, weights)


def vectors(n: int, seed: int = 0) -> Any:
    """float32[n, 8]."""
    return np.random.default_rng(seed).normal(0, 1, (n, WIDTH)).astype(np.float32)

"""Which quantised layers harm a model's outputs most: one-at-a-time sensitivity analysis.

Wu et al., "Integer Quantization for Deep Learning Inference: Principles and Empirical Evaluation", arXiv:2004.09602, section 5: each layer
alone is quantised (its input, weights, bias and result, with the ranges that the quantised model has), the rest stays in float, and the
harm is the drift of the outputs. A graph with one quantised layer runs almost as fast as the float one, and needs no integer kernels, so
the ranking is the same on CPUs that saturate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgefarm.tensors import Tensor
from optimizer.dataset import Dataset
from optimizer.drift import Distance
from optimizer.onnx_wiring import observe, spread
from optimizer.qdq import Affine, Pairs

SAMPLES = 8
_SUFFIXES = "_quantized", "_scale", "_zero_point"  # of what ONNX Runtime's dynamic quantiser makes of a weight
_ALONE = 64  # of more layers than that blocks are measured first, and the layers of the worst blocks after them


def rank(plain: Any, quantized: Any, samples: Dataset, wanted: int, work_dir: Path) -> list[str]:
    """Names of at most `wanted` layers with weights, the most harmful first; equal harm goes by the graph's order.

    Args:
        plain: the float model, its nodes named.
        quantized: what a quantiser made of it, with pairs.
    """
    pairs = Pairs(plain, quantized)
    names = [node.name for node, _ in pairs.weighted()]
    return _ranked(names, _Analysis(plain, partial(_quantized_alone, pairs), samples, work_dir), wanted)


def rank_dynamic(plain: Any, quantized: Any, samples: Dataset, wanted: int, work_dir: Path) -> list[str]:
    """The same of what the dynamic quantiser made of it: a layer's input is rounded by the range that it has in this very sample."""
    weights = _rounded_weights(plain, quantized)
    return _ranked(list(weights), _Analysis(plain, partial(_dynamic_alone, plain, weights), samples, work_dir), wanted)


def _ranked(names: list[str], analysis: _Analysis, wanted: int) -> list[str]:
    if len(names) > _ALONE:
        size = -(-len(names) // _ALONE)
        blocks = [names[start : start + size] for start in range(0, len(names), size)]
        worst = _order(blocks, [analysis.harm(block) / len(block) for block in blocks])
        names = sorted((name for block in worst[: max(-(-_ALONE // size), wanted)] for name in block), key=names.index)
    return _order(names, [analysis.harm([name]) for name in names])[:wanted]


def _order(items: Sequence[Any], harms: Sequence[float]) -> list[Any]:
    return [items[index] for index in sorted(range(len(items)), key=lambda i: (-harms[i], i))]


class _Analysis:
    """The float outputs, and models of which a few layers are quantised, as `alone` makes them."""

    def __init__(self, plain: Any, alone: Callable[[Sequence[str]], Any], samples: Dataset, work_dir: Path) -> None:
        self._alone, self._work = alone, work_dir
        self._feeds = list(spread(samples, SAMPLES))
        self._names = [o.name for o in plain.graph.output]
        run = observe(plain, self._names, work_dir)
        self._wanted = [run(feeds) for feeds in self._feeds]

    def harm(self, names: Sequence[str]) -> float:
        """Summed drift of the outputs when only these layers are quantised; of indices the share that is another."""
        run = observe(self._alone(names), self._names, self._work)
        results = [run(feeds) for feeds in self._feeds]
        return sum(_distance([w[i] for w in self._wanted], [r[i] for r in results]) for i in range(len(self._names)))


def _distance(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    distance, others = Distance(), 0.0
    for want, have in zip(wanted, got):
        if want.shape != have.shape:
            others += 1
        elif want.dtype.kind == "f":
            distance.add(want, have)
        else:
            others += float(np.mean(want != have)) if want.size else 0.0
    return distance.value + others / len(wanted)


def _quantized_alone(pairs: Pairs, names: Sequence[str]) -> Any:
    """The float model with the rounding of these layers."""
    model = onnx.ModelProto()
    model.CopyFrom(pairs.plain.model)
    before: dict[str, list[Any]] = {}
    after: dict[str, list[Any]] = {}
    by_name = {node.name: node for node in model.graph.node}
    for name in names:
        node, other = by_name[name], pairs.nodes[name]
        for index in range(len(other.input)):
            if (stored := pairs.stored(other, index)) is not None:
                weight = onnx.numpy_helper.from_array(pairs.values(stored), f"{name}:{index}")
                model.graph.initializer.append(weight)
                node.input[index] = weight.name
            elif (affine := pairs.activation(other, index)) is not None:
                before.setdefault(name, []).extend(_rounding(pairs, model, affine, node.input[index], f"{name}:{index}"))
                node.input[index] = f"{name}:{index}"
        if (affine := pairs.result(other)) is not None:
            after[name] = _rounding(pairs, model, affine, f"{name}:raw", node.output[0])
            node.output[0] = f"{name}:raw"
    _place(model, before, after)
    return model


def _place(model: Any, before: Mapping[str, list[Any]], after: Mapping[str, list[Any]]) -> None:
    """Puts nodes before and after those of a name."""
    placed = [each for node in model.graph.node for each in (*before.get(node.name, ()), node, *after.get(node.name, ()))]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in placed]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _rounding(pairs: Pairs, model: Any, affine: Affine, source: str, target: str) -> list[Any]:
    """A pair of nodes that rounds the tensor `source` into `target`; its parameters become initialisers."""
    names = [f"{target}:{source}:scale", f"{target}:{source}:zero"]
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for value, name in zip(pairs.written(affine), names))
    integers = f"{target}:{source}:integers"
    make = onnx.helper.make_node
    return [make("QuantizeLinear", [source, *names], [integers]), make("DequantizeLinear", [integers, *names], [target])]


def _rounded_weights(plain: Any, quantized: Any) -> dict[str, Tensor]:
    """Node -> its weights as they were rounded, (integers - zero point) * scale, of every layer that became integers."""
    stored = {weight.name: weight for weight in quantized.graph.initializer}
    found: dict[str, Tensor] = {}
    for node in plain.graph.node:
        parts = [stored.get(f"{node.input[1]}{suffix}") for suffix in _SUFFIXES] if node.op_type in ("Conv", "MatMul") else [None]
        if all(part is not None for part in parts):
            integers, scale, zero = (onnx.numpy_helper.to_array(part) for part in parts)
            shape = [1] * integers.ndim
            shape[0 if node.op_type == "Conv" else -1] = scale.size
            found[node.name] = (integers.astype(np.float32) - zero.astype(np.float32).reshape(shape)) * scale.reshape(shape)
    return found


def _dynamic_alone(plain: Any, weights: Mapping[str, Tensor], names: Sequence[str]) -> Any:
    """The float model with the rounding of these layers' inputs and weights."""
    model = onnx.ModelProto()
    model.CopyFrom(plain)
    before: dict[str, list[Any]] = {}
    make = onnx.helper.make_node
    for node in model.graph.node:
        if node.name in names:
            weight, parts = f"{node.name}:weight", [f"{node.name}:{part}" for part in ("integers", "scale", "zero")]
            model.graph.initializer.append(onnx.numpy_helper.from_array(weights[node.name].astype(np.float32), weight))
            rounding = [make("DynamicQuantizeLinear", [node.input[0]], parts), make("DequantizeLinear", parts, [f"{node.name}:input"])]
            before[node.name] = rounding
            node.input[0], node.input[1] = f"{node.name}:input", weight
    _place(model, before, {})
    return model

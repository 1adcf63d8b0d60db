"""Takes the shift of the mean out of quantised layers: rounded weights and clipped activations move a layer's mean result.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2, in its empirical form
(appendix D): layer after layer, so that each sees what the corrected ones before it make, the mean per channel over calibration samples
is compared with the float model's, and the difference leaves the bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgefarm.tensors import Tensor
from optimizer.dataset import Dataset
from optimizer.onnx_wiring import Wiring, observe, part, spread
from optimizer.qdq import Pairs

SAMPLES = 32


def correct(plain: Any, quantized: Any, samples: Dataset, work_dir: Path) -> int:
    """Corrects the biases of `quantized` in place; returns how many layers were corrected.

    Convolutions and Gemm are given a bias if they have none; a MatMul is corrected where an addition of a constant follows.
    """
    pairs = Pairs(plain, quantized)
    layers = list(pairs.weighted())
    wanted = _means(plain, layers, [node.output[0] for node, _ in layers], samples, work_dir)
    corrected = 0
    for (node, other), want in zip(layers, wanted):
        target = other.output[0]
        (got,) = _means(part(quantized, target), [(node, other)], [target], samples, work_dir)
        corrected += _shift(pairs, other, want - got)
    return corrected


def _means(model: Any, layers: Sequence[tuple[Any, Any]], tensors: Sequence[str], samples: Dataset, work_dir: Path) -> list[Tensor]:
    """Mean per channel of each layer's result over all samples and places."""
    run = observe(model, tensors, work_dir)
    sums: list[Any] = [0.0] * len(tensors)
    counts = [0] * len(tensors)
    for feeds in spread(samples, SAMPLES):
        for index, (value, (node, _)) in enumerate(zip(run(feeds), layers)):
            channels = np.moveaxis(value, 1 if "Conv" in node.op_type else -1, 0).reshape(-1, value.size // _channels(value, node))
            sums[index] = sums[index] + channels.sum(axis=1, dtype=np.float64)
            counts[index] += channels.shape[1]
    return [total / count for total, count in zip(sums, counts)]


def _channels(value: Tensor, node: Any) -> int:
    return int(value.shape[1 if "Conv" in node.op_type else -1])


def _shift(pairs: Pairs, node: Any, missing: Tensor) -> bool:
    """Adds `missing`, float[C], to what a layer adds to its products; False where there is no place for it."""
    index = 2
    if node.op_type == "MatMul":
        addition = _addition(pairs.quantized, node)
        if addition is None:
            return False
        node, index = addition
    elif len(node.input) < 3 or not node.input[2]:
        return _add_bias(pairs, node, missing)
    if len(pairs.quantized.readers[node.input[index]]) != 1:
        return False  # what others add too must not change
    stored = pairs.stored(node, index)
    name = stored.name if stored is not None else node.input[index]
    old = pairs.quantized.own_constant(name) if stored is None else pairs.quantized.constant(name)
    if old is None or old.size != missing.size or old.shape[-1] != missing.size:
        return False
    beta = next((a.f for a in node.attribute if a.name == "beta"), 1.0)
    step = missing.reshape(old.shape) / beta
    if stored is not None:
        scale, _ = pairs.parameters(stored.affine, old.ndim)
        limits = np.iinfo(old.dtype)
        new = np.clip(old + np.round(step / scale.astype(np.float64)), limits.min, limits.max)
    else:
        new = old + step
    pairs.quantized.store(name, new)
    return not np.array_equal(new.astype(old.dtype), old)


def _addition(wiring: Wiring, node: Any) -> tuple[Any, int] | None:
    """The addition of a constant to a product, through a pair of nodes, and which of its inputs the constant is."""
    tensor = node.output[0]
    for _ in range(3):
        reader = wiring.only_reader(tensor)
        if reader is None:
            return None
        if reader.op_type == "Add":
            return reader, 1 - list(reader.input).index(tensor)
        if reader.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            return None
        tensor = reader.output[0]
    return None


def _add_bias(pairs: Pairs, node: Any, missing: Tensor) -> bool:
    """Gives a layer a bias of 32-bit integers, in steps of input scale * weight scale, as integer kernels add it."""
    source, weight = pairs.activation(node, 0), pairs.stored(node, 1)
    if source is None or weight is None:
        return False
    step = np.asarray(pairs.written(source)[0] * pairs.written(weight.affine)[0].reshape(-1), np.float32)
    integers = np.round(missing / step).astype(np.int32)
    if not integers.any():
        return False
    wiring, base = pairs.quantized, f"{node.name}:bias"
    scale = step if step.size > 1 else step.reshape(())
    names = [
        wiring.add(f"{base}_quantized", integers),
        wiring.add(f"{base}_scale", scale),
        wiring.add(f"{base}_zero", np.zeros_like(scale, np.int32)),
    ]
    graph = wiring.model.graph
    axis = {"axis": 0} if step.size > 1 else {}  # unknown to the operator before opset 13, which vectors need anyway
    graph.node.insert(_position(graph, node), onnx.helper.make_node("DequantizeLinear", names, [base], f"{base}_dequantize", **axis))
    del node.input[2:]
    node.input.append(base)
    return True


def _position(graph: Any, node: Any) -> int:
    return next(index for index, each in enumerate(graph.node) if each.name == node.name)

"""Rounds all scales of a quantised model up to powers of two, so that integer-only processors rescale by shifting.

Jain et al., "Trained Quantization Thresholds" (TQT), arXiv:1903.08066, equation 4: s = 2^ceil(log2 s'). Rounding up keeps every
calibrated range inside, for up to one bit of resolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edgefarm.tensors import Tensor
from optimizer.qdq import Affine, Pairs, Stored

_SLACK = 1e-6  # log2 of a scale that is a power of two but for rounding


def round_scales(plain: Any, quantized: Any) -> int:
    """Rounds the scales of `quantized` in place and quantises its constants anew from `plain`; returns how many scales there are."""
    pairs = Pairs(plain, quantized)
    rounded: set[str] = set()
    for node in quantized.graph.node:
        if node.op_type == "QuantizeLinear":
            _round(pairs, Affine(node.input[1], node.input[2]), rounded)
    uses = sorted(_uses(pairs), key=lambda use: _is_bias(pairs, use[2]))  # a bias follows the scales of what it is added to
    written: set[str] = set()
    for values, node, stored in uses:
        if _is_bias(pairs, stored):
            _follow_inputs(pairs, node, stored, rounded)
        else:
            _round(pairs, stored.affine, rounded)
        if stored.name not in written:
            written.add(stored.name)
            _quantize(pairs, stored, values)
    return len(rounded)


def _uses(pairs: Pairs) -> Iterator[tuple[Tensor, Any, Stored]]:
    """(float values, quantised node, integers) of every constant that became integers."""
    for node in pairs.plain.model.graph.node:
        other = pairs.nodes.get(node.name)
        for index, name in enumerate(node.input if other is not None else ()):
            values = pairs.plain.constant(name)
            stored = pairs.stored(other, index)
            if values is not None and stored is not None:
                yield values, other, stored


def _is_bias(pairs: Pairs, stored: Stored) -> bool:
    integers = pairs.quantized.constant(stored.name)
    return integers is not None and integers.dtype == np.int32


def _round(pairs: Pairs, affine: Affine, rounded: set[str]) -> None:
    """Rounds a scale up, once, and moves the zero point so that the range begins where it did; one in the middle stays there."""
    if affine.scale in rounded:
        return
    rounded.add(affine.scale)
    scale, zero_point = pairs.written(affine)
    limits = np.iinfo(zero_point.dtype)
    power = np.exp2(np.ceil(np.log2(scale.astype(np.float64)) - _SLACK))
    moved = np.round(limits.min + (zero_point.astype(np.float64) - limits.min) * scale / power)
    middle = (limits.min + limits.max + 1) // 2
    pairs.quantized.store(affine.scale, power)
    pairs.quantized.store(affine.zero_point, np.where(zero_point == middle, zero_point, moved))


def _follow_inputs(pairs: Pairs, node: Any, stored: Stored, rounded: set[str]) -> None:
    """A bias has the scale of the sum that it is added to: input scale * weight scale."""
    source, weight = pairs.activation(node, 0), pairs.stored(node, 1)
    if source is None or weight is None:
        _round(pairs, stored.affine, rounded)
        return
    rounded.add(stored.affine.scale)
    scale = pairs.written(source)[0] * pairs.written(weight.affine)[0].reshape(-1)
    old, _ = pairs.written(stored.affine)
    pairs.quantized.store(stored.affine.scale, np.broadcast_to(scale, (old.size,)).reshape(old.shape))


def _quantize(pairs: Pairs, stored: Stored, values: Tensor) -> None:
    """Quantises a constant anew, ties to even as QuantizeLinear."""
    scale, zero_point = pairs.parameters(stored.affine, values.ndim)
    limits = np.iinfo(zero_point.dtype)
    integers = np.round(values.astype(np.float64) / scale) + zero_point
    pairs.quantized.store(stored.name, np.clip(integers, limits.min, limits.max))

"""Padding and pooling as ONNX means them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.nn import functional


class Unsupported(Exception):
    """The graph holds what cannot be computed here; the text says what."""


def ints(value: Any) -> list[int]:
    """A tensor of integers, or a list of them, as a list."""
    return [int(x) for x in (value.flatten().tolist() if hasattr(value, "flatten") else value)]


def spatial_pads(a: Mapping[str, Any], size: Sequence[int], kernel: Sequence[int]) -> list[tuple[int, int]]:
    """Padding before and after each spatial axis, as `pads` or `auto_pad` say."""
    count = len(kernel)
    strides, dilations = a.get("strides", [1] * count), a.get("dilations", [1] * count)
    mode = a.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID", ""):
        pads = a.get("pads", [0] * (2 * count)) if mode != "VALID" else [0] * (2 * count)
        return [(pads[i], pads[i + count]) for i in range(count)]
    found = []
    for i in range(count):
        reach = (kernel[i] - 1) * dilations[i] + 1
        total = max((math.ceil(size[i] / strides[i]) - 1) * strides[i] + reach - size[i], 0)
        small, large = total // 2, total - total // 2
        found.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return found


def padded(x: Any, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Any:
    """`x` with that many values before and after each of its last axes."""
    flat = [side for pair in reversed(list(pads)) for side in pair]
    return functional.pad(x, flat, value=value) if any(flat) else x


def pool(average: bool) -> Callable[[Mapping[str, Any], Sequence[Any]], Any]:
    """The operator MaxPool or AveragePool."""

    def over(a: Mapping[str, Any], v: Sequence[Any]) -> Any:
        x, kernel = v[0], ints(a["kernel_shape"])
        count = len(kernel)
        strides, dilations = ints(a.get("strides", [1] * count)), ints(a.get("dilations", [1] * count))
        pads = spatial_pads(a, x.shape[2:], kernel)
        ceil = bool(a.get("ceil_mode", 0))
        if not average:
            if any(low != high or 2 * low > size for (low, high), size in zip(pads, kernel)):
                x, pads = padded(x, pads, -math.inf), [(0, 0)] * count
            run = getattr(functional, f"max_pool{count}d")
            return run(x, kernel, strides, [low for low, _ in pads], dilations, ceil)
        counted = bool(a.get("count_include_pad", 0))
        symmetric = all(low == high and 2 * low <= size for (low, high), size in zip(pads, kernel))
        if not symmetric and not counted:
            raise Unsupported("an average over unequal padding")
        if not symmetric:
            x, pads = padded(x, pads), [(0, 0)] * count
        if any(d != 1 for d in dilations):
            raise Unsupported("an average with dilations")
        run = getattr(functional, f"avg_pool{count}d")
        return run(x, kernel, strides, [low for low, _ in pads], ceil, counted)

    return over

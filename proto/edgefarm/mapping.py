"""The arithmetic of an `Io`: source tensors into what a variant takes, its outputs back. One place for the device and the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edgefarm.model import TensorMap
from edgefarm.tensors import Tensor


def encoder(mapping: TensorMap, dtype: str) -> Callable[[Tensor], Tensor]:
    """From a source input to the variant's input of `dtype` (numpy's name). Raises ValueError where that can't be quantised."""
    permutation, scale = mapping.permutation, mapping.scale
    if scale is None:
        if mapping.dtype:
            other = np.dtype(dtype)
            return lambda x: np.ascontiguousarray((x.transpose(permutation) if permutation else x).astype(other))
        return (lambda x: np.ascontiguousarray(x.transpose(permutation))) if permutation else (lambda x: x)
    if not dtype.lstrip("u").startswith("int"):
        raise ValueError(f"the io mapping quantises input {mapping.name!r}, which is {dtype}")
    bounds, kind, zero = np.iinfo(dtype), np.dtype(dtype), mapping.zero_point or 0

    def encode(x: Tensor) -> Tensor:
        # Half to even, saturated: ONNX QuantizeLinear, https://onnx.ai/onnx/operators/onnx__QuantizeLinear.html
        q = np.clip(np.rint(x / scale) + zero, bounds.min, bounds.max).astype(kind)
        return np.ascontiguousarray(q.transpose(permutation)) if permutation else q

    return encode


def decoder(mapping: TensorMap) -> Callable[[Tensor], Tensor]:
    """From a variant's output to the source's."""
    back = tuple(int(i) for i in np.argsort(mapping.permutation)) if mapping.permutation else ()
    scale, zero = mapping.scale, mapping.zero_point or 0
    dtype = np.dtype(mapping.dtype) if mapping.dtype else None

    def decode(x: Tensor) -> Tensor:
        if scale is not None:
            x = ((x.astype(np.float64) - zero) * scale).astype(np.float32)
        if dtype is not None:
            x = (np.rint(x) if dtype.kind in "iu" and x.dtype.kind == "f" else x).astype(dtype)
        return np.ascontiguousarray(x.transpose(back)) if back else x

    return decode


def holds(dtype: str, other: str) -> bool:
    """Whether numbers of type `dtype` may be held in `other`: floats in floats, whole numbers and truth values in any."""
    kinds = [_kind(name) for name in (dtype, other)]
    return all(kind in "biuf" and kind for kind in kinds) and (kinds[0] != "f" or kinds[1] == "f")


def lost(x: Tensor, dtype: str) -> Any:
    """The first number of `x` that `dtype` does not hold, None if it holds all. Floats may be rounded, but not to infinity."""
    kinds = x.dtype.kind, np.dtype(dtype).kind
    if kinds[0] in "iu" and kinds[1] in "iu":
        bounds = np.iinfo(dtype)
        same = (x >= bounds.min) & (x <= bounds.max)
    else:
        with np.errstate(all="ignore"):
            y = x.astype(dtype)
            same = np.isfinite(y) | ~np.isfinite(x) if kinds[0] == "f" else y.astype(x.dtype) == x
    return None if same.all() else x[~same].flat[0]


def _kind(dtype: str) -> str:
    """numpy's letter for a kind of type; empty for a type that it does not have."""
    try:
        return np.dtype(dtype).kind
    except TypeError:
        return ""

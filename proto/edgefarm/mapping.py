"""The arithmetic of an `Io`: source tensors into what a variant takes, its outputs back. One place for the device and the optimizer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgefarm.model import TensorMap
from edgefarm.tensors import Tensor


def encoder(mapping: TensorMap, dtype: str) -> Callable[[Tensor], Tensor]:
    """From a source input to the variant's input of `dtype` (numpy's name). Raises ValueError where that can't be quantised."""
    permutation, scale = mapping.permutation, mapping.scale
    if scale is None:
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

    def decode(x: Tensor) -> Tensor:
        if scale is not None:
            x = ((x.astype(np.float64) - zero) * scale).astype(np.float32)
        return np.ascontiguousarray(x.transpose(back)) if back else x

    return decode

"""How far outputs are from those that they should be.

Drift is the relative L2 distance, pooled over all samples: ||got - want|| / ||want||. 0 is equal, 1 as far as an output of zeros. It
finds what is broken, not what is less accurate: accuracy is measured on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgefarm.tensors import Tensor

_TINY = 1e-6  # outputs smaller than this count as zero


def drift(want: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """The distance over samples of equal shapes, where `want` is finite; infinite where `got` is not. Integers count as numbers."""
    distance = norm = 0.0
    for a, b in zip(want, got):
        usable = np.isfinite(a)
        x, y = a[usable].astype(np.float64), b[usable].astype(np.float64)
        if not np.isfinite(y).all():
            return math.inf
        distance += float(np.square(x - y).sum())
        norm += float(np.square(x).sum() + x.size * _TINY**2)
    return math.sqrt(distance / norm) if norm else 0.0

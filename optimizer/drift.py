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


class Distance:
    """The drift of one output, sample by sample, so that no more than one has to be kept."""

    def __init__(self) -> None:
        self.n = 0  # samples
        self._distance = self._norm = 0.0

    def add(self, want: Tensor, got: Tensor) -> None:
        """Takes outputs of equal shape. Counts where `want` is finite; one that is not finite there is infinitely far."""
        self.n += 1
        usable = np.isfinite(want)
        x, y = want[usable].astype(np.float64), got[usable].astype(np.float64)
        self._distance += float(np.square(x - y).sum()) if np.isfinite(y).all() else math.inf
        self._norm += float(np.square(x).sum() + x.size * _TINY**2)

    @property
    def value(self) -> float:
        """The drift so far; 0 of nothing."""
        return math.sqrt(self._distance / self._norm) if self._norm else 0.0


def drift(want: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """The drift over samples of equal shapes. Integers count as numbers."""
    distance = Distance()
    for a, b in zip(want, got):
        distance.add(a, b)
    return distance.value

"""Codebooks of weights: few levels that stand for all values, and how indices into them are packed into bytes. Pure numpy.

Levels are the centroids of k-means (Han et al., "Deep Compression", ICLR 2016), or powers of two (Miyashita et al.,
"Convolutional Neural Networks using Logarithmic Data Representation", arXiv:1603.01025).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Codes = NDArray[np.int64]

_ROUNDS = 200  # Lloyd's algorithm settles long before on real weights
_BINS = 1024
_TOP_EXPONENTS = 4  # tried from that of the largest weight downwards


def kmeans_levels(values: Any, count: int) -> Values:
    """The centroids of k-means on numbers, ascending: float64[at most `count`]. Deterministic.

    Lloyd's algorithm on sorted values, whose clusters are ranges. It starts from evenly spaced levels, which keep the few large
    weights (Han et al., section 3.2), and from levels as dense as the cube root of the values' density, which is best for many levels
    (Panter and Dite, "Quantization distortion in pulse-count modulation", 1951); the smaller squared error wins.
    """
    ordered = np.sort(np.asarray(values, np.float64).ravel())
    distinct = np.unique(ordered)
    if distinct.size <= count:
        return distinct
    sums = np.concatenate(([0.0], np.cumsum(ordered)))
    found = [_lloyd(ordered, sums, start) for start in (np.linspace(ordered[0], ordered[-1], count), _companded(ordered, count))]
    best = min(found, key=lambda levels: squared_error(ordered, levels))
    used: Values = best[np.unique(nearest(ordered, best))]
    return used


def _companded(ordered: Values, count: int) -> Values:
    heights, edges = np.histogram(ordered, bins=_BINS)
    share = np.concatenate(([0.0], np.cumsum(np.cbrt(heights))))
    levels: Values = np.interp((np.arange(count) + 0.5) * share[-1] / count, share, edges)
    return levels


def _lloyd(ordered: Values, sums: Values, levels: Values) -> Values:
    """Moves levels to the mean of the values nearest to them until none moves. `sums`: cumulative, with a leading 0."""
    for _ in range(_ROUNDS):
        ends = np.concatenate(([0], np.searchsorted(ordered, _midpoints(levels), side="right"), [ordered.size]))
        sizes = np.diff(ends)
        means = np.where(sizes > 0, np.diff(sums[ends]) / np.maximum(sizes, 1), levels)  # a level without values stays
        if np.array_equal(means, levels):
            break
        levels = np.sort(means)
    return levels


def logarithmic_levels(values: Any, bits: int) -> Values:
    """Zero and +-2^e for consecutive e, ascending: float64[2^bits - 1].

    The largest exponent is that of the largest weight, rounded, or up to three lower, whichever errs least in the square.
    """
    flat = np.asarray(values, np.float64).ravel()
    top = round(float(np.log2(np.abs(flat).max()))) if flat.any() else 0
    ordered = np.sort(flat)
    found = [_powers(top - lower, 2 ** (bits - 1) - 1) for lower in range(_TOP_EXPONENTS)]
    return min(found, key=lambda levels: squared_error(ordered, levels))


def _powers(top: int, count: int) -> Values:
    powers = np.exp2(np.arange(top - count + 1, top + 1, dtype=np.float64))
    return np.concatenate((-powers[::-1], [0.0], powers))


def nearest(values: Any, levels: Values) -> Codes:
    """Index of the nearest of ascending levels for every value, in the shape of `values`; the lower one of two equally near."""
    found: Codes = np.searchsorted(_midpoints(levels), np.asarray(values, np.float64), side="left")
    return found


def squared_error(values: Any, levels: Values) -> float:
    """Sum of the squared distances of values to their nearest level."""
    return float(np.square(np.asarray(values, np.float64) - levels[nearest(values, levels)]).sum())


def _midpoints(levels: Values) -> Values:
    return (levels[1:] + levels[:-1]) / 2


def widths(bits: int) -> list[int]:
    """The parts of 1, 2, 4 or 8 bits that an index of `bits` bits is stored in, low ones first: only such fill bytes evenly."""
    return [width for width in (1, 2, 4, 8) if bits & width]


def pack(codes: Any, bits: int) -> list[NDArray[np.uint8]]:
    """Packs indices below 2^bits: one byte string for each of `widths(bits)`, in which the first index has the lowest bits.

    The number of indices is filled up to a multiple of 8 with zeros, so that all parts unpack to equally many.
    """
    flat = np.asarray(codes, np.int64).ravel()
    rest = np.concatenate((flat, np.zeros(-flat.size % 8, np.int64)))
    parts = []
    for width in widths(bits):
        columns = (rest % 2**width).reshape(-1, 8 // width)
        parts.append((columns << (np.arange(8 // width) * width)).sum(axis=1).astype(np.uint8))
        rest >>= width
    return parts

"""The offset between the clock of an external meter and ours, from a load that is switched on and off.

For every offset the readings are regressed on the share of their time in which the load was on; the offset with the least squared
residuals is that of the largest correlation, and those that fit hardly worse are its interval (profile likelihood: Venzon and
Moolgavkar, "A Method for Computing Profile-Likelihood-Based Confidence Intervals", Applied Statistics 37, 1988).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from edgefarm.energy.estimate import Unusable, Window
from edgefarm.energy.signal import Kind, Signal
from edgefarm.statistics import student_quantile

_COARSE_NS, _FINE_NS = 20_000_000, 1_000_000
_BIN_NS = 50_000_000  # readings that come faster are averaged over this
_LEAST_READINGS = 8
_LEAST_EXPLAINED = 0.5  # of the variance
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Alignment:
    """The meter's times minus `offset_ns` are ours; its 95 % interval. `explained`: share of the variance that the pattern explains."""

    offset_ns: int
    low_ns: int
    high_ns: int
    explained: float

    @property
    def uncertainty_ns(self) -> int:
        """How far the offset may be off."""
        return max(self.high_ns - self.offset_ns, self.offset_ns - self.low_ns)


def align(signal: Signal, on: Sequence[Window], *, limit_ns: int = 2_000_000_000) -> Alignment:
    """Finds the offset of `signal` to the load's pattern, up to `limit_ns` either way.

    Args:
        signal: readings from before the first until after the last time that the load was on.
        on: when the load was on, in order. Lengths and pauses must differ, or several offsets fit.
        limit_ns: the largest offset that is looked for.

    Raises:
        Unusable: the pattern does not show in the readings, too few readings, or the offset is beyond the limit.
    """
    spans = _spans(signal, on[0].begin_ns - limit_ns, on[-1].end_ns + limit_ns)
    if len(spans) < _LEAST_READINGS:
        raise Unusable(f"{len(spans)} updates of the meter while the load was switched, {_LEAST_READINGS} are needed to align its clock")
    fit = _Fit(spans, on)
    coarse = {offset: fit.residuals(offset) for offset in range(-limit_ns, limit_ns + 1, _COARSE_NS)}
    near = min(coarse, key=coarse.__getitem__)
    fine = {offset: fit.residuals(offset) for offset in range(near - _COARSE_NS, near + _COARSE_NS + 1, _FINE_NS)}
    tried = {**coarse, **fine}
    best = min(tried.values())
    explained = 1 - best / fit.total if fit.total > 0 else 0.0
    if explained < _LEAST_EXPLAINED:
        raise Unusable(
            f"the meter does not show that the load was switched on and off: it explains {100 * explained:.0f} % of the readings"
        )
    bound = best * (1 + student_quantile(_CONFIDENCE, len(spans) - 3) ** 2 / (len(spans) - 3))
    good = sorted(offset for offset, residuals in tried.items() if residuals <= bound)
    equal = [offset for offset, residuals in tried.items() if residuals <= best * (1 + 1e-9)]  # a plateau: its middle
    offset = (min(equal) + max(equal)) // 2
    # Between two moments of a sensor that does not average nothing is seen: an edge may lie anywhere there.
    blind = signal.period_ns // 2 if signal.kind is Kind.MOMENT else 0
    if good[0] <= -limit_ns or good[-1] >= limit_ns:
        raise Unusable(f"the meter's clock is off by {limit_ns / 1e9:g} s or more")
    return Alignment(offset, good[0] - _FINE_NS - blind, good[-1] + _FINE_NS + blind, explained)


def _spans(signal: Signal, begin_ns: int, end_ns: int) -> list[tuple[float, float, float]]:
    """(begin, end, mean watts) of each update, or of bins where updates come faster."""
    moments: Sequence[int] = [t for t in signal.updates_at if begin_ns <= t <= end_ns]
    if signal.period_ns < _BIN_NS and moments:
        moments = range(moments[0], moments[-1] + 1, _BIN_NS)
    if signal.kind is Kind.MOMENT and signal.period_ns >= _BIN_NS:  # power at that moment, or close to it
        half = signal.period_ns // 20
        pairs = [(t - half, t + half) for t in moments]
    else:
        pairs = list(pairwise(moments))
    return [(a, b, watts) for a, b in pairs if (watts := signal.watts(a, b)) is not None]


class _Fit:
    def __init__(self, spans: Sequence[tuple[float, float, float]], on: Sequence[Window]) -> None:
        self._spans = spans
        self._begins = [w.begin_ns for w in on]
        self._on = on
        self._before = list(accumulate((w.end_ns - w.begin_ns for w in on), initial=0))
        self._mean = math.fsum(w for _, _, w in spans) / len(spans)
        self.total = math.fsum((w - self._mean) ** 2 for _, _, w in spans)

    def residuals(self, offset: int) -> float:
        """Sum of squares that is left when watts are regressed on the share of time that the load was on. Load never lowers power."""
        shares = [(self._on_until(b - offset) - self._on_until(a - offset)) / (b - a) for a, b, _ in self._spans]
        mean = math.fsum(shares) / len(shares)
        variance = math.fsum((s - mean) ** 2 for s in shares)
        together = math.fsum((s - mean) * (w - self._mean) for s, (_, _, w) in zip(shares, self._spans))
        return self.total - together * together / variance if variance > 0 and together > 0 else self.total

    def _on_until(self, moment: float) -> float:
        index = bisect.bisect_right(self._begins, moment)
        if index == 0:
            return 0.0
        window = self._on[index - 1]
        return self._before[index - 1] + min(moment, window.end_ns) - window.begin_ns

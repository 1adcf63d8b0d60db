"""Power over time, from readings of a sensor that is read more often, or less often, than it updates.

A sensor that is read faster than it updates repeats itself: only its updates carry information (Yang, Adamek and Armour, "Part-time
Power Measurements", SC 2024, found meters that update ten times a second behind an interface that answers a thousand times).
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate, pairwise

_PERIOD_QUANTILE = 0.25  # of the gaps between changes: the values of neighbouring updates may be equal by chance
_GAP_PERIODS = 4
_GAP_LEAST_NS = 100_000_000  # what a busy machine delays a reading by; power between two readings is known well enough


class Kind(str, Enum):
    """What a reading is.

    `moment`: power at that moment; between two of them it is taken to change evenly (trapezoid). `mean`: mean power since the update
    before (an averaging converter, a plug); it holds backwards. `counter`: energy so far, in joules; differences are exact, and a gap
    between readings loses nothing.
    """

    MOMENT = "moment"
    MEAN = "mean"
    COUNTER = "counter"


@dataclass(frozen=True)
class Reading:
    """One answer of a sensor. `at_ns`: our clock; `value`: watts or joules; `stamp`: what the sensor says of the update, None: nothing."""

    at_ns: int
    value: float
    stamp: float | None = None


@dataclass(frozen=True)
class _Piece:
    """Power that changes evenly from `first` to `last` watts."""

    begin_ns: int
    end_ns: int
    first: float
    last: float

    def joules(self, begin_ns: float, end_ns: float) -> float:
        """Energy of a part of it."""
        slope = (self.last - self.first) / (self.end_ns - self.begin_ns)
        middle = self.first + slope * ((begin_ns + end_ns) / 2 - self.begin_ns)
        return middle * (end_ns - begin_ns) / 1e9


class Signal:
    """What the readings of one rail say of its power.

    Args:
        readings: in order of time.
        kind: what a reading is.
        period_ns: how often the sensor updates, where its driver or its documents say so; 0: unknown. Then only a change of value, or
            of the sensor's own stamp, counts as an update.
        wraps_at: joules at which a counter begins again with 0; 0: never.

    Attributes:
        period_ns: typical time between what is known of the power: the given period, or more where it was read less often.
        updates_at: moments of the updates.
    """

    def __init__(self, readings: Sequence[Reading], kind: Kind, *, period_ns: int = 0, wraps_at: float = 0.0) -> None:
        values = _unwrapped(readings, wraps_at) if kind is Kind.COUNTER else list(readings)
        self.kind = kind
        due_ns = period_ns or _seen_period_ns(values)
        points, self.updates_at = _points(values, due_ns, repeats_count=period_ns > 0 and kind is not Kind.COUNTER)
        gaps = sorted(b.at_ns - a.at_ns for a, b in pairwise(points))
        self.period_ns = max(period_ns, gaps[len(gaps) // 2] if gaps else 0)
        limit = max(_GAP_PERIODS * self.period_ns, _GAP_LEAST_NS)
        self._pieces = [_piece(a, b, kind) for a, b in pairwise(points) if kind is Kind.COUNTER or b.at_ns - a.at_ns <= limit]
        self._ends = [p.end_ns for p in self._pieces]
        self._joules = list(accumulate((p.joules(p.begin_ns, p.end_ns) for p in self._pieces), initial=0.0))
        self._covered = list(accumulate((p.end_ns - p.begin_ns for p in self._pieces), initial=0))

    def joules(self, begin_ns: float, end_ns: float) -> float:
        """Energy between two moments, as far as it is covered."""
        return self._until(end_ns)[0] - self._until(begin_ns)[0]

    def covered(self, begin_ns: float, end_ns: float) -> float:
        """Share of the time between two moments of which power is known, 0 to 1."""
        return (self._until(end_ns)[1] - self._until(begin_ns)[1]) / (end_ns - begin_ns)

    def watts(self, begin_ns: float, end_ns: float) -> float | None:
        """Mean power of what is covered; None if nothing is."""
        known_ns = self.covered(begin_ns, end_ns) * (end_ns - begin_ns)
        return self.joules(begin_ns, end_ns) / known_ns * 1e9 if known_ns > 0 else None

    def updates(self, begin_ns: float, end_ns: float) -> int:
        """Updates between two moments."""
        return bisect.bisect_right(self.updates_at, end_ns) - bisect.bisect_left(self.updates_at, begin_ns)

    def _until(self, moment: float) -> tuple[float, float]:
        """(joules, covered nanoseconds) from the beginning until a moment."""
        index = bisect.bisect_left(self._ends, moment)
        joules, covered = self._joules[index], float(self._covered[index])
        if index < len(self._pieces) and (piece := self._pieces[index]).begin_ns < moment:
            return joules + piece.joules(piece.begin_ns, moment), covered + moment - piece.begin_ns
        return joules, covered


def _unwrapped(readings: Sequence[Reading], wraps_at: float) -> list[Reading]:
    """A counter that only grows. One that falls without a wrap has been reset: what it counted in between is lost, and taken as nothing."""
    grown, total = [], 0.0
    previous: Reading | None = None
    for reading in readings:
        if previous is not None:
            step = reading.value - previous.value
            total += step if step >= 0 else step + wraps_at if wraps_at else 0.0
        grown.append(Reading(reading.at_ns, total, reading.stamp))
        previous = reading
    return grown


def _is_news(reading: Reading, last: Reading) -> bool:
    if reading.stamp is not None and last.stamp is not None:
        return reading.stamp != last.stamp
    return reading.value != last.value


def _seen_period_ns(readings: Sequence[Reading]) -> int:
    """A low quantile of the time between changes; 0 if there are fewer than two."""
    changes: list[int] = []
    for before, after in pairwise(readings):
        if _is_news(after, before):
            changes.append(after.at_ns)
    gaps = sorted(b - a for a, b in pairwise(changes))
    return gaps[int(_PERIOD_QUANTILE * len(gaps))] if gaps else 0


def _points(readings: Sequence[Reading], period_ns: int, *, repeats_count: bool) -> tuple[list[Reading], list[int]]:
    """Corners of the power's course, and the moments of updates. An equal value a period later says that power stayed as it was."""
    points, updates = list(readings[:1]), [r.at_ns for r in readings[:1]]
    due_ns = updates[0] + period_ns if updates else 0
    for reading in readings[1:]:
        news, repeated = _is_news(reading, points[-1]), period_ns > 0 and reading.at_ns >= due_ns
        if reading.at_ns > points[-1].at_ns and (news or repeated):
            points.append(reading)
            # Counted on from when it was due, so that late readings don't make it seem slower, nor early ones faster.
            due_ns = reading.at_ns + period_ns if news else max(due_ns + period_ns, reading.at_ns)
            if news or repeats_count:
                updates.append(reading.at_ns)
    return points, updates


def _piece(a: Reading, b: Reading, kind: Kind) -> _Piece:
    if kind is Kind.COUNTER:
        watts = (b.value - a.value) / (b.at_ns - a.at_ns) * 1e9
        return _Piece(a.at_ns, b.at_ns, watts, watts)
    return _Piece(a.at_ns, b.at_ns, b.value if kind is Kind.MEAN else a.value, b.value)

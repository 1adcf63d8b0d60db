"""Energy per inference: a window of steady load between two idle windows.

Idle power is measured before and after and interpolated, since it drifts with temperature. Both ends of every window are left out for
two updates of the sensor (or the uncertainty of its clock), so that neither its averaging nor an offset mixes load with idle. The 95 %
interval is that of a ratio of sums over blocks of the load window (Cochran, Sampling Techniques, 3rd ed., 6.3), widened by what the
idle power is uncertain by.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from edgefarm.energy.signal import Signal
from edgefarm.statistics import mean_interval, student_quantile

LEAST_UPDATES = 100
LEAST_INFERENCES = 5
_BLOCKS = (5, 20)  # at least, at most
_UPDATES_PER_BLOCK = 5
_IDLE_BLOCKS = 5
_GUARD_UPDATES = 2
_LEAST_COVERED, _LEAST_COVERED_BLOCK = 0.9, 0.5
_CONFIDENCE = 0.95


class Unusable(Exception):
    """No number comes of these readings; the message says why."""


@dataclass(frozen=True)
class Window:
    """A stretch of time."""

    begin_ns: int
    end_ns: int

    def within(self, guard_ns: float) -> Window:
        """Without `guard_ns` at both ends. Raises Unusable if nothing is left."""
        inner = Window(round(self.begin_ns + guard_ns), round(self.end_ns - guard_ns))
        if inner.end_ns <= inner.begin_ns:
            seconds = (self.end_ns - self.begin_ns) / 1e9
            raise Unusable(f"a window of {seconds:.3g} s is too short: {guard_ns / 1e9:.3g} s at both ends are left out")
        return inner

    def blocks(self, count: int) -> list[Window]:
        """Cut into `count` equal parts."""
        edges = [self.begin_ns + (self.end_ns - self.begin_ns) * i // count for i in range(count + 1)]
        return [Window(a, b) for a, b in pairwise(edges)]


@dataclass(frozen=True)
class Progress:
    """How many inferences had ended when: moments (growing) and counts (not falling)."""

    at_ns: Sequence[int]
    counts: Sequence[int]

    def inferences(self, window: Window) -> float:
        """Inferences in a window, parts of them included."""
        return self._until(window.end_ns) - self._until(window.begin_ns)

    def _until(self, moment: int) -> float:
        index = bisect.bisect_right(self.at_ns, moment)
        if index == 0:
            return float(self.counts[0])
        if index == len(self.at_ns):
            return float(self.counts[-1])
        a, b = self.at_ns[index - 1], self.at_ns[index]
        return self.counts[index - 1] + (self.counts[index] - self.counts[index - 1]) * (moment - a) / (b - a)


@dataclass(frozen=True)
class Estimate:
    """Joules of one inference above idle, with the 95 % interval. `inferences`, `updates`: in what was used of the load window."""

    joules: float
    low: float
    high: float
    inferences: int
    load_watts: float
    idle_watts: float
    idle_drift_watts: float
    updates: int
    rate_hz: float
    covered: float


@dataclass(frozen=True)
class _Idle:
    """Idle power as a line through the middles of two windows, and its standard error in watts."""

    at_ns: float
    watts: float
    slope: float
    error: float
    drift: float

    def mean(self, window: Window) -> float:
        return self.watts + self.slope * ((window.begin_ns + window.end_ns) / 2 - self.at_ns)


def estimate(
    signal: Signal,
    before: Window,
    load: Window,
    after: Window,
    progress: Progress,
    *,
    least_updates: int = LEAST_UPDATES,
    uncertainty_ns: int = 0,
) -> Estimate:
    """Energy per inference.

    Args:
        signal: readings that cover the three windows.
        before, after: nothing of ours ran.
        load: inferences ran all the time, or at a steady rate.
        progress: of those inferences.
        least_updates: fewer in the load window are refused.
        uncertainty_ns: how far the meter's clock may be off.

    Raises:
        Unusable: too few updates, gaps, a window too short, or a result that cannot be.
    """
    guard = max(_GUARD_UPDATES * signal.period_ns, uncertainty_ns)
    used = load.within(guard)
    updates, seconds = signal.updates(used.begin_ns, used.end_ns), (used.end_ns - used.begin_ns) / 1e9
    if updates < least_updates:
        raise Unusable(
            f"{updates} updates of the sensor in {seconds:.3g} s of load ({updates / seconds:.2g} per second), {least_updates} are needed"
        )
    inferences = progress.inferences(used)
    if inferences < LEAST_INFERENCES:
        raise Unusable(f"{inferences:.1f} inferences in {seconds:.3g} s of load, {LEAST_INFERENCES} are needed")
    _watts(signal, used, "load")
    idle = _idle(signal, before.within(guard), after.within(guard))
    count = max(_BLOCKS[0], min(_BLOCKS[1], updates // _UPDATES_PER_BLOCK, int(inferences)))
    return _checked(_ratio(signal, idle, used, progress, count), signal, used, idle, updates)


def _watts(signal: Signal, window: Window, what: str) -> float:
    covered = signal.covered(window.begin_ns, window.end_ns)
    watts = signal.watts(window.begin_ns, window.end_ns)
    if watts is None or covered < _LEAST_COVERED:
        raise Unusable(f"readings cover {100 * covered:.0f} % of the {what} window, {100 * _LEAST_COVERED:.0f} % are needed")
    return watts


def _idle(signal: Signal, before: Window, after: Window) -> _Idle:
    first, last = _watts(signal, before, "first idle"), _watts(signal, after, "second idle")
    errors = [_standard_error([w for b in win.blocks(_IDLE_BLOCKS) if (w := signal.watts(b.begin_ns, b.end_ns)) is not None])
              for win in (before, after)]  # fmt: skip
    a, b = ((w.begin_ns + w.end_ns) / 2 for w in (before, after))
    # Between the windows the line is an assumption: a step somewhere between would give anything from the first to the last.
    drift = last - first
    error = math.sqrt(sum(e * e for e in errors) / 4 + drift * drift / 12)
    return _Idle(a, first, drift / (b - a), error, drift)


def _standard_error(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))


def _ratio(signal: Signal, idle: _Idle, used: Window, progress: Progress, count: int) -> tuple[float, float, float]:
    """(joules per inference, half of the interval's width, inferences)."""
    net, done, seconds = [], [], 0.0
    for block in used.blocks(count):
        watts = signal.watts(block.begin_ns, block.end_ns)
        if watts is not None and signal.covered(block.begin_ns, block.end_ns) >= _LEAST_COVERED_BLOCK:
            length = (block.end_ns - block.begin_ns) / 1e9
            net.append((watts - idle.mean(block)) * length)
            done.append(progress.inferences(block))
            seconds += length
    if len(net) < _BLOCKS[0]:
        raise Unusable(f"gaps in the readings leave {len(net)} of {count} parts of the load window, {_BLOCKS[0]} are needed")
    total = math.fsum(done)
    ratio = math.fsum(net) / total
    spread = mean_interval([n - ratio * d for n, d in zip(net, done)], _CONFIDENCE)
    of_load = (spread.high - spread.value) * len(net) / total
    of_idle = student_quantile(_CONFIDENCE, 2 * (_IDLE_BLOCKS - 1)) * idle.error * seconds / total
    return ratio, math.hypot(of_load, of_idle), total


def _checked(ratio: tuple[float, float, float], signal: Signal, used: Window, idle: _Idle, updates: int) -> Estimate:
    joules, half, inferences = ratio
    load_watts, idle_watts = _watts(signal, used, "load"), idle.mean(used)
    if idle_watts < 0 or load_watts < 0:
        raise Unusable(f"power is negative ({idle_watts:.4g} W idle, {load_watts:.4g} W under load): charging, or wired the other way")
    if load_watts <= idle_watts:
        raise Unusable(f"power under load ({load_watts:.4g} W) is not above idle ({idle_watts:.4g} W): something else ran, or another rail")
    if joules - half <= 0:
        per_second = inferences / (used.end_ns - used.begin_ns) * 1e9
        raise Unusable(
            f"load ({load_watts:.4g} W) can't be told from idle ({idle_watts:.4g} W): "
            f"their difference is uncertain by {half * per_second:.2g} W"
        )
    rate = updates / (used.end_ns - used.begin_ns) * 1e9
    covered = signal.covered(used.begin_ns, used.end_ns)
    return Estimate(joules, joules - half, joules + half, int(inferences), load_watts, idle_watts, idle.drift, updates, rate, covered)

"""Fake power meters in virtual time: a course of power that is known exactly, and what a meter of a kind and rate says of it."""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from edgefarm.energy.estimate import Window
from edgefarm.energy.signal import Kind, Reading

_S = 10**9


@dataclass(frozen=True)
class Course:
    """Power that is constant between `edges_ns`, plus a drift in watts per second. Joules are exact."""

    edges_ns: Sequence[int]
    watts: Sequence[float]
    drift: float = 0.0
    _joules: list[float] = field(init=False)

    def __post_init__(self) -> None:
        steps = [w * (b - a) / _S for w, a, b in zip(self.watts, self.edges_ns, self.edges_ns[1:])]
        object.__setattr__(self, "_joules", list(accumulate(steps, initial=0.0)))

    @staticmethod
    def of(idle: float, load: float, on: Sequence[Window], end_ns: int, drift: float = 0.0) -> Course:
        """`load` watts in the windows, `idle` elsewhere."""
        edges, watts = [0], [idle]
        for window in (w for w in on if w.end_ns <= end_ns):
            edges += [window.begin_ns, window.end_ns]
            watts += [load, idle]
        return Course([*edges, end_ns], watts, drift)

    def at(self, moment_ns: float) -> float:
        """Watts."""
        index = bisect.bisect_right(self.edges_ns, moment_ns) - 1
        return self.watts[min(index, len(self.watts) - 1)] + self.drift * moment_ns / _S

    def joules(self, moment_ns: float) -> float:
        """Joules since the beginning."""
        index = min(bisect.bisect_right(self.edges_ns, moment_ns) - 1, len(self.watts) - 1)
        seconds = moment_ns / _S
        return self._joules[index] + self.watts[index] * (moment_ns - self.edges_ns[index]) / _S + self.drift * seconds * seconds / 2


def steady(idle: float, load: float, window: Window, end_ns: int, drift: float) -> Course:
    """One load window; idle power drifts by `drift` watts in all."""
    return Course.of(idle, load, [window], end_ns, drift / (end_ns / _S))


@dataclass(frozen=True)
class Meter:
    """A meter that updates `hz` times a second, at a phase of its own.

    Attributes:
        noise: standard deviation of an update, as a share of it.
        wraps_at: joules at which its counter begins again; 0: never.
    """

    hz: float
    kind: Kind
    noise: float = 0.0
    seed: int = 0
    wraps_at: float = 0.0

    def readings(self, course: Course) -> list[Reading]:
        """One reading of each update, when it happens."""
        draw = random.Random(self.seed)
        step, found, counted = _S / self.hz, [], 0.0
        moment = draw.random() * step
        while moment + step <= course.edges_ns[-1]:
            before, moment = moment, moment + step
            joules = course.joules(moment) - course.joules(before)
            watts = course.at(moment) if self.kind is Kind.MOMENT else joules / step * _S
            watts *= 1 + draw.gauss(0, self.noise)
            counted += watts * step / _S
            value = counted % self.wraps_at if self.wraps_at else counted
            found.append(Reading(round(moment), value if self.kind is Kind.COUNTER else watts))
        return found

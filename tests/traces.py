"""Synthetic traces of inference times with known shape. Their parameters are drawn from ranges; equal seeds give equal traces.

A change of level is at least 5 % and three times the noise of a sample (a smaller one nobody could call), a steady level a third of the
trace or longer, a warm-up as long as takes a tenth of it, at least 7 samples.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Trace:
    """Nanoseconds, the name of how they were made, the shapes that are right, and where the steady state begins (None: nowhere)."""

    name: str
    samples: list[float]
    kinds: frozenset[str]
    settled_from: int | None


@dataclass
class Draw:
    """What all traces have: a length, a base, and log-normal noise."""

    rng: random.Random

    def __post_init__(self) -> None:
        self.n = round(math.exp(self.rng.uniform(math.log(30), math.log(20_000))))
        self.base = math.exp(self.rng.uniform(math.log(2e4), math.log(5e8)))
        self.noise = math.exp(self.rng.uniform(math.log(0.002), math.log(0.10)))

    def change(self) -> float:
        """A change of level, on the log scale."""
        return max(0.05, 3 * self.noise) * math.exp(self.rng.uniform(0, math.log(8)))

    def at(self, low: float, high: float) -> int:
        """A place between two shares of the trace, with room for a level before it."""
        return max(7, round(self.n * self.rng.uniform(low, high)))

    def trace(self, name: str, level: Callable[[int], float], *kinds: str, settled_from: int | None) -> Trace:
        """Samples around `level` (log, of an index)."""
        samples = [self.base * math.exp(level(i) + self.rng.gauss(0, self.noise)) for i in range(self.n)]
        return Trace(name, samples, frozenset(kinds), settled_from)


def flat(draw: Draw) -> Trace:
    return draw.trace("flat", lambda i: 0.0, "flat", settled_from=0)


def spikes(draw: Draw) -> Trace:
    share, height = draw.rng.uniform(0.003, 0.03), draw.rng.uniform(0.2, 3)
    hit = [draw.rng.random() < share for _ in range(draw.n)]
    return draw.trace("spikes", lambda i: height * draw.rng.uniform(0.3, 1) if hit[i] else 0.0, "flat", settled_from=0)


def warm_up(draw: Draw) -> Trace:
    """Falls exponentially; four time constants are its length."""
    length, height = max(12, draw.at(0.1, 0.5)), draw.change() * 2
    return draw.trace("warm_up", lambda i: height * math.exp(-4 * i / length), "warm_up", settled_from=length)


def step_down(draw: Draw) -> Trace:
    where, height = draw.at(0.1, 0.6), draw.change()
    return draw.trace("step_down", lambda i: height if i < where else 0.0, "warm_up", settled_from=where)


def step_up(draw: Draw) -> Trace:
    where, height = draw.at(0.1, 0.6), draw.change()
    return draw.trace("step_up", lambda i: 0.0 if i < where else height, "slowdown", settled_from=where)


def ramp(draw: Draw) -> Trace:
    """Slower and slower, then settled: a device that gets hot."""
    begin = draw.at(0.1, 0.3)
    end, height = max(begin + 5, round(draw.n * draw.rng.uniform(0.4, 0.6))), draw.change() * 1.5
    return draw.trace("ramp", lambda i: height * min(1.0, max(0.0, (i - begin) / (end - begin))), "slowdown", settled_from=end)


def drift(draw: Draw) -> Trace:
    """Slower or faster until the end."""
    height = draw.change() * 3 * draw.rng.choice([-1, 1])
    return draw.trace("drift", lambda i: height * i / draw.n, "unsteady", settled_from=None)


def late_step(draw: Draw) -> Trace:
    """A new level too near to the end to be trusted."""
    draw.n = max(draw.n, 60)
    where, height = round(draw.n * draw.rng.uniform(0.80, 0.90)), draw.change() * draw.rng.choice([-1, 1])
    return draw.trace("late_step", lambda i: 0.0 if i < where else height, "unsteady", settled_from=None)


def bimodal(draw: Draw) -> Trace:
    """Each sample in one of two modes, by chance."""
    share, apart = draw.rng.uniform(0.3, 0.7), max(draw.change(), 6 * draw.noise)
    hit = [draw.rng.random() < share for _ in range(draw.n)]
    return draw.trace("bimodal", lambda i: apart if hit[i] else 0.0, "unsteady", settled_from=None)


def switching(draw: Draw) -> Trace:
    """Two modes in turns, at least eight turns."""
    apart, turn = max(draw.change(), 5 * draw.noise), max(1.0, draw.n * draw.rng.uniform(0.01, 0.06))
    hit, now, left = [], False, 0.0
    for _ in range(draw.n):
        if left < 1:
            now, left = not now, turn * draw.rng.uniform(0.7, 1.3)
        hit.append(now)
        left -= 1
    return draw.trace("switching", lambda i: apart if hit[i] else 0.0, "unsteady", settled_from=None)


SHAPES: tuple[Callable[[Draw], Trace], ...] = (flat, spikes, warm_up, step_down, step_up, ramp, drift, late_step, bimodal, switching)


def traces(seed: int, count: int) -> list[Trace]:
    """`count` traces, of all shapes in turn."""
    rng = random.Random(seed)
    return [SHAPES[i % len(SHAPES)](Draw(random.Random(rng.getrandbits(64)))) for i in range(count)]

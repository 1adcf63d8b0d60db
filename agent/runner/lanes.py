"""One contender in a launch: its call, its inputs in turn, its warm-up, and what it showed. Runs in the child."""

from __future__ import annotations

import gc
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

Feeds = dict[str, NDArray[Any]]
Run = Callable[[Feeds], Any]

MOST_SAMPLES = 500_000  # of one contender in one launch: four of them fit into an answer
_AGREEMENT = 0.02  # warm: bursts get faster by no more than 2 %
_WARM_BURSTS = 3  # the least, of which the last two brought nothing more
_WARM_PARTS = 20  # of the longest warm-up, whatever the length of the plan's bursts: an inference or two agree by chance
_SETTLE_SLICE_S = 0.001
_SETTLE_LIMIT_NS = 200_000_000
_THREADS = "/proc/self/task"


@dataclass(frozen=True)
class Plan:
    """How a launch is timed; see `edgefarm.model.LatencyWork` and `Scenario`. `seed` is that of (work, launch)."""

    bursts: int
    burst_ns: int
    min_inferences: int
    warmup_ns: int
    seed: str
    kind: str = "paced"
    rate_per_s: float | None = None
    batch_sizes: Sequence[int] = ()
    duration_ns: int = 0


@dataclass
class Timed:
    """What one contender showed: nanoseconds per inference, all bursts.

    Attributes:
        disturbed: for each sample, whether the process lost the CPU to another while it ran.
        lengths: samples of each burst; of a stretch, which has no bursts, empty.
        sizes: for each sample the rows of its batch, where they differ (`offline`); then a sample is a whole batch.
        batch_lengths: batch size -> samples of each of its bursts.
        refused: batch size -> why the model can't be run with it.
        served: for each sample the time of the inference alone, where the sample has more in it (`server`: the wait in the queue).
        elapsed_ns: how long requests were served (`server`).
        overloaded: requests came faster than they can be served (`server`).
        cycle: inputs whose shapes differ take different times, this many in turn; else 1.
    """

    samples: list[int] = field(default_factory=list)
    disturbed: list[bool] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    warmup_inferences: int = 0
    sizes: list[int] = field(default_factory=list)
    batch_lengths: dict[int, list[int]] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    served: list[int] = field(default_factory=list)
    elapsed_ns: int = 0
    overloaded: bool = False
    cycle: int = 1

    def add(self, times: Sequence[int], disturbed: Sequence[bool]) -> None:
        """One burst more."""
        self.samples += times
        self.disturbed += disturbed
        self.lengths.append(len(times))


@contextmanager
def uncollected() -> Iterator[None]:
    """The garbage collector is off inside: its pauses are the measuring program's, not the model's."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Lane:
    """One contender: its call, and its inputs in turn.

    Args:
        run: one inference.
        feeds: its inputs, at least one.
        axes: input -> length of its batch axis, None where the model takes any; of no use but to `offline`.

    Attributes:
        rest_ns: how long its threads go on computing after an inference.
        typical_ns: the lowest median of the last warm-up bursts: what interferes only adds.
    """

    def __init__(self, run: Run, feeds: Sequence[Feeds], axes: Mapping[str, int | None] | None = None) -> None:
        self.run, self.feeds, self.position = run, feeds, 0
        self.axes = axes or {}
        self.rest_ns = 0
        self.typical_ns = 0

    @property
    def cycle(self) -> int:
        """See `Timed.cycle`."""
        shapes = {tuple((name, np.shape(value)) for name, value in feeds.items()) for feeds in self.feeds}
        return len(self.feeds) if len(shapes) > 1 else 1

    def next(self) -> Feeds:
        """The inputs that are due."""
        feeds = self.feeds[self.position]
        self.position = (self.position + 1) % len(self.feeds)
        return feeds

    def burst(self, length_ns: int, least: int, period_ns: int = 0) -> tuple[list[int], list[bool]]:
        """Times inferences until both `length_ns` and `least` are reached; one starts every `period_ns` at the soonest.

        In between it sleeps, as a program that waits for a camera does; how late it wakes up is not part of a latency.

        Returns nanoseconds, and whether each was disturbed.
        """
        now, run, switches = time.perf_counter_ns, self.run, involuntary_switches
        times: list[int] = []
        disturbed: list[bool] = []
        begin = due = now()
        while True:
            feeds = self.next()
            before = switches()
            started = now()
            run(feeds)
            ended = now()
            times.append(ended - started)
            disturbed.append(switches() != before)
            if ended - begin >= length_ns and len(times) >= least:
                return times, disturbed
            if period_ns:
                due = max(due + period_ns, ended)
                sleep_until(due)

    def warm_up(self, plan: Plan) -> int:
        """Short bursts until two in a row are no faster than those before, or `warmup_ns` is over; returns the number of inferences.

        Warming up makes a model faster; where others' load makes it slower for a while there is nothing to wait for.
        """
        end = time.perf_counter_ns() + plan.warmup_ns
        medians: list[float] = []
        count = 0
        while True:
            times, _ = self.burst(plan.warmup_ns // _WARM_PARTS, 1)
            count += len(times)
            medians.append(median(times))
            before, last = medians[: 1 - _WARM_BURSTS], medians[1 - _WARM_BURSTS :]
            warm = len(medians) >= _WARM_BURSTS and min(last) * (1 + _AGREEMENT) >= min(before)
            if warm or time.perf_counter_ns() >= end:
                self.typical_ns = round(min(medians[-_WARM_BURSTS:]))
                return count


def settle() -> int:
    """Waits until no other thread of this process computes, at most 200 ms; returns for how many nanoseconds, 0 where none did."""
    begin = time.perf_counter_ns()
    waited_ns = 0
    while others_run() and waited_ns < _SETTLE_LIMIT_NS:
        time.sleep(_SETTLE_SLICE_S)
        waited_ns = time.perf_counter_ns() - begin
    return waited_ns


def others_run() -> bool:
    """Whether another thread of this process has work, or spins in wait of some: its state is R (proc(5)).

    CPU clocks would not do: the kernel brings those of running threads up to date at its tick, 4 ms or 10 ms.
    """
    own = str(threading.get_native_id())
    return any(_state(name) == b"R" for name in os.listdir(_THREADS) if name != own)


def _state(thread: str) -> bytes:
    try:
        with open(f"{_THREADS}/{thread}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1]
    except OSError:  # it has ended
        return b""


def sleep_until(moment_ns: int) -> None:
    """Gives the CPU away until then."""
    left = moment_ns - time.perf_counter_ns()
    if left > 0:
        time.sleep(left / 1e9)


def involuntary_switches() -> int:
    """How often threads of this process lost a CPU that they still wanted, so far (getrusage(2))."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw

"""How far energy per inference is off, against meters of known truth.

In virtual time: averaging meters and counters at 350, 10 and 1 Hz, with 2 % noise, an idle power that drifts by 0.5 W, a clock that is
200 ms off and aligned by a load pattern, gaps, and counters that wrap. In real time: the agent's own sampler reads a meter that updates
at those rates while the truth goes by. At 1 Hz a window of 60 s holds fewer updates than the 100 that the agent asks for: there it
refuses (counted below), and the error is shown with that floor lowered to 50. Progress on stderr; the last line on stdout is one JSON
object.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from agent.power import Rail, Sample
from agent.power.sampler import Sampler
from edgefarm.energy.align import align
from edgefarm.energy.estimate import LEAST_UPDATES, Progress, Unusable, Window, estimate
from edgefarm.energy.signal import Kind, Reading, Signal
from tests.fakes.meters import Course, Meter, steady

S = 10**9
IDLE, LOAD, DRIFT, NOISE, RATE = 3.0, 7.0, 0.5, 0.02, 200
OFFSET_NS = 200_000_000
ON = [Window(round(a * S), round(b * S)) for a, b in ((5, 6.7), (7.6, 8.3), (9.8, 11), (13.3, 15.4), (16, 16.9), (18.8, 20.3))]


@dataclass(frozen=True)
class Case:
    """A rate, and how long its windows are."""

    hz: float
    load_s: float
    idle_s: float
    least: int = LEAST_UPDATES

    @property
    def name(self) -> str:
        """As in the result."""
        return f"hz{self.hz:g}"

    def windows(self, begin_ns: int = S) -> tuple[Window, Window, Window]:
        """Idle, load, idle, a second apart."""
        edges = [begin_ns]
        for seconds in (self.idle_s, 1, self.load_s, 1, self.idle_s):
            edges.append(edges[-1] + round(seconds * S))
        return Window(edges[0], edges[1]), Window(edges[2], edges[3]), Window(edges[4], edges[5])


CASES = (Case(350, 10, 5), Case(10, 60, 5), Case(1, 60, 20, least=50))


@dataclass
class Tally:
    """What the runs of a case showed."""

    errors: list[float] = field(default_factory=list)
    inside: int = 0
    refused: int = 0

    def as_json(self) -> dict[str, float]:
        ordered = sorted(self.errors)
        return {
            "n": len(ordered), "median": ordered[len(ordered) // 2], "largest": ordered[-1],
            "interval_holds_truth": self.inside / len(ordered), "refused_by_default": self.refused / len(ordered),
        }  # fmt: skip


def progress_of(load: Window) -> Progress:
    """`RATE` inferences a second."""
    moments = range(load.begin_ns, load.end_ns + 1, S // 100)
    return Progress(moments, [RATE * i // 100 for i in range(len(moments))])


def clock(case: Case, kind: Kind, seed: int) -> tuple[int, int]:
    """(offset, its uncertainty) of a meter that is 200 ms late, as the load pattern shows it."""
    shown = Meter(case.hz, kind, NOISE, seed + 1000).readings(Course.of(IDLE, LOAD, ON, 26 * S))
    found = align(Signal([Reading(r.at_ns + OFFSET_NS, r.value) for r in shown], kind), ON)
    return found.offset_ns, found.uncertainty_ns


def virtual(case: Case, kind: Kind, seed: int, tally: Tally, offsets: list[float]) -> None:
    """One run with everything that may go wrong."""
    before, load, after = case.windows()
    course = steady(IDLE, LOAD, load, after.end_ns + 3 * S, DRIFT)
    wraps_at = 100.0 if kind is Kind.COUNTER else 0.0
    readings = Meter(case.hz, kind, NOISE, seed, wraps_at).readings(course)
    gap_ns = round(max(0.1, 1.5 / case.hz) * S)  # one reading in fifty is lost, with those right after it
    lost = [r.at_ns for i, r in enumerate(readings) if i % max(50, int(4 * case.hz)) == 25]
    kept = [r for r in readings if not any(0 <= r.at_ns - at < gap_ns for at in lost)]
    offset, uncertainty = clock(case, kind, seed)
    offsets.append(abs(offset - OFFSET_NS) / 1e6)
    signal = Signal([Reading(r.at_ns + OFFSET_NS - offset, r.value) for r in kept], kind, wraps_at=wraps_at)
    judge(case, signal, (before, load, after), (LOAD - IDLE) / RATE, tally, uncertainty)


def judge(case: Case, signal: Signal, windows: tuple[Window, Window, Window], truth: float, tally: Tally, uncertainty_ns: int = 0) -> None:
    """Adds what comes of one run."""
    before, load, after = windows
    found = estimate(signal, before, load, after, progress_of(load), least_updates=case.least, uncertainty_ns=uncertainty_ns)
    tally.errors.append(100 * abs(found.joules / truth - 1))
    tally.inside += found.low <= truth <= found.high
    try:
        estimate(signal, before, load, after, progress_of(load), uncertainty_ns=uncertainty_ns)
    except Unusable:
        tally.refused += 1


class Clockwork:
    """A meter that updates at its rate in real time, and repeats itself in between."""

    external = False
    name = "clockwork"

    def __init__(self, meter: Meter, course: Course, begin_ns: int) -> None:
        self.rails = (Rail("all", meter.kind, "everything"),)
        self.poll_ns = max(1_000_000, round(S / meter.hz / 3))
        self._begin_ns, self._updates, self._next = begin_ns, meter.readings(course), 0

    def read(self, rail: str) -> Sample:
        """The newest update. Raises OSError before the first."""
        now = time.monotonic_ns() - self._begin_ns
        while self._next < len(self._updates) and self._updates[self._next].at_ns <= now:
            self._next += 1
        if self._next == 0:
            raise OSError("no update yet")
        return Sample(self._updates[self._next - 1].value)


def real(case: Case, kind: Kind, tally: Tally) -> None:
    """One run in real time."""
    begin_ns = time.monotonic_ns()
    windows = case.windows()
    course = steady(IDLE, LOAD, windows[1], windows[2].end_ns + 2 * S, 0.0)
    source = Clockwork(Meter(case.hz, kind, NOISE, 7), course, begin_ns)
    with Sampler(source, source.rails[0]) as sampler:
        time.sleep(course.edges_ns[-1] / S)
    shifted = sampler.signal(begin_ns)
    judge(case, shifted, windows, (LOAD - IDLE) / RATE, tally)


def in_real_time(cases: Sequence[Case]) -> dict[str, dict[str, float]]:
    """All cases at once, since each takes as long as it takes."""
    tallies = {case.name: Tally() for case in cases}
    threads = [threading.Thread(target=real, args=(case, Kind.MEAN, tallies[case.name])) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {name: tally.as_json() for name, tally in tallies.items()}


def main() -> None:
    """Prints what it does, then the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="of each kind of meter and rate, in virtual time")
    parser.add_argument("--virtual-only", action="store_true", help="seconds instead of two minutes")
    options = parser.parse_args()
    found, offsets = {}, {}
    for case in CASES:
        tally, off = Tally(), list[float]()
        for kind in (Kind.MEAN, Kind.COUNTER):
            for seed in range(options.runs):
                virtual(case, kind, seed, tally, off)
        found[case.name], offsets[case.name] = tally.as_json(), max(off)
        print(f"{case.name}: {found[case.name]}, clock off by at most {max(off):.0f} ms", file=sys.stderr)
    live = {} if options.virtual_only else in_real_time(CASES)
    print(f"in real time: {live}", file=sys.stderr)
    result = {
        "error_percent": {name: round(seen["largest"], 3) for name, seen in found.items()},
        "median_error_percent": {name: round(seen["median"], 3) for name, seen in found.items()},
        "interval_holds_truth": {name: seen["interval_holds_truth"] for name, seen in found.items()},
        "refused_by_default": {name: seen["refused_by_default"] for name, seen in found.items()},
        "clock_error_ms": {name: round(worst, 1) for name, worst in offsets.items()},
        "real_time_error_percent": {name: round(seen["largest"], 3) for name, seen in live.items()},
        "n": sum(int(seen["n"]) for seen in found.values()),
        "machine": f"{platform.machine()}, {platform.system()} {platform.release()}, Python {platform.python_version()}",
        "command": "make bench-energy",
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""Two copies of one model, compared again and again: how often are they called different, and how often is a true 1 % slowdown found?

Each comparison takes fresh launches of both through the agent's own bench until `edgefarm.statistics` decides, half of the comparisons
beside a load that comes and goes. The reference that fails compares the same launches block by block, as one would who measures one model
first, then the other. Progress on stderr; the last line on stdout is one JSON object.

python -m tests.benchmarks.aa [--runs 100] [--slowdown 1] [--margin 0.5] [--seconds 10] [--keep FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

import agent.bench.session
from agent.bench.latency import measure_latency
from agent.bench.site import Site
from agent.runner.process import RunnerProcess
from edgefarm.digest import digest_file
from edgefarm.model import Artifact, Candidate, Contender, ContenderResult, FileEntry, LatencyResult, LatencyWork, Limits, Scenario
from edgefarm.statistics import Interval, LaunchRatio, Relation, burst_ratios, launch_ratio, mean_interval, relation
from edgefarm.statistics.sequential import FIRST_LOOK
from edgefarm.tensors import pack
from tests import zoo
from tests.fakes import slowed_runtime

_ROOT = Path(__file__).parents[2]
TARGET_NS = 1_000_000
BURSTS, BURST_NS, LEAST = 80, 4_000_000, 3  # four or five inferences in a burst; many, since a launch's spread is within it
LOAD = """
import os, random, sys, time
chance, parent = random.Random(int(sys.argv[1])), os.getppid()
while os.getppid() == parent:
    end = time.perf_counter() + chance.uniform(0.05, 1.0)
    while time.perf_counter() < end:
        pass
    time.sleep(chance.uniform(0.05, 1.0))
"""


class Launch(NamedTuple):
    """What one launch showed: medians and minima of its bursts in ns, and how long it took."""

    reference_ns: tuple[int, ...]
    value_ns: tuple[int, ...]
    seconds: float
    reference_min_ns: tuple[int, ...]
    value_min_ns: tuple[int, ...]

    @property
    def by_medians(self) -> LaunchRatio:
        """Reference over value."""
        return launch_ratio(self.reference_ns, self.value_ns)

    @property
    def by_minima(self) -> LaunchRatio:
        """Reference over value."""
        return launch_ratio(self.reference_min_ns, self.value_min_ns)


@dataclass
class Comparison:
    """One comparison: `percent` is by how much the second copy really is slower."""

    percent: float
    loaded: bool
    launches: list[Launch] = field(default_factory=list)
    seconds: float = 0.0
    said: Relation = Relation.INCONCLUSIVE
    interval: Interval | None = None
    by_minima: bool = False

    @property
    def surely(self) -> Relation:
        """What is certain, be it smaller than the margin."""
        return Relation.INCONCLUSIVE if self.interval is None else relation(self.interval, 0.0)


class Bed:
    """A model of about a millisecond, its inputs, and a place to measure."""

    def __init__(self, folder: Path) -> None:
        self._site = Site(folder, lock=folder / "lock", environment={"PYTHONPATH": str(_ROOT)})
        self._inputs = folder / "inputs.npz"
        x = np.random.default_rng(0).standard_normal((4, 1, 3, 16, 16)).astype(np.float32)
        self._inputs.write_bytes(pack({"x": list(x)}))
        self._model = self._of_a_millisecond(folder)

    def _of_a_millisecond(self, folder: Path) -> Path:
        """Its cost grows with the square of the channels."""
        channels = 64
        for _ in range(4):
            self._model = zoo.convolution(folder, channels=channels)
            found = statistics.median(self.launch(0, 0).reference_ns)
            if abs(found / TARGET_NS - 1) < 0.25:
                break
            channels = max(8, round(channels * math.sqrt(TARGET_NS / found)))
        progress(f"model: {channels} channels, {found / 1e6:.2f} ms")
        return self._model

    def launch(self, index: int, percent: float) -> Launch:
        """One fresh launch of both."""
        work = LatencyWork(
            (Contender("a", self._candidate(0.0)), Contender("b", self._candidate(percent))),
            Scenario(), "", (-1,), BURSTS, BURST_NS, LEAST, seed=index,
        )  # fmt: skip
        began = time.monotonic()
        models = {"a": self._model, "b": self._model}
        measured = measure_latency(work, index, models, self._inputs, Limits(), self._site)
        for path in measured.blobs.values():
            path.unlink()
        assert isinstance(measured.outcome, LatencyResult), measured.outcome
        one, other = (_sound(result) for result in measured.outcome.contenders)
        return Launch(one.burst_p50_ns, other.burst_p50_ns, time.monotonic() - began, one.burst_min_ns, other.burst_min_ns)

    def _candidate(self, percent: float) -> Candidate:
        digest, size = digest_file(self._model), self._model.stat().st_size
        artifact = Artifact(digest, size, "onnx", (FileEntry(self._model.name, digest, size),))
        return Candidate(artifact, slowed_runtime.NAME, {"threads": 1, slowed_runtime.OPTION: percent})


def _sound(result: ContenderResult) -> ContenderResult:
    assert result.failure is None, result.failure
    return result


@contextlib.contextmanager
def background(on: bool, seed: int) -> Iterator[None]:
    """Processes that compute for a while, then sleep for a while: one for each core."""
    if not on:
        yield
        return
    running = [subprocess.Popen([sys.executable, "-c", LOAD, str(seed + i)]) for i in range(psutil.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def compare(bed: Bed, percent: float, loaded: bool, seed: int, margin: float, seconds: float) -> Comparison:
    """Launches until the rule decides, or until the next launch would end after `seconds`; three at least.

    How many are planned follows from how long the first one took, before anything is looked at.
    """
    comparison = Comparison(percent, loaded)
    began = time.monotonic()
    with background(loaded, seed):
        while True:
            comparison.launches.append(bed.launch(seed * 1000 + len(comparison.launches), percent))
            taken = comparison.launches
            planned = max(FIRST_LOOK, int(seconds / taken[0].seconds))
            ratios = burst_ratios([x.by_medians for x in taken], [x.by_minima for x in taken], planned=planned)
            comparison.interval, comparison.by_minima = ratios.deciding, ratios.minima_decide
            comparison.said = relation(comparison.interval, margin)
            comparison.seconds = time.monotonic() - began
            longest = max(launch.seconds for launch in taken)
            spent = len(taken) >= FIRST_LOOK and comparison.seconds + longest > seconds
            if comparison.said is not Relation.INCONCLUSIVE or spent:
                return comparison


def in_blocks(launches: Sequence[Launch], margin: float) -> bool:
    """Whether the first half's reference and the second half's value, burst by burst, are called different by more than the margin.

    Student's interval of the difference of means (Welch's variance, the smaller count's degrees), as if bursts were independent.
    """
    half = len(launches) // 2
    before = [math.log(ns) for launch in launches[:half] for ns in launch.reference_ns]
    after = [math.log(ns) for launch in launches[half:] for ns in launch.value_ns]
    one, other = mean_interval(before), mean_interval(after)
    width = math.hypot(one.high - one.value, other.high - other.value)
    return abs(one.value - other.value) - width > math.log1p(margin)


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _spreads(done: Sequence[Comparison], by: str) -> dict[str, float]:
    """Median over comparisons of the standard deviation of a launch's log ratio, in percent."""
    spreads = {id(c): statistics.stdev(math.log(getattr(x, by).value) for x in c.launches) for c in done}
    found = {name: [spreads[id(c)] for c in done if c.loaded is on] for name, on in (("alone", False), ("loaded", True))}
    return {name: round(100 * statistics.median(values), 3) for name, values in found.items() if values}


def summary(done: Sequence[Comparison], slowdown: float, margin: float, command: str) -> dict[str, object]:
    """The keys of the benchmark."""
    same, slower = [c for c in done if not c.percent], [c for c in done if c.percent]
    different = (Relation.FASTER, Relation.SLOWER)
    return {
        "runs": len(same),
        "false_different": sum(c.said in different for c in same),
        "false_different_at_all": sum(c.surely in different for c in same),
        "same": sum(c.said is Relation.SAME for c in same),
        "undecided": sum(c.said is Relation.INCONCLUSIVE for c in same),
        "slower_1pct_runs": len(slower),
        "slower_1pct_found": sum(c.surely is Relation.SLOWER for c in slower),
        "slower_1pct_beyond_margin": sum(c.said is Relation.SLOWER for c in slower),
        "slower_1pct_called_same_or_faster": sum(c.said in (Relation.SAME, Relation.FASTER) for c in slower),
        "slowdown_percent": slowdown,
        "margin_percent": margin * 100,
        "seconds_per_comparison": round(statistics.mean(c.seconds for c in done), 2),
        "longest_comparison_s": round(max(c.seconds for c in done), 2),
        "launches_per_comparison": round(statistics.mean(len(c.launches) for c in done), 2),
        "seconds_per_launch": round(statistics.mean(x.seconds for c in done for x in c.launches), 3),
        "launch_sd_percent": {"by_minima": _spreads(done, "by_minima"), "by_medians": _spreads(done, "by_medians")},
        "decided_by_medians": sum(not c.by_minima for c in done),
        "block_order_false_different": sum(in_blocks(c.launches, margin) for c in same),
        "n": len(done),
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}",
        "command": command,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100, help="comparisons of equal copies, and as many of a slower one")
    parser.add_argument("--slowdown", type=float, default=1.0, help="percent by which the slower one is slower")
    parser.add_argument("--margin", type=float, default=0.5, help="percent that do not matter")
    parser.add_argument("--seconds", type=float, default=10.0, help="for one comparison at most")
    parser.add_argument("--keep", type=Path, help="all launches, as JSON lines")
    given = parser.parse_args()
    agent.bench.session.RunnerProcess = functools.partial(RunnerProcess, command=("-m", slowed_runtime.__name__))  # type: ignore[assignment, misc]
    plan = [(percent, bool(run % 2), run) for run in range(given.runs) for percent in (0.0, given.slowdown)]
    random.Random(0).shuffle(plan)
    done: list[Comparison] = []
    with tempfile.TemporaryDirectory() as folder:
        bed = Bed(Path(folder))
        for percent, loaded, run in plan:
            found = compare(bed, percent, loaded, run * 2 + bool(percent), given.margin / 100, given.seconds)
            done.append(found)
            assert found.interval is not None
            progress(
                f"{len(done)} of {len(plan)}, {percent} % slower{', loaded' if loaded else ''}: {found.said.value} "
                f"after {len(found.launches)} launches, {found.seconds:.1f} s, "
                f"ratio {found.interval.value:.4f} ({found.interval.low:.4f} to {found.interval.high:.4f})"
            )
            if given.keep:
                with given.keep.open("a") as lines:
                    lines.write(json.dumps(asdict(found)) + "\n")
    command = "make bench-aa" if given.runs == parser.get_default("runs") else f"python -m tests.benchmarks.aa --runs {given.runs}"
    print(json.dumps(summary(done, given.slowdown, given.margin / 100, command)))


if __name__ == "__main__":
    main()

"""The same model by our paced scenario and by MLPerf LoadGen's SingleStream: p50 and p90 of both, in the same runner, with the same inputs.

Fresh processes; in each the two take turns, in blocks so short that a machine's speed is the same for both of a pair. Compared are all
inferences of both: LoadGen knows no disturbed ones. What LoadGen times holds its own query and, in Python, some microseconds of its
bindings, which ours leaves out. Its rules for a submission ask for ten minutes; a block is as long as `--seconds`, and VALID by its early
stopping (64 queries for a p90).

Progress on stderr; the last line on stdout is one JSON object. Two of the models are made by their examples, from published
packages.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from agent.bench import scenarios
from agent.bench.session import session
from agent.bench.site import Site
from agent.given import candidate_of
from agent.runner.process import Reply, RunnerProcess
from edgefarm.model import Candidate, LatencyWork, Limits, Scenario, Stage
from edgefarm.statistics import Interval, geometric_interval
from edgefarm.tensors import pack
from tests.examples import FASHION, IMAGENET, OCR

_QUERIES, _BURSTS, _SAMPLES = 64, 8, 8
Quantiles = tuple[float, float]


@dataclass(frozen=True)
class Subject:
    """A model, and inputs for it."""

    name: str
    model: Path
    inputs: Path
    candidate: Candidate


def subjects(folder: Path) -> list[Subject]:
    """The networks of the examples fashion (below a millisecond), imagenet and ocr."""
    found = [("fashion", FASHION)]
    for name, example in (("imagenet", IMAGENET), ("ocr", OCR)):
        if not (example / "build" / "model.onnx").is_file():
            subprocess.run([sys.executable, str(example / "prepare.py")], check=True, timeout=600, stdout=sys.stderr)
        found.append((name, example / "build"))
    return [
        Subject(
            name,
            place / "model.onnx",
            _packed(place / "calibration.npz", folder / f"{name}.npz"),
            candidate_of(place / "model.onnx", "onnxruntime", {"threads": 1}),
        )
        for name, place in found
    ]


def _packed(data: Path, target: Path) -> Path:
    with np.load(data) as arrays:
        target.write_bytes(pack({name: [arrays[name][i : i + 1] for i in range(_SAMPLES)] for name in arrays.files}))
    return target


class Pair:
    """One fresh runner that holds the model; both ways of measuring ask it in turn, so that they time the very same session."""

    def __init__(self, subject: Subject, runner: RunnerProcess, seconds: float) -> None:
        self.own_us: list[float] = []  # of LoadGen: what its p50 has above that of the inferences, timed beside its clock
        self._runner, self._seconds, self._inputs = runner, seconds, str(subject.inputs.absolute())

    def ours(self, seed: str) -> Quantiles:
        """p50 and p90 in ns over all inferences of the paced scenario's bursts."""
        burst_ns = round(self._seconds / _BURSTS * 1e9)
        work = LatencyWork((), Scenario(), "", (), _BURSTS, burst_ns, _QUERIES // _BURSTS)
        request = {"do": "launch", "keys": ["m"], "inputs": self._inputs, "plan": scenarios.plan(work, seed)}
        with np.load(io.BytesIO(self._ask(request).payload)) as samples:
            p50, p90 = np.quantile(samples["m"], [0.5, 0.9])
        return float(p50), float(p90)

    def theirs(self, seed: int) -> tuple[Quantiles, str]:
        """p50 and p90 in ns by LoadGen, and why the run is not VALID, if it is not."""
        settings = {"kind": "paced", "min_duration_ms": round(self._seconds * 1e3), "min_queries": _QUERIES, "seed": seed}
        request = {"do": "loadgen", "key": "m", "inputs": self._inputs, "folder": str(self._runner.folder), "settings": settings}
        said = self._ask(request).body
        reason = "" if said["result"] == "VALID" else "; ".join([said["result"], *said["reasons"]])
        self.own_us.append((said["numbers"]["p50_ns"] - said["numbers"]["inference_p50_ns"]) / 1e3)
        return (said["numbers"]["p50_ns"], said["numbers"]["p90_ns"]), reason

    def _ask(self, request: dict[str, object]) -> Reply:
        return self._runner.call(request, Limits().run_ns, Stage.RUN)


def compared(subject: Subject, seconds: float, runs: int, blocks: int, site: Site) -> dict[str, object]:
    """One row of the result: ours over LoadGen's. A ratio is paired within a block; a process has the median of its blocks, so that one in
    which others' load met one of the two decides nothing; their mean and its interval are over fresh processes."""
    ratios: list[Quantiles] = []
    invalid: list[str] = []
    own_us: list[float] = []
    for run in range(runs):
        with session(site, Limits(), [subject.model], [subject.inputs]) as measuring, measuring.runner() as runner:
            measuring.load(runner, "m", subject.candidate, subject.model)
            pair, of_blocks = Pair(subject, runner, seconds), []
            for block in range(blocks):
                ours = pair.ours(f"{run}/{block}") if block % 2 == run % 2 else None
                theirs, reason = pair.theirs(run * blocks + block)
                ours = ours or pair.ours(f"{run}/{block}")
                of_blocks.append([math.log(a / b) for a, b in zip(ours, theirs)])
                invalid += [reason] if reason else []
        p50, p90 = (math.exp(statistics.median(values)) for values in zip(*of_blocks))
        ratios.append((p50, p90))
        own_us += pair.own_us
        line = f"{subject.name}, process {run + 1} of {runs}: ours / LoadGen's p50 {p50:.4f}, p90 {p90:.4f}; the last block: "
        line += f"{ours[0] / 1e3:.1f} / {theirs[0] / 1e3:.1f} us, {ours[1] / 1e3:.1f} / {theirs[1] / 1e3:.1f} us"
        print(line, file=sys.stderr, flush=True)
    p50s, p90s = (geometric_interval([r[at] for r in ratios]) for at in (0, 1))
    return {
        "name": subject.name, "p50_ratio": round(p50s.value, 4), "p50_ratio_ci95": _ends(p50s), "p90_ratio": round(p90s.value, 4),
        "p90_ratio_ci95": _ends(p90s),
        "loadgen_own_us": round(statistics.median(own_us), 1), "valid": not invalid, "invalid": invalid, "n": runs * blocks,
    }  # fmt: skip


def _ends(interval: Interval) -> list[float] | None:
    return [round(interval.low, 4), round(interval.high, 4)] if interval.known else None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=0.2, help="of a block of either kind, at the least (0.2)")
    parser.add_argument("--runs", type=int, default=6, help="fresh processes for each model (6)")
    parser.add_argument("--blocks", type=int, default=24, help="of each kind in a process (24)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        site = Site(Path(base), lock=Path(base) / "lock")
        rows = [compared(subject, options.seconds, options.runs, options.blocks, site) for subject in subjects(Path(base))]
    result = {
        "models": rows, "n": options.runs, "seconds": options.seconds,
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}",
        "command": f"make bench-loadgen (--seconds {options.seconds:g} --runs {options.runs} --blocks {options.blocks})",
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()

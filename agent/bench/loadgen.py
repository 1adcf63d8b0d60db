"""One model under MLPerf LoadGen in a fresh runner: the same session and inputs as in a launch, LoadGen's clock and logs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.bench.session import session
from agent.bench.site import Site
from agent.runner import scratch
from agent.runner.process import RunnerFailed
from edgefarm.model import Candidate, Conditions, Failure, FailureKind, Limits, Scenario, Stage

_KEY = "model"
_LOGS = ("mlperf_log_summary.txt", "mlperf_log_detail.txt", "mlperf_log_accuracy.json")
_LARGEST_BYTES = 256 * 2**20
_LONGER = 4  # than its least duration: warm-up, queries that still wait, the writing of logs


@dataclass(frozen=True)
class Asked:
    """What LoadGen is told besides the scenario.

    Attributes:
        min_duration_ms: of the run, at the least. A submission to MLPerf needs 600,000; LoadGen judges shorter ones all the same.
        min_queries: at the least. The floors of its early stopping: 64 for a p90, 662 for a p99.
        target_latency_ns: what 99 % of requests must keep under `server`.
        seed: of the samples that are asked for, and of arrivals.
    """

    min_duration_ms: int
    min_queries: int
    target_latency_ns: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Judged:
    """What LoadGen said: `VALID` or not and why; numbers by name, as far as its summary has them (`n`, `p50_ns`, `samples_per_s` …)."""

    result: str
    reasons: tuple[str, ...]
    numbers: Mapping[str, float]
    settings: Mapping[str, str]


def run_loadgen(
    candidate: Candidate, path: Path, inputs: Path, scenario: Scenario, run: Asked, out: Path, limits: Limits, site: Site
) -> tuple[Judged | Failure, Conditions]:
    """Runs it once; its logs go to `out`, which is made.

    Args:
        candidate: what runs.
        path: its main file.
        inputs: tensor pack whose samples LoadGen asks for.
        scenario: `paced` without a rate (LoadGen's SingleStream), `offline` (Offline, the first batch size), `server` (Server).
        run: how long, and what it must keep.
        out: folder for the logs.
        limits: time-outs and memory.
        site: where.
    """
    with session(site, limits, [path], [inputs]) as measuring:
        try:
            with measuring.runner() as runner:
                measuring.load(runner, _KEY, candidate, path)
                given = str(inputs.absolute())
                first = runner.call({"do": "first", "key": _KEY, "inputs": given}, limits.run_ns, Stage.RUN).body["first_inference_ns"]
                settings = _settings(scenario, run)
                request = {"do": "loadgen", "key": _KEY, "inputs": given, "folder": str(runner.folder), "settings": settings}
                limit = measuring.run_limit_ns(run.min_queries, first) + _LONGER * run.min_duration_ms * 10**6
                body = runner.call(request, limit, Stage.RUN).body
                _take(runner.folder, out)
        except RunnerFailed as error:
            return error.failure, measuring.watch.conditions()
        judged = Judged(body["result"], tuple(body["reasons"]), body["numbers"], dict(measuring.watch.settings))
        return judged, measuring.watch.conditions()


def _settings(scenario: Scenario, run: Asked) -> dict[str, Any]:
    return {
        "kind": scenario.kind, "rate_per_s": scenario.rate_per_s, "batch_size": (*scenario.batch_sizes, 1)[0],
        "min_duration_ms": run.min_duration_ms, "min_queries": run.min_queries, "target_latency_ns": run.target_latency_ns,
        "seed": run.seed,
    }  # fmt: skip


def _take(folder: Path, out: Path) -> None:
    """Copies the logs. They were written beside a model: no links, nothing endless. Raises RunnerFailed."""
    out.mkdir(parents=True, exist_ok=True)
    for name in _LOGS:
        log = folder / name
        if not scratch.is_own_file(log) or os.stat(log).st_size > _LARGEST_BYTES:
            raise RunnerFailed(Failure(FailureKind.CRASH, f"LoadGen left no {name}", Stage.RUN))
        shutil.copyfile(log, out / name)

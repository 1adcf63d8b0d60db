"""What `edge-agent` does without a controller: bench one model, say what the device holds, go back to the model before."""

from __future__ import annotations

import collections
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from agent.bench.latency import measure_latency
from agent.bench.loadgen import Asked, run_loadgen
from agent.bench.site import Site
from agent.given import candidate_of, given_inputs
from agent.identity import FolderLock
from agent.journal import read_attempts
from agent.pause import Pause
from agent.probe import emulation
from agent.runner.scratch import folder
from agent.slots import Slots
from edgefarm.errors import Busy, Inconclusive, UserError
from edgefarm.model import (
    Candidate,
    Contender,
    ContenderResult,
    DeploymentStatus,
    Failure,
    LatencyResult,
    LatencyWork,
    Limits,
    Options,
    Scenario,
)
from edgefarm.statistics import geometric_interval, percentile_floor

_KEY = "model"
_KINDS = ("paced", "offline", "sustained", "server")
_LAUNCHES = {"paced": 10, "offline": 10, "sustained": 3, "server": 5}
_DURATION_S = {"sustained": 60.0, "server": 10.0}  # of one launch
_LOADGEN_S = 10.0
_LOADGEN_QUERIES = {"paced": 64, "offline": 1, "server": 662}  # the floors of its early stopping for a p90, and for a p99


def scenario_of(kind: str, rate_per_s: float | None, batch_sizes: Sequence[int], duration_s: float | None) -> Scenario:
    """The scenario that options ask for. Raises UserError for one that does not go with the others."""
    if kind not in _KINDS:
        raise UserError(f"--scenario {kind}: unknown; known are {', '.join(_KINDS)}")
    if kind == "server" and rate_per_s is None:
        raise UserError("--scenario server needs --rate, the requests per second")
    for option, value, kinds in (
        ("--rate", rate_per_s, ("paced", "server")), ("--batch-sizes", batch_sizes or None, ("offline",)),
        ("--duration", duration_s, ("sustained", "server")),
    ):  # fmt: skip
        if value is not None and kind not in kinds:
            raise UserError(f"{option} does not go with --scenario {kind}, only with {' and '.join(kinds)}")
        if value is not None and not all(0 < number < 1e9 for number in (value if isinstance(value, Sequence) else (value,))):
            raise UserError(f"{option} {value}: must be above 0")
    seconds = duration_s or _DURATION_S.get(kind, 0.0)
    return Scenario(kind, rate_per_s, tuple(batch_sizes), round(seconds * 1e9))


def bench_file(
    model: Path, *, runtime: str | None, options: Options, inputs: Path | None, launches: int | None, lock: Path | None = None,
    scenario: Scenario | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Latency of one model file over fresh launches, as `--json` prints it.

    Args:
        model: the file.
        runtime: what runs it; None: the first installed one that opens it.
        options: of the runtime, `threads` among them.
        inputs: tensor pack to feed; None: random values.
        launches: fresh processes; None: as many as suit the scenario.
        lock: file of the host's measure lock; None: the usual one.
        scenario: the load; None: one inference after the other.

    Raises:
        UserError: the file, the runtime, its options or the inputs don't fit; the message has the runtime's own words.
        Inconclusive: fewer than two launches gave numbers.
    """
    candidate, load = candidate_of(model, runtime, options), scenario or Scenario()
    count = _LAUNCHES[load.kind] if launches is None else launches
    if count < 1:
        raise UserError(f"--launches {count}: must be at least 1")
    with folder(None, "edgefarm-bench-") as scratch:
        fed = given_inputs(inputs, model, candidate, scratch)
        work = LatencyWork((Contender(_KEY, candidate),), load, "", tuple(range(count)))
        site = Site(scratch, int(options["threads"]), lock)
        results, conditions = [], None
        for launch in range(count):
            print(f"launch {launch + 1} of {count}", file=sys.stderr)
            measured = measure_latency(work, launch, {_KEY: model}, fed, Limits(), site)
            results.append(_numbers(model, measured.outcome))
            conditions = measured.conditions
    return _report(_Benched(model, candidate, inputs, load, results, {} if conditions is None else conditions.settings))


def loadgen_file(
    model: Path, *, runtime: str | None, options: Options, inputs: Path | None, scenario: Scenario, seconds: float | None,
    target_latency_ms: float | None, out: Path | None, lock: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One run of a model file under MLPerf LoadGen, as `--json` prints it; LoadGen's logs are left in `out`.

    Raises:
        UserError: as `bench_file`; LoadGen is not installed, or has no such scenario.
    """
    if out is None:
        raise UserError("--loadgen needs --out DIR, for LoadGen's logs")
    if scenario.kind == "sustained" or (scenario.kind == "paced" and scenario.rate_per_s):
        raise UserError("--loadgen knows paced without --rate (its SingleStream), offline (Offline) and server (Server)")
    if len(scenario.batch_sizes) > 1:
        raise UserError("--loadgen takes one batch size: LoadGen judges a run as a whole")
    if scenario.kind == "server" and not target_latency_ms:
        raise UserError("--loadgen --scenario server needs --target-latency-ms, which 99 % of the requests must keep")
    candidate = candidate_of(model, runtime, options)
    asked = Asked(round((seconds or _LOADGEN_S) * 1e3), _LOADGEN_QUERIES[scenario.kind], round((target_latency_ms or 0) * 1e6))
    with folder(None, "edgefarm-bench-") as scratch:
        fed = given_inputs(inputs, model, candidate, scratch)
        site = Site(scratch, int(options["threads"]), lock)
        judged, _ = run_loadgen(candidate, model, fed, scenario, asked, out, Limits(), site)
    if isinstance(judged, Failure):
        raise UserError(f"{model}: {judged.kind.value}: {judged.detail}")
    numbers = judged.numbers
    shown = [f"{p} {numbers[f'{p}_ns'] / 1e3:.1f} us" for p in ("p50", "p90") if f"{p}_ns" in numbers and scenario.kind != "offline"]
    shown += [f"{numbers['samples_per_s']:.1f} per second"] if "samples_per_s" in numbers else []
    reasons = f": {'; '.join(judged.reasons)}" if judged.reasons else ""
    return {
        "model": str(model), "digest": candidate.artifact.digest, "runtime": candidate.runtime, "options": dict(candidate.options),
        "inputs": "random values" if inputs is None else str(inputs), "scenario": _scenario(scenario), "result": judged.result,
        "reasons": list(judged.reasons), "numbers": dict(judged.numbers), "logs": str(out), "settings": dict(judged.settings),
        "min_duration_s": asked.min_duration_ms / 1e3, "min_queries": asked.min_queries,
        "summary": f"{model.name}: LoadGen says {judged.result}{reasons}; {', '.join(shown)}; at least {asked.min_duration_ms / 1e3:g} s "
        f"and {asked.min_queries} queries (a submission to MLPerf asks for 600 s); logs in {out}",
    }  # fmt: skip


@dataclass(frozen=True)
class _Benched:
    """What a bench did and saw."""

    model: Path
    candidate: Candidate
    inputs: Path | None
    scenario: Scenario
    results: Sequence[ContenderResult]
    settings: Mapping[str, str]

    @property
    def count(self) -> int:
        return sum(r.n for r in self.results)

    @property
    def overload(self) -> str:
        """Why latencies mean nothing; empty if they do."""
        served = [r.samples_per_s for r in self.results if r.regime == "overload"]
        if not served:
            return ""
        return f"overloaded: {self.scenario.rate_per_s:g} requests per second came, {min(served):.1f} were served; the queue grows for ever"


def _numbers(model: Path, outcome: object) -> ContenderResult:
    if isinstance(outcome, LatencyResult) and outcome.contenders[0].failure is None:
        return outcome.contenders[0]
    failure = outcome.contenders[0].failure if isinstance(outcome, LatencyResult) else outcome
    assert isinstance(failure, Failure)
    raise UserError(f"{model}: {failure.kind.value}: {failure.detail}")


def _report(seen: _Benched) -> dict[str, Any]:
    results, candidate, overload = seen.results, seen.candidate, seen.overload
    latency = {p: None if overload else _percentile(p, [getattr(r, f"{p}_ns") for r in results], seen.count) for p in ("p50", "p90", "p99")}
    if latency["p50"] is None and not overload:
        raise Inconclusive(f"{seen.model}: {len(results)} launches with {seen.count} inferences are too few")
    throughput = geometric_interval([r.samples_per_s or 1e9 / r.mean_ns for r in results])
    return {
        "model": str(seen.model), "digest": candidate.artifact.digest, "runtime": candidate.runtime, "options": dict(candidate.options),
        "chosen": next((dict(r.chosen) for r in results), {}), "inputs": "random values" if seen.inputs is None else str(seen.inputs),
        "scenario": _scenario(seen.scenario), "launches": len(results), "latency_ns": {"n": seen.count, **latency},
        "throughput_per_s": {
            "value": throughput.value, "ci95": [throughput.low, throughput.high] if throughput.known else None
        }, "batches": _batches(results),
        "regimes": dict(collections.Counter(r.regime for r in results)),
        "left_out": {"disturbed": sum(r.left_out for r in results), "unsettled": sum(r.unsettled for r in results)},
        "unavailable": {"latency_ns": overload} if overload else {},
        "load_ns": [r.load_ns for r in results], "first_inference_ns": [r.first_inference_ns for r in results],
        "placement": next((dict(r.placement) for r in results if r.placement), {}), "settings": dict(seen.settings),
        "emulated": bool(emulation()), "summary": _summary(seen, latency, throughput.value),
    }  # fmt: skip


def _summary(seen: _Benched, latency: Mapping[str, Any], throughput: float) -> str:
    """One line for a person, and one more for each batch size."""
    candidate, kind = seen.candidate, seen.scenario.kind
    fed = "random values" if seen.inputs is None else str(seen.inputs)
    chosen = next((dict(r.chosen) for r in seen.results), {})
    options = " ".join(f"{k}={v}" for k, v in sorted({**candidate.options, **chosen}.items()))
    shown = [f"{name} {found['value'] / 1e3:.1f} us{_range(found['ci95'])}" for name, found in latency.items() if found is not None]
    what = seen.overload or ", ".join(shown)
    if kind in ("offline", "server") and not seen.overload:
        what = f"{throughput:.1f} per second, {what}" + (" per sample" if kind == "offline" else "")
    regimes = ", ".join(f"{word or 'no regime'} {n}" for word, n in collections.Counter(r.regime for r in seen.results).items())
    how = emulation()
    first = (
        f"{seen.model.name}: {what}; {seen.count} inferences in {len(seen.results)} launches ({regimes}), {kind}, "
        f"{candidate.runtime} {options}, fed with {fed}" + (f"; emulated, so no device's latency: {how}" if how else "")
    )
    batches = [
        f"  batch {b['batch_size']}: " + (b["unavailable"] or f"{b['samples_per_s']:.1f} per second, {b['p50_ns'] / 1e3:.1f} us each")
        for b in _batches(seen.results)
    ]
    return "\n".join([first, *batches])


def _range(ci95: Sequence[int] | None) -> str:
    return "" if ci95 is None else f" (95 %: {ci95[0] / 1e3:.1f} to {ci95[1] / 1e3:.1f})"


def _scenario(scenario: Scenario) -> dict[str, Any]:
    values = {
        "rate_per_s": scenario.rate_per_s, "batch_sizes": list(scenario.batch_sizes), "duration_s": scenario.duration_ns / 1e9,
    }  # fmt: skip
    return {"kind": scenario.kind, **{name: value for name, value in values.items() if value}}


def _batches(results: Sequence[ContenderResult]) -> list[dict[str, Any]]:
    """Each batch size over all launches; durations are of a whole batch."""
    rows = []
    for size in [b.batch_size for b in results[0].batches]:
        found = [b for r in results for b in r.batches if b.batch_size == size]
        refused = next((b.unavailable for b in found if b.unavailable), "")
        row: dict[str, Any] = {
            "batch_size": size,
            "n": sum(b.n for b in found),
            "p50_ns": None,
            "samples_per_s": None,
            "unavailable": refused,
        }
        if not refused:
            row["p50_ns"] = round(geometric_interval([b.p50_ns for b in found]).value)
            row["samples_per_s"] = size * 1e9 / geometric_interval([b.mean_ns for b in found]).value
        rows.append(row)
    return rows


def _percentile(name: str, values: Sequence[int], count: int) -> dict[str, Any] | None:
    """Geometric mean over the launches, with its interval (null for one launch); None where the count does not carry it."""
    if name != "p50" and count < percentile_floor(float(name[1:]) / 100):
        return None
    interval = geometric_interval(values)
    return {"value": round(interval.value), "ci95": [round(interval.low), round(interval.high)] if interval.known else None}


def read_status(state: Path) -> dict[str, Any]:
    """What a device holds, read from its state folder. Raises UserError if it is none."""
    try:
        identity = json.loads((state / "device.json").read_text())["id"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{state}: no agent has run with this state folder") from error
    try:
        with FolderLock(state / "agent.lock", "", wait_s=0.0):
            running = False
    except Busy:
        running = True
    journal = state / "journal"
    attempts = read_attempts(journal) if journal.is_dir() else []
    slots = Slots(state / "models", "").statuses() if (state / "models").is_dir() else ()
    since_ms = Pause(state).since_unix_ms()
    return {
        "id": identity, "running": running, "paused_since": None if since_ms is None else _utc(since_ms),
        "unacknowledged": [{"order": a.order, "index": a.index} for a in attempts],
        "deployments": [{**vars(s), "state": s.state.value} for s in slots],
    }  # fmt: skip


def pause(state: Path, *, resume: bool) -> None:
    """Lets no launch begin, or lets them begin again; a running agent notices at its next heartbeat. Raises UserError, StorageError."""
    if not state.is_dir():
        raise UserError(f"{state}: no agent has run with this state folder; say which by --state or --config")
    if resume:
        Pause(state).end()
    else:
        Pause(state).begin()


def _utc(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1e3, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def roll_back(state: Path, model: str | None) -> list[DeploymentStatus]:
    """Goes back to the model before; see `Slots.roll_back`. Raises UserError."""
    if not (state / "models").is_dir():
        raise UserError(f"{state}: nothing was ever deployed with this state folder")
    slots = Slots(state / "models", "")
    slots.recover()
    if model is None and len(slots.models()) > 1:
        raise UserError(f"several models are deployed; say which: {', '.join(slots.models())}")
    if model is None and not slots.models():
        raise UserError(f"{state}: nothing was ever deployed with this state folder")
    try:
        return [slots.roll_back(model if model is not None else slots.models()[0])]
    except OSError as error:
        raise UserError(f"{state}: {error.strerror}") from error

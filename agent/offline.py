"""What `edge-agent` does without a controller: bench one model, say what the device holds, go back to the model before."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from agent import bench
from agent.bench import Site
from agent.identity import FolderLock
from agent.journal import read_attempts
from agent.pause import Pause
from agent.probe import emulation
from agent.runner.process import RunnerFailed, RunnerProcess
from agent.runner.scratch import folder
from agent.runtimes import RUNTIMES, is_installed, missing
from agent.slots import Slots
from edgefarm.digest import artifact_digest, digest_file
from edgefarm.errors import Busy, Inconclusive, UserError
from edgefarm.model import (
    Artifact,
    Candidate,
    Contender,
    ContenderResult,
    DeploymentStatus,
    Failure,
    FileEntry,
    LatencyResult,
    LatencyWork,
    Limits,
    Options,
    Scenario,
    Stage,
)
from edgefarm.statistics import geometric_interval, percentile_floor

_KEY = "model"
_FORMATS = {".onnx": "onnx", ".tflite": "tflite", ".xml": "openvino"}
_SAMPLES = 4


def bench_file(
    model: Path, *, runtime: str | None, options: Options, inputs: Path | None, launches: int, lock: Path | None = None
) -> dict[str, Any]:
    """Latency of one model file over fresh launches, as `--json` prints it.

    Raises:
        UserError: the file, the runtime, its options or the inputs don't fit; the message has the runtime's own words.
        Inconclusive: fewer than two launches gave numbers.
    """
    candidate = _candidate(model, runtime, options)
    if launches < 1:
        raise UserError(f"--launches {launches}: must be at least 1")
    with folder(None, "edgefarm-bench-") as scratch:
        fed = inputs if inputs is not None else _random_inputs(model, candidate, scratch)
        if not fed.is_file():
            raise UserError(f"--inputs {fed}: no such file")
        work = LatencyWork((Contender(_KEY, candidate),), Scenario(), "", tuple(range(launches)))
        site = Site(scratch, int(options["threads"]), lock)
        results, conditions = [], None
        for launch in range(launches):
            print(f"launch {launch + 1} of {launches}", file=sys.stderr)
            measured = bench.measure_latency(work, launch, {_KEY: model}, fed, Limits(), site)
            results.append(_numbers(model, measured.outcome))
            conditions = measured.conditions
    return _report(model, candidate, inputs, results, {} if conditions is None else conditions.settings)


def _candidate(model: Path, runtime: str | None, options: Options) -> Candidate:
    if not model.is_file():
        raise UserError(f"{model}: no such file")
    format = _FORMATS.get(model.suffix)
    if format is None:
        raise UserError(f"{model}: no runtime opens {model.suffix or 'a file without a suffix'}; known are {', '.join(sorted(_FORMATS))}")
    fitting = [name for name, entry in RUNTIMES.items() if format in entry.formats]
    if runtime is not None and runtime not in RUNTIMES:
        raise UserError(f"--runtime {runtime}: unknown; known are {', '.join(sorted(RUNTIMES))}")
    if runtime is not None and runtime not in fitting:
        raise UserError(f"--runtime {runtime}: does not open {model.suffix}; {' and '.join(fitting)} do")
    chosen = runtime or next(filter(is_installed, fitting), fitting[0])
    if not is_installed(chosen):
        raise UserError(missing(chosen))
    return Candidate(_artifact(model, format), chosen, options)


def _artifact(model: Path, format: str) -> Artifact:
    """The model and, of OpenVINO's format, the weights beside it (a model may have none)."""
    weights = model.with_suffix(".bin")
    paths = [model, weights] if format == "openvino" and weights.is_file() else [model]
    files = tuple(FileEntry(p.name, digest_file(p), p.stat().st_size) for p in paths)
    return Artifact(artifact_digest((f.name, f.digest, f.bytes) for f in files), sum(f.bytes for f in files), format, files)


def _random_inputs(model: Path, candidate: Candidate, scratch: Path) -> Path:
    """A tensor pack of the model's input shapes, made in a child process, since this one must not import numpy."""
    load = {
        "do": "load",
        "key": _KEY,
        "path": str(model.absolute()),
        "runtime": candidate.runtime,
        "options": candidate.options,
        "io": None,
    }
    try:
        with RunnerProcess(Limits(), scratch, files=[model.absolute().parent, model.resolve().parent]) as runner:
            specs = runner.call(load, Limits().load_ns, Stage.LOAD).body["inputs"]
    except RunnerFailed as error:
        raise UserError(f"{model}: {error.failure.kind.value}: {error.failure.detail}") from error
    target = scratch / "random.npz"
    command = [sys.executable, "-m", "agent.synthetic", str(target), str(_SAMPLES)]
    # In a folder of ours: `-m` looks for modules there first, and beside a model may lie anything.
    made = subprocess.run(command, input=json.dumps(specs), capture_output=True, text=True, cwd=scratch)
    if made.returncode != 0:
        said = made.stderr.strip().rpartition("\n")[2]
        raise UserError(f"{model}: no random inputs: {said}; give some with --inputs")
    return target


def _numbers(model: Path, outcome: object) -> ContenderResult:
    if isinstance(outcome, LatencyResult) and outcome.contenders[0].failure is None:
        return outcome.contenders[0]
    failure = outcome.contenders[0].failure if isinstance(outcome, LatencyResult) else outcome
    assert isinstance(failure, Failure)
    raise UserError(f"{model}: {failure.kind.value}: {failure.detail}")


def _report(
    model: Path, candidate: Candidate, inputs: Path | None, results: Sequence[ContenderResult], settings: Mapping[str, str]
) -> dict[str, Any]:
    count = sum(r.n for r in results)
    latency = {name: _percentile(name, [getattr(r, f"{name}_ns") for r in results], count) for name in ("p50", "p90", "p99")}
    fed = "random values" if inputs is None else str(inputs)
    median = latency["p50"]
    if median is None:
        raise Inconclusive(f"{model}: {len(results)} launches with {count} inferences are too few")
    interval = "" if median["ci95"] is None else f" (95 %: {median['ci95'][0] / 1e3:.1f} to {median['ci95'][1] / 1e3:.1f})"
    chosen = next((dict(r.chosen) for r in results), {})
    options = " ".join(f"{k}={v}" for k, v in sorted({**candidate.options, **chosen}.items()))
    how = emulation()
    return {
        "model": str(model), "digest": candidate.artifact.digest, "runtime": candidate.runtime, "options": dict(candidate.options),
        "chosen": chosen, "inputs": fed, "launches": len(results), "latency_ns": {"n": count, **latency},
        "load_ns": [r.load_ns for r in results], "first_inference_ns": [r.first_inference_ns for r in results],
        "placement": next((dict(r.placement) for r in results if r.placement), {}), "settings": dict(settings), "emulated": bool(how),
        "summary": f"{model.name}: {median['value'] / 1e3:.1f} us{interval}, {count} inferences in {len(results)} launches, "
        f"{candidate.runtime} {options}, fed with {fed}" + (f"; emulated, so no device's latency: {how}" if how else ""),
    }  # fmt: skip


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

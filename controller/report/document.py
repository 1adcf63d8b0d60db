"""Builds the report of a run from its parts. Its shape is `schema.json`; additions are allowed, changes are not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.evidence import Evidence, Group
from controller.report.candidate import Origin, candidate
from controller.report.measured import ratio
from controller.report.times import utc
from controller.selection import Choice
from controller.verdicts import speedup
from edgefarm import __version__
from edgefarm.model import Artifact, DeploymentState, DeploymentStatus, Device, DeviceStatus, Failure, Run, Stage
from optimizer.keras_source import is_keras

SCHEMA = 1
_SAID = 200
_FIXED = "its inputs have the sizes of the example, since their first axes could not be left open"


@dataclass(frozen=True)
class DeviceResult:
    """All that is known of one device at the end of a run; `choice` is None if it was lost or not measured."""

    status: DeviceStatus
    group: Group
    evidence: Evidence
    choice: Choice | None
    deployment: DeploymentStatus | None = None
    lost: str = ""


@dataclass(frozen=True)
class OptimizeFailure:
    """A plan that gave no variant."""

    variant: str
    failure: Failure


def caveat(device: Device) -> str | None:
    """What one must know before one believes a number of this device."""
    if not device.emulated:
        return None
    how = "".join(filter(str.isprintable, device.fingerprint.get("emulated", "it does not say how")))[:_SAID]  # its own words
    return f"emulated ({how}): its times and memory are no real device's, and are compared with none"


def build(
    run: Run,
    model_name: str,
    model: Artifact,
    results: Sequence[DeviceResult],
    origins: Mapping[str, Origin],
    not_built: Sequence[OptimizeFailure],
    *,
    summary: str,
    phases: Mapping[str, float],
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The report document. `origins`: artifact digest -> where the variant comes from."""
    exported = _exported(run)
    entry = {"name": model_name, "digest": model.digest, "bytes": model.bytes, "format": model.format}
    return {
        "schema": SCHEMA,
        "run": run.name,
        "state": run.state,
        "exit_code": run.exit_code,
        "summary": summary,
        "edgefarm_version": __version__,
        "owner": run.owner,
        "labels": dict(run.labels),
        "started": utc(run.started_unix_ms),
        "finished": utc(run.finished_unix_ms),
        "phases_s": {name: round(seconds, 2) for name, seconds in phases.items()},
        "notes": [*_of_export(exported), *notes],
        "model": {**entry, "exported_from": exported["from"]} if exported else entry,
        "devices": [_device(r, origins, not_built) for r in results],
    }


def _exported(run: Run) -> Mapping[str, Any]:
    """What the run's spec says of a source that was exported; empty where a model file was given."""
    spec = json.loads(run.spec or "{}")
    told: Mapping[str, Any] = spec.get("fleet", spec).get("exported", {})  # trials keep the fleet's spec in theirs
    return told


def _of_export(exported: Mapping[str, Any]) -> list[str]:
    if not exported:
        return []
    sizes = f"; {_FIXED}" if exported["fixed"] else ""
    made = "TFLite or ONNX, as the device runs" if is_keras(exported["from"]) else "ONNX"
    return [f"the baseline is the plain float conversion of {exported['from']} to {made}{sizes}"]


def _device(result: DeviceResult, origins: Mapping[str, Origin], not_built: Sequence[OptimizeFailure]) -> dict[str, Any]:
    device = result.status.device
    unavailable: dict[str, str] = {}
    document: dict[str, Any] = {
        "name": device.name,
        "class": result.status.device_class,
        "labels": dict(device.labels),
        "fingerprint": {**device.fingerprint, "runtimes": {c.runtime: c.version for c in device.capabilities if c.available}},
        "emulated": device.emulated,
        "caveat": caveat(device),
        "objective": result.group.objective,
        "constraints": dict(result.group.constraints),
        "noise_floor": noise_floor(result.group, result.evidence, unavailable),
        "unavailable": unavailable,
        "baseline": None,
        "winner": None,
        "reason": result.lost or (result.choice.reason if result.choice else "not measured"),
        "inconclusive": bool(result.choice and result.choice.inconclusive),
        "candidates": [],
        "failures": [_failure(f.variant, f.failure, Stage.OPTIMIZE) for f in not_built],
        "deployment": _deployment(result.deployment),
    }
    if result.choice is not None:
        shown = {
            j.entry.key: candidate(j, result.group, result.evidence, origins.get(j.entry.candidate.artifact.digest, Origin()), device.name)
            for j in result.choice.judgements
        }
        document["baseline"] = shown[result.group.baseline.key]
        document["winner"] = shown[result.choice.winner.key] if result.choice.winner else None
        document["candidates"] = list(shown.values())
    names = {e.key: e.variant for e in result.group.entries}
    document["failures"] += [_failure(names[k], f, Stage.RUN) for k, f in result.evidence.failures.items() if k in names]
    if result.deployment is not None and result.deployment.state is DeploymentState.FAILED:
        winner = result.choice.winner.variant if result.choice and result.choice.winner else ""
        reason = {"variant": winner, "stage": Stage.ACTIVATE.value, "kind": "ACTIVATION", "detail": result.deployment.reason}
        document["failures"].append(reason)
    return document


def noise_floor(group: Group, evidence: Evidence, unavailable: dict[str, str]) -> dict[str, Any] | None:
    """Two copies of the baseline against each other, in the launches of the comparison: what is called a difference must be more."""
    if not evidence.control:
        unavailable["noise_floor"] = "no launch held a second copy of the baseline"
        return None
    between = speedup(evidence.control, objective=group.objective)
    return {**ratio(between, "noise_floor", unavailable), "launches": between.n}


def _failure(variant: str, failure: Failure, stage: Stage) -> dict[str, Any]:
    where = stage if failure.stage is Stage.UNSPECIFIED else failure.stage
    return {"variant": variant, "stage": where.value, "kind": failure.kind.name, "detail": failure.detail}


def _deployment(status: DeploymentStatus | None) -> dict[str, Any] | None:
    if status is None:
        return None
    return {
        "generation": status.generation,
        "state": status.state.value,
        "path": status.path or None,
        "endpoint": None,
        "digest": status.digest or None,
        "reason": status.reason or None,
    }

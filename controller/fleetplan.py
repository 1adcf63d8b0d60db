"""Puts devices into groups and makes the candidates that each group measures. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from controller.config.fleet import Target
from controller.evidence import Entry, Evaluation, Group
from edgefarm.model import Artifact, Candidate, Capability, Device, DeviceStatus, Io, Scalar

# The runtime in which a source's own bytes are the baseline.
OWN_RUNTIME = {"onnx": "onnxruntime", "tflite": "tflite", "openvino": "openvino"}


@dataclass(frozen=True)
class Build:
    """A variant as the planner needs it."""

    artifact: Artifact
    name: str
    io: Io | None = None


@dataclass(frozen=True)
class Setting:
    """What all groups of a run share."""

    run: str
    model: str
    inputs: str
    evaluation: Evaluation
    confidence: float | None
    accept: tuple[str, ...]
    budget_ns: int


@dataclass(frozen=True)
class Unable:
    """A device that cannot take part, and why."""

    status: DeviceStatus
    reason: str


def group(
    source: Build, builds: Sequence[Build], devices: Sequence[tuple[Target, DeviceStatus]], setting: Setting
) -> tuple[list[Group], list[Unable]]:
    """Groups devices that share class, limits, objective and candidates, in the order of `devices`."""
    found: dict[tuple[object, ...], Group] = {}
    unable: list[Unable] = []
    for target, status in devices:
        entries = _entries(source, builds, target, status.device)
        if not entries:
            unable.append(Unable(status, _why_unable(source, status.device)))
            continue
        constraints: Mapping[str, float] = target.constraints.model_dump(exclude_none=True)
        identity = (status.device_class, target.objective, tuple(constraints.items()), tuple(e.key for e in entries))
        names = (*found[identity].devices, target.name) if identity in found else (target.name,)
        found[identity] = Group(
            run=setting.run,
            model=setting.model,
            device_class=status.device_class,
            devices=names,
            entries=entries,
            objective=target.objective,
            constraints=constraints,
            inputs=setting.inputs,
            evaluation=setting.evaluation,
            confidence=setting.confidence,
            accept=setting.accept,
            budget_ns=setting.budget_ns,
        )
    return list(found.values()), unable


def _entries(source: Build, builds: Sequence[Build], target: Target, device: Device) -> tuple[Entry, ...]:
    own = OWN_RUNTIME.get(source.artifact.format, "")
    baseline = next((c for c in _candidates(source, target, device) if c.runtime == own), None)
    if baseline is None:
        return ()
    entries = {baseline.key: Entry(baseline, source.name, baseline=True)}
    for build in (source, *builds):
        for candidate in _candidates(build, target, device):
            entries.setdefault(candidate.key, Entry(candidate, build.name))
    return tuple(entries.values())


def _candidates(build: Build, target: Target, device: Device) -> Iterator[Candidate]:
    for capability in _usable(build, target, device):
        for threads in target.options_threads:
            options: dict[str, Scalar] = {**capability.options, "threads": threads}
            yield Candidate(build.artifact, capability.runtime, options, build.io)


def _usable(build: Build, target: Target, device: Device) -> list[Capability]:
    return [c for c in device.capabilities if c.available and c.runtime in target.runtimes and build.artifact.format in c.formats]


def _why_unable(source: Build, device: Device) -> str:
    own = OWN_RUNTIME.get(source.artifact.format, "")
    reasons = [c.reason for c in device.capabilities if c.runtime == own and not c.available]
    return f"it cannot run the source: {own}: {'; '.join(reasons) or 'not among its runtimes'}"

"""Puts devices into groups and makes the candidates that each group measures. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from controller.config.fleet import Target
from controller.config.measure import Where
from controller.evidence import Entry, Evaluation, Group
from edgefarm.model import Artifact, Candidate, Capability, Device, DeviceStatus, Io, Scalar, Scenario
from optimizer.source import FORMATS

POWER = "power"  # label: names of the power sources that a device can read
# The runtime in which a format's own bytes are the baseline.
OWN_RUNTIME = {f.name: f.runtime for f in FORMATS.values()}


@dataclass(frozen=True)
class Build:
    """A variant as the planner needs it.

    `plain`: the source's own arithmetic in another format, so it may stand in for the source. `look`, `form`: as in Entry.
    """

    artifact: Artifact
    name: str
    io: Io | None = None
    plain: bool = False
    look: int = 1
    form: str = ""


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
    scenario: Scenario = field(default_factory=Scenario)
    window: str = ""
    where: Where | None = None
    fail_on_fallback: bool = False


@dataclass(frozen=True)
class Unable:
    """A device that cannot take part, and why."""

    status: DeviceStatus
    reason: str


def group(
    source: Build, builds: Sequence[Build], devices: Sequence[tuple[Target, DeviceStatus]], setting: Setting
) -> tuple[list[Group], list[Unable]]:
    """Groups devices that share class, limits, objective and candidates, in the order of `devices`.

    Raises FleetFileError for a class of which none may measure.
    """
    found: dict[tuple[object, ...], Group] = {}
    unable: list[Unable] = []
    for target, status in devices:
        entries = _entries(source, builds, target, status.device)
        if not entries:
            unable.append(Unable(status, _why_unable(source, builds, target, status.device)))
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
            scenario=setting.scenario,
            window=setting.window,
            fail_on_fallback=setting.fail_on_fallback,
        )
    return [_placed(g, devices, found.values(), setting.where) for g in found.values()], unable


def _placed(one: Group, devices: Sequence[tuple[Target, DeviceStatus]], groups: Iterable[Group], where: Where | None) -> Group:
    """A group with what the devices of its class, which share trials, have: those that measure for it, and power sensors."""
    able = {name for g in groups if g.device_class == one.device_class for name in g.devices}
    labels = {target.name: status.device.labels for target, status in devices if target.name in able}
    return replace(one, only_on=where.only_on(labels) if where else (), power=any(known.get(POWER) for known in labels.values()))


def formats_run(devices: Sequence[tuple[Target, DeviceStatus]]) -> frozenset[str]:
    """Formats of artifacts that at least one device may be given."""
    return frozenset(
        model_format
        for target, status in devices
        for capability in status.device.capabilities
        for model_format in capability.formats
        if capability.available and capability.runtime in target.runtimes and _is_welcome(model_format, target)
    )


def formats_expected(targets: Sequence[Target]) -> frozenset[str]:
    """The same before any device has said what it runs: each runtime is taken to open its own format."""
    return frozenset(f for f, runtime in OWN_RUNTIME.items() for t in targets if runtime in t.runtimes and _is_welcome(f, t))


def _entries(source: Build, builds: Sequence[Build], target: Target, device: Device) -> tuple[Entry, ...]:
    baseline = _baseline(source, builds, target, device)
    if baseline is None:
        return ()
    entries = {baseline.key: baseline}
    for build in (source, *builds):
        for candidate in _candidates(build, target, device):
            entries.setdefault(candidate.key, Entry(candidate, build.name, look=build.look, form=build.form))
    return tuple(entries.values())


def _baseline(source: Build, builds: Sequence[Build], target: Target, device: Device) -> Entry | None:
    """The source's bytes in their own runtime; where that cannot run, in another one; else its plain conversion, and it says so."""
    own = OWN_RUNTIME.get(source.artifact.format, "")
    able = list(_candidates(source, target, device))
    if first := next((c for c in able if c.runtime == own), None):
        return Entry(first, source.name, baseline=True)
    why = f"{own} {_why_not(own, device)}"
    if able:
        return Entry(able[0], source.name, baseline=True, note=f"the source's own file in {able[0].runtime}: {why}")
    for build in builds:
        if build.plain and (able := list(_candidates(build, target, device))):
            chosen = next((c for c in able if c.runtime == OWN_RUNTIME.get(build.artifact.format)), able[0])
            return Entry(chosen, build.name, baseline=True, note=f"stands in for the source, which it was converted from: {why}")
    return None


def _candidates(build: Build, target: Target, device: Device) -> Iterator[Candidate]:
    for capability in _usable(build, target, device):
        for threads in target.options_threads:
            options: dict[str, Scalar] = {**capability.options, "threads": threads}
            yield Candidate(build.artifact, capability.runtime, options, build.io)


def _usable(build: Build, target: Target, device: Device) -> list[Capability]:
    if not _is_welcome(build.artifact.format, target):
        return []
    return [c for c in device.capabilities if c.available and c.runtime in target.runtimes and build.artifact.format in c.formats]


def _is_welcome(model_format: str, target: Target) -> bool:
    return not target.formats or model_format in target.formats


def _why_unable(source: Build, builds: Sequence[Build], target: Target, device: Device) -> str:
    own = OWN_RUNTIME.get(source.artifact.format, "")
    reason = f"it cannot run the source: {own} {_why_not(own, device)}"
    able = [b for b in builds if _usable(b, replace(target, formats=()), device)]
    other = next((b for b in able if b.plain), None)
    if other is None:
        wanted = f"; {able[0].name} is no plain conversion, so it can't stand in: give a float one under model.alternatives" if able else ""
        return reason + wanted
    programs = f"the programs there load {source.artifact.format} files"
    return f"{reason}; it could run {other.name}, but {programs}: name {OWN_RUNTIME.get(other.artifact.format)} under 'runtimes'"


def _why_not(runtime: str, device: Device) -> str:
    reasons = [c.reason for c in device.capabilities if c.runtime == runtime and not c.available]
    return "; ".join(reasons) or "is not among its runtimes"

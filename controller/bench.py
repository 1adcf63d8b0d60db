"""Measures given model files on the devices of a fleet, beside the fleet's own model. Nothing is chosen, nothing is rolled out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from controller import orders
from controller.config import Fleet
from controller.events import Events
from controller.evidence import COMPARE, CONTROL, Entry, Evidence, Group, Launch
from controller.fleetplan import Build, group
from controller.planner import CONTENDERS, Step
from controller.report import DeviceResult, build
from controller.report.candidate import Origin
from controller.selection import Choice, Judgement
from controller.trials import Trials
from controller.verdicts import believed, latency, speedup, verdict, verdict_of_reference
from controller.workload import Workload
from edgefarm.errors import DeviceLost, EdgefarmError, Inconclusive, NoFeasible
from edgefarm.model import Order, Verdict
from edgefarm.statistics.sequential import PLANNED

_BESIDE = CONTENDERS - 2  # in one launch with the fleet's model and its second copy
_REASON = "measured; nothing was to be chosen"


def next_step(group: Group, evidence: Evidence) -> Step:
    """Launches of all, twice as many where a verdict asks for it; then what has passes of its own. Pure."""
    for stage, wanted in ((COMPARE, _launches(group, evidence)), ("passes", _passes(group))):
        left = tuple(o for o in wanted if o.id not in evidence.ended)
        if left:
            return Step(stage, left)
    return Step("done", ())


def _launches(group: Group, evidence: Evidence) -> Iterator[Order]:
    others = list(group.entries[1:])
    for batch in [others[at : at + _BESIDE] for at in range(0, len(others), _BESIDE)] or [[]]:
        first = orders.comparison(group, [group.baseline, *batch], range(PLANNED), CONTROL)
        yield first
        doubted = any(_doubted(group, entry, evidence) for entry in batch)
        if first.id in evidence.ended and doubted and evidence.spent_ns < group.budget_ns:
            yield orders.comparison(group, [group.baseline, *batch], range(PLANNED, 2 * PLANNED), CONTROL)


def _doubted(group: Group, entry: Entry, evidence: Evidence) -> bool:
    """Judged on the first launches alone: later ones must not change what is wanted."""
    early = [x for x in evidence.launches.get(entry.key, ()) if x.index < PLANNED]
    launches, left_out = believed(early, group.scenario.kind)
    return bool(early) and (bool(left_out) or _verdict(group, entry, evidence, launches)[0].value not in group.accept)


def _verdict(group: Group, entry: Entry, evidence: Evidence, launches: Sequence[Launch]) -> tuple[Verdict, str]:
    kind = group.scenario.kind
    if entry.baseline:
        return verdict_of_reference(launches, scenario=kind)
    beside = {(x.order, x.index) for x in launches}
    control = [x for x in evidence.control if (x.order, x.index) in beside]
    return verdict(launches, group.objective, scenario=kind, control=control)


def _passes(group: Group) -> Iterator[Order]:
    for entry in group.entries:
        yield orders.accuracy(group, entry)
        if group.evaluation.report:
            yield orders.evaluation(group, entry)
        yield orders.memory(group, entry)
        if group.power:
            yield orders.energy(group, entry)


def bench(
    trials: Trials, fleet: Fleet, workload: Workload, variants: Sequence[tuple[Path, str]], events: Events, allow_lost: float = 0.0
) -> dict[str, Any]:
    """Measures the files, and keeps the report with the run.

    Args:
        variants: files with the names that they are shown under.

    Raises:
        UserError: a file can't be taken in.
    """
    source = workload.source
    trials.put(source.path, source.artifact)
    builds = [trials.build(path, name) for path, name in variants]
    origins = {b.artifact.digest: Origin((), str(path)) for b, (path, _) in zip(builds, variants)}
    origins[source.artifact.digest] = Origin((), str(source.path))
    present, lost = trials.present()
    groups, unable = group(Build(source.artifact, "source"), builds, present, trials.setting())
    evidence, gone = trials.measure(groups, next_step)
    lost.update(gone)
    results = [_result(trials, g, name, evidence[name], lost.get(name, "")) for g in groups for name in g.devices]
    lost.update({u.status.device.name: u.reason for u in unable})
    ended = problem(results, lost, allow_lost)
    report = build(
        trials.ended(ended),
        fleet.model_name,
        source.artifact,
        results,
        origins,
        [],
        summary=f"{type(ended).code}: {ended}" if ended else f"{len(variants)} files measured on {len(results)} devices",
        phases=events.phases,
        notes=[
            *(f"{b.name} is the fleet's own model" for b in builds if b.artifact.digest == source.artifact.digest),
            *(f"{name}: not measured: {why}" for name, why in lost.items()),
        ],
    )
    document = {**report, "kind": "bench", "devices": [{**device, "measured_only": True} for device in report["devices"]]}
    trials.finish(document)
    return document


def _result(trials: Trials, group: Group, device: str, evidence: Evidence, lost: str) -> DeviceResult:
    judgements = tuple(judge(group, entry, evidence) for entry in group.entries)
    choice = None if lost else Choice(device, None, _REASON, judgements)
    return DeviceResult(trials.devices[device], group, evidence, choice, lost=lost)


def judge(group: Group, entry: Entry, evidence: Evidence) -> Judgement:
    """What was measured of one entry; nothing speaks against it but that it failed."""
    launches, left_out = believed(evidence.launches.get(entry.key, ()), group.scenario.kind)
    failure = evidence.failures.get(entry.key)
    why = f"failed: {failure.kind.value}: {failure.detail}" if failure else ""
    if not launches:
        return Judgement(entry, False, why or "not measured: its launches gave nothing")
    said, detail = _verdict(group, entry, evidence, launches)
    numbers = latency(launches), speedup(launches, objective=group.objective)
    return Judgement(entry, not failure, why, *numbers, said, detail, left_out=left_out)


def problem(results: Sequence[DeviceResult], lost: Mapping[str, str], allow_lost: float) -> EdgefarmError | None:
    """The documented end that applies first: a file does not run (3), a device was lost (4), a number can't be believed (8)."""
    judged = [(r, j) for r in results if r.choice for j in r.choice.judgements]
    if failed := [f"{r.status.device.name}: {j.entry.variant} {j.rejected}" for r, j in judged if j.rejected]:
        return NoFeasible("; ".join(failed))
    if len(lost) > allow_lost * max(1, len(results) + len([n for n in lost if n not in {r.status.device.name for r in results}])):
        return DeviceLost("; ".join(f"{name}: {why}" for name, why in lost.items()))
    doubted = [(r, j) for r, j in judged if not j.entry.baseline and j.verdict and j.verdict.value not in r.group.accept]
    if doubted:
        return Inconclusive("; ".join(f"{r.status.device.name}: {j.entry.variant}: {j.verdict_detail}" for r, j in doubted))
    return None

"""Drives one run: optimise, measure, choose, roll out, report. All state is in the store, so a killed driver's successor goes on."""

from __future__ import annotations

import getpass
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from controller.config import Fleet
from controller.config.measure import scenario_of, where_of
from controller.control import Control
from controller.events import Events
from controller.evidence import Evaluation, Evidence, Group
from controller.fleetplan import Build, Setting, Unable, formats_run, group
from controller.knowledge import Knowledge, earlier
from controller.measuring import AWAY, Measuring
from controller.optimizing import Made, Optimizing, may_follow
from controller.report import DeviceResult, build, caveat
from controller.report.kept import keep, kept
from controller.rollout import statement
from controller.scoring import Scoring
from controller.selection import Choice, choose
from controller.workload import Workload
from edgefarm.digest import canonical_json
from edgefarm.errors import DeviceLost, EdgefarmError, Inconclusive, NoFeasible, RolledBack
from edgefarm.model import Deployment, DeploymentState, DeploymentStatus, DeviceStatus, Run
from optimizer.auto import CONVERTED, TRAINED
from optimizer.passes import load_pass, missing_tools, remedy

UNTIL = ("optimize", "measure", "select", "rollout")
_ACTIVATION_S = 300.0


@dataclass
class _Work:
    """What a drive did that was not done before."""

    passes: int = 0
    orders: int = 0
    deployments: int = 0

    @property
    def nothing(self) -> bool:
        return not (self.passes or self.orders or self.deployments)


@dataclass(frozen=True)
class _Measured:
    """What a drive knows when it chooses; `evidence` by group id, `lost`: device -> why it was given up."""

    groups: Sequence[Group]
    unable: Sequence[Unable]
    evidence: Mapping[str, Evidence]
    lost: Mapping[str, str]


class Driver:
    """One drive of a campaign's run.

    Args:
        fleet: the checked fleet file.
        control: the farm.
        workload: model and data.
        state: the state folder; the pipeline's cache lies in it.
        events: where progress goes.
        allow_lost: share of the devices that may be lost without failing the run.
    """

    def __init__(self, fleet: Fleet, control: Control, workload: Workload, state: Path, events: Events, allow_lost: float = 0.0) -> None:
        self._allow_lost = allow_lost
        self._fleet, self._control, self._workload, self._state, self._events = fleet, control, workload, state, events
        self._scoring = Scoring(fleet, workload, control, state / "scores")
        self._work = _Work()
        spec = canonical_json(fleet.spec).decode()
        labels = dict(fleet.file.labels)
        opened = control.open_run(fleet.name, fleet.spec_digest, spec, getpass.getuser(), labels)
        self.run: Run = replace(opened, devices=tuple(t.name for t in fleet.targets))
        self._opened = self.run

    def drive(self, until: str = "rollout", *, retry: bool = False) -> dict[str, Any]:
        """Runs the loop up to a phase; returns the report, which is stored with the run too."""
        self._events.emit("run", f"run {self.run.name}", run=self.run.name)
        if retry:
            self._control.retry(self.run.name)
        optimizing = Optimizing(self._fleet, self._workload, self._state / "variants", self._events, self._formats(), retry=retry)
        with self._events.phase("optimize"):
            self._enter("optimizing")
            optimizing.first()
        results: list[DeviceResult] = []
        if until != "optimize":
            devices = self._devices()
            results = self._choose(self._measure(optimizing, devices), devices, chosen=until != "measure")
        self._work.passes = optimizing.passes
        if until == "rollout":
            with self._events.phase("rollout"):
                self._enter("rolling-out")
                results = self._roll_out(results, retry)
        return self._finish(optimizing.made(), results, until)

    def _enter(self, state: str) -> None:
        self.run = replace(self.run, state=state, exit_code=None, finished_unix_ms=0)
        self._control.update_run(self.run)

    def _measure(self, optimizing: Optimizing, devices: Mapping[str, DeviceStatus]) -> _Measured:
        """Measures, looks at that, makes more, until the search is over and all that can be known is known."""
        knowledge = Knowledge(earlier(self._control, self.run.name))
        setting = self._setting()
        groups, unable = self._groups(optimizing.made(), devices, setting)
        self._warn(groups, devices)
        measuring = Measuring(self.run.name, groups, self._control, self._scoring, self._events)
        searching = may_follow(self._fleet)
        while True:
            with self._events.phase("measure"):
                self._enter("measuring")
                evidence = measuring.go_on(groups, partial(knowledge.next_step, searching=searching), searching=searching)
            if not searching:
                self._work.orders += measuring.submitted
                return _Measured(groups, unable, evidence, measuring.lost)
            plans = optimizing.look(groups, evidence)
            searching = bool(plans)
            if plans:
                with self._events.phase("optimize"):
                    self._enter("optimizing")
                    optimizing.run(plans)
                groups, unable = self._groups(optimizing.made(), devices, setting)

    def _formats(self) -> frozenset[str] | None:
        """Formats that some device may be given; None where none has said what it runs."""
        known = self._devices()
        return formats_run([(t, known[t.name]) for t in self._fleet.targets if t.name in known]) or None

    def _devices(self) -> dict[str, DeviceStatus]:
        return {s.device.name: s for s in self._control.devices()}

    def _setting(self) -> Setting:
        file, control = self._fleet.file, self._control
        selection, report = (tuple(map(control.put, shards)) for shards in self._workload.shards())
        evaluation = Evaluation(selection, self._scoring.reduction, report)
        return Setting(
            self.run.name,
            self._fleet.model_name,
            control.put(self._workload.latency_inputs()),
            evaluation,
            file.select.confidence,
            tuple(file.measure.accept),
            int(file.measure.budget.minutes_per_device * 60e9),
            scenario_of(file.measure.scenario),
            file.measure.window or "",
            where_of(file, self._fleet.document),
            file.measure.fails_on_fallback,
        )

    def _groups(self, made: Made, devices: Mapping[str, DeviceStatus], setting: Setting) -> tuple[list[Group], list[Unable]]:
        source = Build(self._put(self._workload.source.path, self._workload.source.artifact), "source")
        for built in made.builds:
            self._put(Path(made.origins[built.artifact.digest].file), built.artifact)
        targets = [(t, devices[t.name]) for t in self._fleet.targets if t.name in devices]
        lost = [Unable(s, s.reason or "it could not be reached") for _, s in targets if not self._may_measure(s)]
        groups, unable = group(source, made.builds, [(t, s) for t, s in targets if self._may_measure(s)], setting)
        return groups, [*lost, *unable]

    def _may_measure(self, status: DeviceStatus) -> bool:
        """A known device of a running controller may be away for a moment only, e.g. since that was restarted: measuring gives it up."""
        comes_back = self._fleet.controller is not None and status.state == "lost" and bool(status.device.capabilities)
        return comes_back or status.state not in AWAY

    def _warn(self, groups: Sequence[Group], devices: Mapping[str, DeviceStatus]) -> None:
        """Before anything is measured on them."""
        for each in groups:
            for name in each.devices:
                blind = "nothing is measured: energy decides, and no device of its class can read its power" if each.cannot_choose else ""
                for text in filter(None, (caveat(devices[name].device), blind)):
                    self._events.emit("caveat", f"{name}: {text}", device=name)

    def _put(self, main_file: Path, artifact: Any) -> Any:
        for entry in artifact.files:
            if not self._control.has(entry.digest):
                self._control.put(main_file.parent / entry.name)
        return artifact

    def _choose(self, measured: _Measured, devices: Mapping[str, DeviceStatus], *, chosen: bool) -> list[DeviceResult]:
        found: dict[str, DeviceResult] = {}
        lost = measured.lost
        for each in measured.groups:
            for name in each.devices:
                known = measured.evidence[each.id]
                choice = choose(each, known, name) if name not in lost else None
                if choice is not None and not chosen:
                    choice = _undecided(choice)
                found[name] = DeviceResult(devices[name], each, known, choice, lost=lost.get(name, ""))
        for one in measured.unable:
            nothing = Group(self.run.name, self._fleet.model_name, one.status.device_class, (one.status.device.name,), (), "", {}, "",
                            Evaluation((), self._scoring.reduction))  # fmt: skip
            found[one.status.device.name] = DeviceResult(one.status, nothing, Evidence(), None, lost=one.reason)
        return [found[t.name] for t in self._fleet.targets if t.name in found]

    def _roll_out(self, results: Sequence[DeviceResult], retry: bool) -> list[DeviceResult]:
        activate = self._fleet.file.rollout.activate
        wanted: dict[str, Deployment] = {}
        for result in results:
            if result.choice is None or result.choice.inconclusive:
                continue  # what runs there goes on: "can't say" is no reason to change it
            told = statement(result.group, result.choice, result.evidence, activate)
            if told is not None:
                wanted[result.status.device.name] = told
        statuses = self._control.deploy(list(wanted.values()), retry)
        self._work.deployments += sum(s.state is DeploymentState.ORDERED for s in statuses)
        ended = self._control.wait_for_deployments([s.id for s in statuses], _ACTIVATION_S)
        before = {s.device: s for s in self._control.deployments(self._fleet.model_name)}
        by_device: dict[str, DeploymentStatus] = {**before, **{s.device: s for s in ended}}
        for status in ended:
            where = status.path if status.state is DeploymentState.COMMITTED else status.reason
            text = f"{status.device}: generation {status.generation} {status.state.value}: {where}"
            self._events.emit("deployment", text, device=status.device, state=status.state.value)
        return [replace(r, deployment=by_device.get(r.status.device.name)) for r in results]

    def _finish(self, made: Made, results: Sequence[DeviceResult], until: str) -> dict[str, Any]:
        problem = self._problem(results, until)
        done = until == "rollout"
        before = self._opened
        if self._work.nothing and before.has_report and (before.state, before.exit_code) == ("done", 0) and done and not problem:
            return self._as_it_was()
        summary = f"{type(problem).code}: {problem}" if problem else self._summary(results, until)
        self.run = replace(
            self.run,
            state="done" if done else f"done-{until}",
            exit_code=problem.exit_code if problem else 0,
            finished_unix_ms=time.time_ns() // 1_000_000,
        )
        document = build(
            self.run,
            self._fleet.model_name,
            self._workload.source.artifact,
            results,
            made.origins,
            made.failures,
            summary=summary,
            phases=self._events.phases,
            notes=self._notes(made),
        )
        document["variants"] = [
            {"variant": b.name, "artifact": b.artifact.digest, "bytes": b.artifact.bytes, "file": made.origins[b.artifact.digest].file}
            for b in made.builds
        ]
        document["not_built"] = [
            {"variant": f.variant, "stage": "optimize", "kind": f.failure.kind.name, "detail": f.failure.detail} for f in made.failures
        ]
        self.run = replace(self.run, report="", report_digest=keep(document, self._control.put))
        self._control.update_run(self.run)
        return document

    def _as_it_was(self) -> dict[str, Any]:
        """The stored report of a run in which nothing had to be done again."""
        self._control.update_run(self._opened)
        return {
            **kept(self._opened, self._control.get),
            "labels": dict(self._opened.labels),
            "summary": "nothing had to be done again: all passes, measurements and deployments were there",
        }

    def _summary(self, results: Sequence[DeviceResult], until: str) -> str:
        if until == "optimize":
            return "variants are made"
        if until == "measure":
            return "all measurements are taken"
        return f"{len(results)} of {len(self._fleet.targets)} devices have a winner"

    def _problem(self, results: Sequence[DeviceResult], until: str) -> EdgefarmError | None:
        """The first of the documented ends that applies, by exit code's order."""

        def names(chosen: Sequence[DeviceResult]) -> str:
            return "; ".join(f"{r.status.device.name}: {_why(r)}" for r in chosen)

        told = [r for r in results if r.choice and not r.choice.inconclusive and r.deployment and until == "rollout"]
        failed = [r for r in told if r.deployment and r.deployment.state in (DeploymentState.FAILED, DeploymentState.ROLLED_BACK)]
        silent = [r for r in told if r.deployment and r.deployment.state in (DeploymentState.ORDERED, DeploymentState.STAGED)]
        infeasible = [r for r in results if r.choice and r.choice.winner is None and not r.choice.inconclusive]
        lost = [r for r in results if r.choice is None] + silent
        unsure = [r for r in results if r.choice and r.choice.inconclusive]
        if failed:
            return RolledBack(names(failed))
        if infeasible and until in ("select", "rollout"):
            return NoFeasible(names(infeasible))
        if len(lost) > self._allow_lost * len(self._fleet.targets):
            return DeviceLost(names(lost))
        return Inconclusive(names(unsure)) if unsure and until in ("select", "rollout") else None

    def _notes(self, made: Made) -> list[str]:
        notes = []
        if self._workload.same_data:
            n = self._workload.evaluation.n
            notes.append(f"the winner is chosen on the same {n} samples that it is reported on; give data.selection or n >= 400")
        if self._workload.calibration is None:
            notes.append("without data.calibration no static quantisation was tried")
        if self._workload.train is not None and (missing := missing_tools(load_pass(TRAINED))):
            notes.append(f"data.train was not used: training needs {' and '.join(missing)}: pip install 'edgefarm[torch]'")
        notes += self._without_tflite(made)
        used = {b.artifact.format for b in made.builds}
        notes += [f"{a.path.name} was left out: no device runs {a.signature.format}" for a in self._workload.alternatives
                  if a.signature.format not in used]  # fmt: skip
        return notes + made.notes

    def _without_tflite(self, made: Made) -> list[str]:
        """What a device that runs TFLite files would need to be given any."""
        formats = self._formats() or frozenset()
        given = {b.artifact.format for b in made.builds}
        auto = self._fleet.file.optimize.recipes == "auto"
        if not auto or self._workload.source.signature.format != "onnx" or "tflite" not in formats - given:
            return []
        used = load_pass(CONVERTED)
        return [f"no variant is a TFLite file, which some devices run: {remedy(used)}"] if missing_tools(used) else []


def _undecided(choice: Choice) -> Choice:
    """What was measured, without saying who wins."""
    judgements = tuple(replace(j, rejected="" if j.feasible else j.rejected) for j in choice.judgements)
    return replace(choice, winner=None, reason="not chosen: the run stopped after measuring", judgements=judgements, inconclusive=False)


def _why(result: DeviceResult) -> str:
    if result.deployment is not None and result.deployment.state is not DeploymentState.COMMITTED:
        return result.deployment.reason or f"its deployment is {result.deployment.state.value}: no answer in time"
    return result.lost or (result.choice.reason if result.choice else "not measured")

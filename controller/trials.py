"""One drive of a run that measures given models and rolls nothing out: what `bench` and `compare` share."""

from __future__ import annotations

import getpass
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from controller.config import Fleet
from controller.config.enrolled import matches
from controller.config.fleet import Target
from controller.config.measure import scenario_of
from controller.control import Control
from controller.events import Events
from controller.evidence import Evaluation, Evidence, Group
from controller.fleetplan import Build, Setting, Unable, group
from controller.measuring import AWAY, Measuring
from controller.planner import Step
from controller.report import caveat
from controller.report.kept import keep
from controller.scoring import Scoring
from controller.workload import Workload
from edgefarm.digest import canonical_json
from edgefarm.errors import EdgefarmError, UserError
from edgefarm.model import Artifact, DeviceStatus, Run
from optimizer.passes import ALTERNATIVE
from optimizer.pipeline import Failed, Pipeline, Variant
from optimizer.recipe import Plan
from optimizer.recipe import Step as PassStep
from optimizer.signature import TensorSpec
from optimizer.source import Source, load_source


class Trials:
    """A drive. An interrupted one goes on when the same is asked again; one that ended is a run of the past, and a new one begins.

    Args:
        kind: `bench` or `compare`; the campaign is NAME-KIND.
        question: JSON value; what makes it another run.
        state: the state folder; the pipeline's cache lies in it.
    """

    def __init__(
        self, fleet: Fleet, control: Control, workload: Workload, state: Path, events: Events, kind: str, question: Mapping[str, Any]
    ) -> None:
        self._fleet, self._control, self._workload, self._state, self._events = fleet, control, workload, state, events
        self._scoring = Scoring(fleet, workload, control, state / "scores")
        self.devices: dict[str, DeviceStatus] = {s.device.name: s for s in control.devices()}
        campaign = f"{fleet.name}-{kind}"
        ended = sum(r.ended for r in control.runs(campaign, brief=True))
        spec = canonical_json({"fleet": fleet.spec, kind: dict(question), "earlier": ended})
        opened = control.open_run(campaign, digest_of(spec), spec.decode(), getpass.getuser(), dict(fleet.file.labels))
        self.run: Run = replace(opened, devices=tuple(t.name for t in fleet.targets), state="measuring", exit_code=None)
        control.update_run(self.run)
        events.emit("run", f"run {self.run.name}", run=self.run.name)

    @property
    def targets(self) -> list[Target]:
        """Devices of the fleet, open to any format: what is measured is given, and nothing is activated."""
        return [replace(t, formats=()) for t in self._fleet.targets]

    def build(self, path: Path, name: str) -> Build:
        """Takes in a model file; finds how its tensors map to those of the fleet's model where they are called otherwise.

        Raises:
            UserError: not a model, or one that can't be fed with the fleet's data.
        """
        given = load_source(path)
        source = self._workload.source
        if not _fed_alike(given.signature.inputs, source.signature.inputs):
            return self._mapped(given, name)
        self.put(given.path, given.artifact)
        return Build(given.artifact, name)

    def _mapped(self, given: Source, name: str) -> Build:
        plan = Plan(given.signature.format, (PassStep(ALTERNATIVE, {"file": given.path.name, "digest": given.artifact.digest}),))
        pipeline = Pipeline(self._state / "variants")
        outcome = pipeline.run(self._workload.source, [plan], None, self._workload.probe(), retry=True, others=[given])[0]
        if isinstance(outcome, Variant):
            self.put(outcome.main_file, outcome.artifact)
            return Build(outcome.artifact, name, outcome.io)
        why = outcome.failure.detail.removeprefix(f"{ALTERNATIVE}: ") if isinstance(outcome, Failed) else outcome.reason
        wanted = ", ".join(f"{i.name}: {i}" for i in self._workload.source.signature.inputs)
        raise UserError(f"{given.path}: its inputs are not those of {self._fleet.model.name} ({wanted}), and no mapping was found: {why}")

    def put(self, main_file: Path, artifact: Artifact) -> None:
        """Gives the files of an artifact to the controller, as far as it has not got them."""
        for entry in artifact.files:
            if not self._control.has(entry.digest):
                self._control.put(main_file.parent / entry.name)

    def has(self, artifact: Artifact) -> bool:
        """Whether the controller holds all files of an artifact."""
        return all(self._control.has(f.digest) for f in artifact.files)

    def setting(self) -> Setting:
        """What all groups share."""
        file = self._fleet.file
        selection, report = (tuple(map(self._control.put, shards)) for shards in self._workload.shards())
        return Setting(
            self.run.name,
            self._fleet.model_name,
            self._control.put(self._workload.latency_inputs()),
            Evaluation(selection, self._scoring.reduction, report),
            file.select.confidence,
            tuple(file.measure.accept),
            int(file.measure.budget.minutes_per_device * 60e9),
            scenario_of(file.measure.scenario),
            file.measure.window or "",
            fail_on_fallback=file.measure.fails_on_fallback,
        )

    def present(self) -> tuple[list[tuple[Target, DeviceStatus]], dict[str, str]]:
        """Devices that may measure, and why others do not."""
        able: list[tuple[Target, DeviceStatus]] = []
        lost: dict[str, str] = {}
        for target in self.targets:
            status = self.devices.get(target.name)
            comes_back = status is not None and status.state == "lost" and bool(status.device.capabilities) and self._fleet.controller
            if status is None or (status.state in AWAY and not comes_back):
                lost[target.name] = (status.reason if status else "") or "it could not be reached"
            elif not self._meant(target):
                self._events.emit("left-out", f"{target.name}: left out: 'measure.where' does not mean it", device=target.name)
            else:
                able.append((target, status))
        return able, lost

    def _meant(self, target: Target) -> bool:
        where = self._fleet.file.measure.where
        return where is None or matches(where, self.devices[target.name].device.labels)

    def grouped(self, base: Build, others: Sequence[Build], device: tuple[Target, DeviceStatus], setting: Setting) -> Group | Unable:
        """The candidates of one device; the first build is what ratios are taken to."""
        groups, unable = group(base, others, [device], setting)
        return unable[0] if unable else groups[0]

    def measure(self, groups: Sequence[Group], plan: Callable[[Group, Evidence], Step]) -> tuple[dict[str, Evidence], dict[str, str]]:
        """Measures what a planner asks for. Returns evidence by device, and the devices that were lost, with the reason."""
        for each in groups:
            for name in each.devices:
                if text := caveat(self.devices[name].device):
                    self._events.emit("caveat", f"{name}: {text}", device=name)
        with self._events.phase("measure"):
            measuring = Measuring(self.run.name, groups, self._control, self._scoring, self._events, plan)
            found = measuring.run()
        return {name: found[g.id] for g in groups for name in g.devices}, measuring.lost

    def ended(self, problem: EdgefarmError | None) -> Run:
        """The run as it has ended."""
        finished = time.time_ns() // 1_000_000
        self.run = replace(self.run, state="done", exit_code=problem.exit_code if problem else 0, finished_unix_ms=finished)
        return self.run

    def finish(self, document: Mapping[str, Any]) -> None:
        """Keeps the report with the run."""
        self.run = replace(self.run, report="", report_digest=keep(document, self._control.put))
        self._control.update_run(self.run)


def digest_of(spec: bytes) -> str:
    """Digest of a run's spec."""
    return "sha256:" + hashlib.sha256(spec).hexdigest()


def _fed_alike(first: Sequence[TensorSpec], second: Sequence[TensorSpec]) -> bool:
    """Whether both take the same tensors by name, type and shape, as far as the files say."""
    return {i.name: _form(i) for i in first} == {i.name: _form(i) for i in second}


def _form(spec: TensorSpec) -> tuple[str, tuple[int | None, ...]]:
    return spec.dtype, tuple(None if index == 0 else size for index, size in enumerate(spec.shape))

"""The optimise phase of a run: look by look it runs plans, and keeps what became of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from controller import feedback
from controller.config import Fleet
from controller.config.lines import parse
from controller.events import Events
from controller.evidence import Evidence, Group
from controller.fleetplan import Build
from controller.report.candidate import Origin
from controller.report.document import OptimizeFailure
from controller.workload import Workload
from edgefarm.errors import UserError
from optimizer import search
from optimizer.auto import weighted_layers
from optimizer.passes import ALTERNATIVE
from optimizer.pipeline import Event, Failed, Pipeline, PlanOutcome, Skipped, Variant
from optimizer.recipe import Plan, RecipeError, alternatives, expand
from optimizer.source import Source

_TELL_EVERY_S = 10.0  # of one plan's training
_PLANS_LIMIT = 1000  # of the product of a recipe's choices


@dataclass
class Made:
    """Variants and failures of all looks so far."""

    builds: list[Build] = field(default_factory=list)
    origins: dict[str, Origin] = field(default_factory=dict)
    failures: list[OptimizeFailure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Optimizing:
    """What a run makes of its model.

    Args:
        formats: those that some device may be given; None: not known.
        retry: passes that failed before are run again.

    Attributes:
        passes: those that were not in the cache.
    """

    def __init__(
        self, fleet: Fleet, workload: Workload, cache: Path, events: Events, formats: frozenset[str] | None, *, retry: bool = False
    ) -> None:
        self._fleet, self._workload, self._events, self._formats, self._retry = fleet, workload, events, formats, retry
        asked = fleet.file.optimize.budget
        self._budget = search.Budget(asked.variants, asked.minutes)
        self._pipeline = Pipeline(cache)
        self._given: Sequence[PlanOutcome] = ()
        self._looks: list[list[PlanOutcome]] = []
        self._notes: list[str] = []
        self._told: dict[str, float] = {}
        self._minutes = 0.0  # spent on what is over
        self.passes = 0

    def first(self) -> None:
        """The user's other files, and the plans that the model suggests. Raises UserError for a file that is not the model."""
        workload, others, began = self._workload, self._workload.alternatives, time.monotonic()
        plans = make_plans(self._fleet, workload, self._formats)
        taken = alternatives(workload.space(self._formats))
        self._given = self._pipeline.run(
            workload.source, taken, workload.calibration, workload.probe(), self._on_pass, retry=True, others=others
        )  # fmt: skip
        _refuse_what_differs(self._given, others)
        self._minutes = (time.monotonic() - began) / 60
        self.run(plans)

    def look(self, groups: Sequence[Group], evidence: Mapping[str, Evidence]) -> Sequence[Plan]:
        """The plans that what devices showed suggests; none: the search is over.

        Args:
            evidence: by group id.
        """
        layers = max(weighted_layers(s.signature) for s in (self._workload.source, *self._workload.alternatives))
        outcomes, samples = [[*self._given, *self._looks[0]], *self._looks[1:]], self._workload.calibration is not None
        results = feedback.results(outcomes, groups, evidence, layers, samples=samples)
        step = search.look(results, self._ended(), self._budget, self._minutes)
        number = len(self._looks) + 1
        if isinstance(step, search.Finished):
            looks = "1 look" if number == 2 else f"{number - 1} looks"
            text = f"the search ended after {looks}: {step.reason}"
            self._notes.append(text + (f"; not tried: {', '.join(p.name for p in step.left)}" if step.left else ""))
            self._events.emit("look", text, number=number - 1, ended=step.reason, proposals=[])
            return ()
        proposals = [{"plan": p.name, "reason": reason} for p, reason in zip(step.plans, step.reasons)]
        text = "\n".join([f"look {number}:", *(f"          {p['plan']}: {p['reason']}" for p in proposals)])
        self._events.emit("look", text, number=number, proposals=proposals)
        return step.plans

    def made(self) -> Made:
        """All that there is by now."""
        made = _gathered(self._workload, [[*self._given, *self._looks[0]], *self._looks[1:]])
        made.notes += self._notes
        return made

    def run(self, plans: Sequence[Plan]) -> None:
        """Runs the plans of a look as far as the budget reaches."""
        workload, began, found = self._workload, time.monotonic(), list[PlanOutcome]()
        self._looks.append(found)

        def minutes() -> float:
            return self._minutes + (time.monotonic() - began) / 60

        while isinstance(step := search.step(plans, self._ended(), self._budget, minutes()), search.Next):
            found += self._pipeline.run(
                workload.source,
                step.plans,
                workload.calibration,
                workload.probe(),
                self._on_pass,
                cancelled=lambda: minutes() > self._budget.minutes,
                retry=self._retry,
                others=workload.others,
                train=workload.train,
            )
        self._minutes = minutes()
        if step.left:
            self._notes.append(f"{len(step.left)} plans were not run: {step.reason}: {', '.join(p.name for p in step.left)}")
        self._tell(len(plans))

    def _ended(self) -> set[str]:
        """Keys of the plans that have ended and count; a variant may stand for several."""
        outcomes = (o for look in self._looks for o in look)
        return {plan.key for o in outcomes for plan in (o.plans if isinstance(o, Variant) else (o.plan,))}

    def _tell(self, plans: int) -> None:
        builds = [b.name for b in self.made().builds if b.look == len(self._looks)]
        failed = [o.plan.name for o in self._looks[-1] if isinstance(o, Failed)]
        text = f"{len(builds)} variants from {plans} plans" + (f", {len(failed)} failed" if failed else "")
        self._events.emit("optimized", text, variants=builds, failed=failed)

    def _on_pass(self, event: Event) -> None:
        if event.kind not in ("started", "working") and not event.cached:
            self.passes += 1
        told = event.kind in ("changed", "failed") and not event.cached
        if event.kind == "working" and time.monotonic() - self._told.get(event.plan, -_TELL_EVERY_S) >= _TELL_EVERY_S:
            self._told[event.plan], told = time.monotonic(), True
        drift = "" if event.drift is None else f", drift {event.drift:.2g}"
        text = f"{event.plan}: {event.pass_name}: {'failed: ' if event.kind == 'failed' else ''}{event.detail}{drift}" if told else ""
        told_too = {"kind": event.kind, "cached": event.cached, "drift": event.drift}
        self._events.emit("pass", text, plan=event.plan, passed=event.pass_name, **told_too)


def may_follow(fleet: Fleet) -> bool:
    """Whether what devices show may suggest more plans: what users wrote themselves is all that they want."""
    return fleet.file.optimize.recipes == "auto"


def make_plans(fleet: Fleet, workload: Workload, formats: frozenset[str] | None = None) -> list[Plan]:
    """All plans that the fleet file asks for, with results in `formats` (None: any). Raises FleetFileError for one that cannot be."""
    try:
        return expand(fleet.file.optimize.recipes, workload.space(formats), _PLANS_LIMIT)
    except RecipeError as error:
        raise fleet.document.error(error.message, parse(error.field)) from error


def _refuse_what_differs(outcomes: Sequence[PlanOutcome], alternatives: Sequence[Source]) -> None:
    """Raises UserError for an alternative that is not the source's network."""
    paths = {a.artifact.digest: a.path for a in alternatives}
    for outcome in outcomes:
        if isinstance(outcome, Failed):
            file = paths[str(outcome.plan.steps[0].parameters["digest"])]
            raise UserError(f"{file}: {outcome.failure.detail.removeprefix(f'{ALTERNATIVE}: ')}")


def _gathered(workload: Workload, looks: Sequence[Sequence[PlanOutcome]]) -> Made:
    """What there is to measure and to report; bytes that an earlier look had are that look's."""
    made = Made()
    made.origins[workload.source.artifact.digest] = Origin((), str(workload.source.path))
    for number, outcome in ((n, o) for n, look in enumerate(looks, start=1) for o in look):
        if isinstance(outcome, Variant) and outcome.artifact.digest not in made.origins:
            lineage = [step.as_json() for step in outcome.lineage]
            made.origins[outcome.artifact.digest] = Origin(lineage, str(outcome.main_file))
            made.builds.append(Build(outcome.artifact, outcome.name, outcome.io, outcome.plain, number, outcome.form))
        elif isinstance(outcome, Failed):
            made.failures.append(OptimizeFailure(outcome.plan.name, outcome.failure))
        elif isinstance(outcome, Skipped):
            made.notes.append(f"no variant from plan {outcome.plan.name}: {outcome.reason}")
    return made

"""The measuring phase: asks the planner, gives orders, gathers evidence, until nothing more is wanted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from controller.control import Control
from controller.events import Events
from controller.evidence import Evidence, Group, fold
from controller.planner import Step, next_step
from controller.scoring import Scoring
from edgefarm.model import LatencyWork, Order, OrderState, Progress

_POLL_S = 1.0
_TELL_EVERY_S = 10.0
LOST_AFTER_S = 90.0  # a device away for longer is given up for this run


class Measuring:
    """One pass through the planner's stages for all groups of a run.

    Attributes:
        lost: device -> why it was given up.
        submitted: orders that were not known before.
    """

    def __init__(self, run: str, groups: Sequence[Group], control: Control, scoring: Scoring, events: Events) -> None:
        self._run, self._groups, self._control, self._scoring, self._events = run, groups, control, scoring, events
        self.lost: dict[str, str] = {}
        self.submitted = 0
        self._away_since: dict[str, float] = {}
        self._told: dict[tuple[str, str], float] = {}

    def run(self) -> dict[str, Evidence]:
        """Measures until all that can be known is known; returns evidence by group id."""
        since = -1
        while True:
            progress = self._control.progress(self._run, since, _POLL_S)
            since = progress.revision
            evidence = {g.id: self._evidence(g, progress) for g in self._groups}
            wanted = [order for g in self._groups for order in self._wanted(g, evidence[g.id], progress)]
            if not wanted:
                return evidence
            self._submit(wanted, progress)
            self._watch_devices()

    def _evidence(self, group: Group, progress: Progress) -> Evidence:
        evidence = fold(progress.orders, group.device_class, {})
        scores = {}
        base = evidence.accuracy.get(group.baseline.key)
        if base is not None:
            for entry in group.entries:
                result = evidence.accuracy.get(entry.key)
                if result is not None:
                    scores[entry.key] = self._scoring.scores(result, base)
        return replace(evidence, scores=scores)

    def _wanted(self, group: Group, evidence: Evidence, progress: Progress) -> tuple[Order, ...]:
        present = tuple(name for name in group.devices if name not in self.lost)
        if not present:
            return ()
        step = next_step(replace(group, devices=present), evidence)
        if step.orders:
            self._tell(group, present, step, progress)
        return step.orders

    def _tell(self, group: Group, present: Sequence[str], step: Step, progress: Progress) -> None:
        """One event per stage, then one every few seconds with what has arrived of it."""
        now, since = time.monotonic(), self._told.get((group.id, step.stage))
        if since is not None and now - since < _TELL_EVERY_S:
            return
        self._told[group.id, step.stage] = now
        wanted = {o.id for o in step.orders}
        total = sum(_launches(o) for o in step.orders)
        arrived = sum(len(s.attempts) for s in progress.orders if s.order.id in wanted)
        text = f"{', '.join(present)}: {step.stage}: {arrived} of {total} launches"
        fields = {"devices": list(present), "stage": step.stage, "arrived": arrived, "total": total}
        self._events.emit("stage" if since is None else "progress", text, **fields)

    def _submit(self, wanted: Sequence[Order], progress: Progress) -> None:
        known: Mapping[str, OrderState] = {s.order.id: s.state for s in progress.orders}
        new = [order for order in wanted if order.id not in known]
        if new:
            self._control.submit(new)
            self.submitted += len(new)

    def _watch_devices(self) -> None:
        """Gives up a device that stays away, so that the others' run can end."""
        now = time.monotonic()
        for status in self._control.devices():
            name = status.device.name
            if status.state != "lost":
                self._away_since.pop(name, None)
            elif now - self._away_since.setdefault(name, now) > LOST_AFTER_S and name not in self.lost:
                self.lost[name] = status.reason or f"no sign of life for {LOST_AFTER_S:.0f} s"
                self._events.emit("device-lost", f"{name}: given up: {self.lost[name]}", device=name)


def _launches(order: Order) -> int:
    return len(order.work.launches) if isinstance(order.work, LatencyWork) else 1

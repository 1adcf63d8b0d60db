"""The measuring phase: asks the planner, gives orders, gathers evidence, until nothing more is wanted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from controller import waits
from controller.control import Control
from controller.events import Events
from controller.evidence import CONTROL, SCREEN, Evidence, Group, Scores, fold, stage_of
from controller.planner import Step, next_step, stages_of_search
from controller.scoring import Scoring
from edgefarm.model import Attempt, Failure, FailureKind, LatencyWork, Order, OrderState, Progress, Wait

_POLL_S = 1.0
_LOOK_EVERY_S = 1.0  # at devices, and at what orders wait for
_TELL_EVERY_S = 10.0
LOST_AFTER_S = 90.0  # a device away for longer is given up for this run
COMES_WITHIN_S = 30.0  # the same, of one that was away when the drive began
AWAY = ("lost", "needs_upgrade")  # states of devices that take no orders and will not without somebody's help


class Measuring:
    """Passes through the planner's stages for all groups of a run.

    Attributes:
        lost: device -> why it was given up.
        submitted: orders that were not known before.

    Args:
        plan: says what a group wants next.
    """

    def __init__(
        self, run: str, groups: Sequence[Group], control: Control, scoring: Scoring, events: Events,
        plan: Callable[[Group, Evidence], Step] = next_step,
    ) -> None:  # fmt: skip
        self._plan, self._searching = plan, False
        self._run, self._groups, self._control, self._scoring, self._events = run, groups, control, scoring, events
        self.lost: dict[str, str] = {}
        self.submitted = 0
        self._away_since: dict[str, float] = {}
        self._seen: set[str] = set()
        self._tried_again: set[str] = set()
        self._told: dict[tuple[str, str], float] = {}
        self._waits: Sequence[Wait] = ()
        self._looked = -math.inf

    def go_on(self, groups: Sequence[Group], plan: Callable[[Group, Evidence], Step], *, searching: bool = False) -> dict[str, Evidence]:
        """As `run`, for groups that have more candidates by now, or for a planner that wants more of them.

        Args:
            searching: what is only asked of winners is no evidence.
        """
        self._groups, self._plan, self._searching = groups, plan, searching
        self._told.clear()
        return self.run()

    def run(self) -> dict[str, Evidence]:
        """Measures until all that can be known is known; returns evidence by group id."""
        since = -1
        while True:
            progress = self._control.progress(self._run, since, _POLL_S)
            since = progress.revision
            if self._try_again(progress):
                continue
            evidence = {g.id: self._evidence(g, progress) for g in self._groups}
            wanted = [order for g in self._groups for order in self._wanted(g, evidence[g.id], progress)]
            self._cancel_unwanted(wanted, progress)
            if not wanted:
                return evidence
            self._submit(wanted, progress)
            self._look_around()

    def _cancel_unwanted(self, wanted: Sequence[Order], progress: Progress) -> None:
        """Takes back screening that a spent budget no longer allows, and at the end all that is still open."""
        names = {o.id for o in wanted}
        queued = {s.order.id for s in progress.orders if s.state is OrderState.QUEUED and stage_of(s.order.id) == SCREEN}
        still_open = {s.order.id for s in progress.orders if s.state in (OrderState.QUEUED, OrderState.SENT)}
        unwanted = sorted((queued if wanted else still_open) - names)
        if unwanted:
            self._control.cancel(self._run, unwanted)

    def _try_again(self, progress: Progress) -> bool:
        """What did not reach a device (a full disk, a broken link) tells nothing of a candidate: once in a drive it is sent again."""
        failed = {s.order.id for s in progress.orders if s.state is OrderState.DONE and any(map(_not_transferred, s.attempts))}
        again = failed - self._tried_again
        if again:
            self._tried_again |= again
            self.submitted += len(again)
            self._control.retry(self._run, again)
        return bool(again)

    def _evidence(self, group: Group, progress: Progress) -> Evidence:
        evidence = fold([s for s in progress.orders if self._concerns(group, s.order)], group.device_class, {})
        base, base_reported = evidence.accuracy.get(group.baseline.key), evidence.evaluated.get(group.baseline.key)
        scores: dict[str, Scores] = {}
        failures = dict(evidence.failures)
        for entry in group.entries if base else ():
            if base is not None and (result := evidence.accuracy.get(entry.key)) is not None:
                reported = evidence.evaluated.get(entry.key)
                scored = self._scoring.scores((result, base), (reported, base_reported) if reported and base_reported else None)
                if isinstance(scored, Failure):
                    failures[entry.key] = scored
                else:
                    scores[entry.key] = scored
        return replace(evidence, scores=scores, failures=failures)

    def _concerns(self, group: Group, order: Order) -> bool:
        """Whether an order is evidence. What was ordered later than the present look is not: a restart finds what there was then."""
        if order.device not in ("", *group.devices) or not _keys(order) <= {CONTROL, *(e.key for g in self._groups for e in g.entries)}:
            return False
        return not self._searching or stage_of(order.id) in stages_of_search(group)

    def _wanted(self, group: Group, evidence: Evidence, progress: Progress) -> tuple[Order, ...]:
        present = tuple(name for name in group.devices if name not in self.lost)
        if not present or group.cannot_choose:
            return ()
        if group.only_on and not set(group.only_on) - set(self.lost):
            reason = f"'measure.where' lets only {', '.join(group.only_on)} measure for its class, and that is lost"
            self.lost.update(dict.fromkeys(present, reason))
            return ()
        step = self._plan(replace(group, devices=present), evidence)
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
        mine = [w for w in self._waits if w.device in present]
        text = "; ".join(filter(None, [f"{', '.join(present)}: {step.stage}: {arrived} of {total} launches", waits.told(mine)]))
        fields = {"devices": list(present), "stage": step.stage, "arrived": arrived, "total": total, "waits": waits.as_json(mine)}
        self._events.emit("stage" if since is None else "progress", text, **fields)

    def _submit(self, wanted: Sequence[Order], progress: Progress) -> None:
        known: Mapping[str, OrderState] = {s.order.id: s.state for s in progress.orders}
        new = [order for order in wanted if order.id not in known]
        if new:
            self._control.submit(new)
            self.submitted += len(new)

    def _look_around(self) -> None:
        now = time.monotonic()
        if now - self._looked >= _LOOK_EVERY_S:
            self._looked = now
            self._watch_waits()
            self._watch_devices(now)

    def _watch_waits(self) -> None:
        """One event whenever other reasons to wait come up or are over. That others come first is told with the progress: it is usual."""
        before, self._waits = {_reason(w) for w in self._waits}, self._control.waits(self._run)
        if {_reason(w) for w in self._waits} != before:
            new = [w for w in self._waits if _reason(w) not in before and w.state != "busy"]
            self._events.emit("waits", waits.told(new), waits=waits.as_json(self._waits))

    def _watch_devices(self, now: float) -> None:
        """Gives up a device that stays away, so that the others' run can end. While orders wait for a window, none needs to be there."""
        waiting = any(w.state == "window" for w in self._waits)
        windowed = {name for g in self._groups if g.window and waiting for name in g.devices}
        for status in self._control.devices():
            name = status.device.name
            if name in windowed:
                self._away_since.pop(name, None)
                continue
            if status.state not in AWAY:
                self._away_since.pop(name, None)
                self._seen.add(name)
                continue
            limit_s = LOST_AFTER_S if name in self._seen else COMES_WITHIN_S
            if now - self._away_since.setdefault(name, now) > limit_s and name not in self.lost:
                self.lost[name] = status.reason or f"no sign of life for {limit_s:.0f} s"
                self._events.emit("device-lost", f"{name}: given up: {self.lost[name]}", device=name)


def _reason(wait: Wait) -> tuple[object, ...]:
    """What makes it another one. Whose order comes first changes all the time, and two clocks never quite agree when a window opens."""
    return wait.device, wait.state, wait.until_unix_ms if wait.state != "window" else 0, wait.holder if wait.state != "busy" else ""


def _keys(order: Order) -> set[str]:
    work = order.work
    return {c.key for c in (work.contenders if isinstance(work, LatencyWork) else (work.contender,))}


def _launches(order: Order) -> int:
    return len(order.work.launches) if isinstance(order.work, LatencyWork) else 1


def _not_transferred(attempt: Attempt) -> bool:
    return isinstance(attempt.outcome, Failure) and attempt.outcome.kind is FailureKind.TRANSFER

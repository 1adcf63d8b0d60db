"""Measures a comparison on the devices of a fleet, through `Control`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from controller.compare import document, planning
from controller.compare.judging import find
from controller.compare.outcome import problem
from controller.compare.pairing import Given, pair
from controller.compare.rules import Rules
from controller.compare.sides import FileSide, Side, candidates_of, report_of
from controller.control import Control
from controller.events import Events
from controller.evidence import Group
from controller.report.kept import kept
from controller.trials import Trials
from edgefarm.digest import digest_file
from edgefarm.errors import UserError


def compare(
    trials: Trials, control: Control, sides: tuple[Side, Side], rules: Rules, events: Events, allow_lost: float = 0.0
) -> dict[str, Any]:
    """Measures both sides on every device, and keeps the answer with the run.

    Raises:
        UserError: a side can't be taken in.
    """
    base, new = (_given(side, trials, control) for side in sides)
    setting = trials.setting()
    present, lost = trials.present()
    groups: list[Group] = []
    for device in present:
        found = pair(base, new, device, lambda first, second, one: trials.grouped(first, [second], one, setting))
        if isinstance(found, Group):
            groups.append(found)
        else:
            lost[device[0].name] = found
    evidence, gone = trials.measure(groups, partial(planning.next_step, rules=rules))
    lost.update(gone)
    findings = {g.devices[0]: find(g, evidence[g.devices[0]], rules) for g in groups if g.devices[0] not in lost}
    ended = problem(list(findings.values()), lost, rules, allow_lost)
    answer = {
        **document.head(base.name, new.name, rules, list(findings.values()), lost, ended),
        **document.of_run(trials.ended(ended)),
        "phases_s": {name: round(seconds, 2) for name, seconds in events.phases.items()},
        "devices": [
            document.measured(findings[g.devices[0]], g, trials.devices[g.devices[0]], rules) for g in groups if g.devices[0] in findings
        ],
    }
    trials.finish(answer)
    return answer


def question(sides: tuple[Side, Side], rules: Rules) -> Mapping[str, Any]:
    """What makes a comparison the same one: an interrupted one goes on."""
    told = [[str(s), digest_file(s.path)] if isinstance(s, FileSide) and s.path.is_file() else [str(s)] for s in sides]
    return {"sides": told, "rules": vars(rules)}


def _given(side: Side, trials: Trials, control: Control) -> Given:
    if isinstance(side, FileSide):
        return Given(side.shown, anywhere=trials.build(side.path, side.shown))
    by_device = candidates_of(side, report_of(side, partial(_report, control)))
    for candidate, _ in by_device.values():
        if not trials.has(candidate.artifact):
            raise UserError(f"{side}: the controller has no longer got its bytes ({candidate.artifact.digest}): give the file instead")
    return Given(str(side), by_device=by_device)


def _report(control: Control, name: str) -> dict[str, Any]:
    """The report of a run by its name. Raises UserError."""
    known = control.runs(name.partition("@")[0])
    found = next((r for r in known if r.name == name), None)
    if found is None:
        there = ", ".join(r.name for r in known) or "none of that campaign"
        raise UserError(f"no run is named '{name}'; there are: {there}")
    return kept(found, control.get)

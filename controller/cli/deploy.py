"""`controller deploy`: the whole loop."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from controller import estimate, preflight
from controller.cli.connect import DRIVING_PATIENCE_S
from controller.cli.verb import ControllerOption, FleetOption, JsonOption, StateOption, fleet_of, plain, report_width, verb
from controller.config import Fleet
from controller.config.enrolled import runtimes
from controller.control import Control
from controller.driver import UNTIL, Driver
from controller.events import Events
from controller.fleetplan import formats_expected
from controller.hosted import Hosted, LocalDevice, driver_lock
from controller.login import connected
from controller.optimizing import make_plans, may_follow
from controller.planner import FINALISTS, LAUNCHES, ROUND
from controller.report import FORMS, render
from controller.sources import ready
from controller.workload import Workload, load_workload
from edgefarm.errors import StorageError, UserError
from edgefarm.model import DeviceStatus

_ROUGH = "rough: they take inferences to last some milliseconds, and leave optimising and rollout out; devices of one machine take turns"
_PROVING_S = 120  # a slow board loads each runtime once
_FETCHED = "fetched"  # of a state folder: what a running controller gave
_REPORT_NAMES = {"table": "report.txt", "json": "report.json", "html": "report.html", "csv": "report.csv", "junit": "report.xml"}


@verb
def deploy(
    fleet: FleetOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print plans, rounds and an estimate; run nothing.")] = False,
    until: Annotated[str, typer.Option(metavar="|".join(UNTIL), help="Stop after this phase.")] = "rollout",
    json_: JsonOption = False,
    events: Annotated[Path | None, typer.Option(metavar="FILE", help="Append progress as JSON lines.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the report there in every form.")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Lift what failed before: quarantines, failed deployments.")] = False,
    allow_unreachable: Annotated[str, typer.Option(metavar="PERCENT", help="Share of devices that may be lost, e.g. 10%.")] = "0%",
    state: StateOption = None,
    controller: ControllerOption = None,
) -> None:
    """Optimise, measure on every device, choose, and activate the winners. Goes on where an earlier call stopped.

    Example: controller deploy --fleet edge.yaml
    """
    if until not in UNTIL:
        raise UserError(f"--until {until}: not a phase; one of {', '.join(UNTIL)}")
    allowed = percent(allow_unreachable, "--allow-unreachable")
    if report is not None and report.exists() and not report.is_dir():
        raise UserError(f"--report {report}: not a folder; the report is written there in every form")
    given = fleet_of(fleet, controller)
    folder = given.state(state)
    if dry_run:
        with tempfile.TemporaryDirectory(prefix="edgefarm-plan-") as aside, Events() as sink:
            loaded, workload = _ready(given, Path(aside), sink)
            _print_plan(_enlisted(loaded, folder), workload, as_json=json_)
        return
    with Events(events) as sink:
        loaded, workload = _ready(given, folder, sink)
        with controlled(loaded, folder) as (fleet_, control):
            document = Driver(fleet_, control, workload, folder, sink, allow_lost=allowed).drive(until, retry=retry)
    if report is not None:
        _write_report(document, report)
    print(json.dumps(document) if json_ else plain(render(document, "table", report_width())), end="\n" if json_ else "")
    if code := document["exit_code"]:
        print(f"error: {document['summary']}", file=sys.stderr)
        raise typer.Exit(code)


def _ready(fleet: Fleet, folder: Path, events: Events) -> tuple[Fleet, Workload]:
    """The fleet with its source, and what it works with, held against each other."""
    loaded = ready(fleet, folder, events)
    workload = load_workload(loaded)
    preflight.check(loaded, workload)
    return loaded, workload


@contextlib.contextmanager
def controlled(fleet: Fleet, folder: Path, campaign: str = "") -> Iterator[tuple[Fleet, Control]]:
    """The fleet with all its devices, and what holds them: hosted here, or a running controller, of which a campaign is held meanwhile.

    Args:
        campaign: default: the fleet's own.
    """
    if fleet.controller is None:
        devices = [LocalDevice(t.name, t.runtimes, t.threads, t.labels) for t in fleet.targets]
        with Hosted(folder, devices) as hosted:
            yield fleet, hosted.control
        return
    with driver_lock(folder), connected(fleet.controller, folder / _FETCHED, DRIVING_PATIENCE_S) as client:
        known = enlisted(fleet, client.devices)
        with client.driving(campaign or fleet.name):
            yield known, client


def _enlisted(fleet: Fleet, folder: Path) -> Fleet:
    if fleet.controller is None:
        return fleet
    with connected(fleet.controller, folder / _FETCHED, DRIVING_PATIENCE_S) as client:
        return enlisted(fleet, client.devices)


def enlisted(fleet: Fleet, devices: Callable[[], Sequence[DeviceStatus]], pause: Callable[[float], object] = time.sleep) -> Fleet:
    """The fleet with its devices. Those that have yet to prove what they can run, as just after enrolling, are waited for.

    Args:
        devices: asks the controller.
        pause: waits for so many seconds.
    """
    for waited in range(_PROVING_S + 1):
        known = devices()
        found = fleet.enlist(known)
        meant = {d.name for _, d in found.enlisted}
        proving = [s.device.name for s in known if s.state == "probing" and s.device.name in meant and not runtimes(s.device)]
        if not proving or waited == _PROVING_S:
            break
        if waited == 0:
            print(f"waiting for {', '.join(proving)}: still finding out what can be run there", file=sys.stderr, flush=True)
        pause(1.0)
    return found


def percent(text: str, option: str, most: float = 1.0) -> float:
    """A share as typed, `10%`, as 0.1. Raises UserError beyond `most`."""
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not 0 <= share <= most:
        raise UserError(f"{option} {text}: not a percentage such as 10%")
    return share


def _write_report(document: Mapping[str, Any], folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for form in FORMS:
            (folder / _REPORT_NAMES[form]).write_text(render(document, form), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"--report {folder}: cannot be written: {error.strerror}") from error


def _print_plan(fleet: Fleet, workload: Workload, *, as_json: bool) -> None:
    plans = make_plans(fleet, workload, formats_expected(fleet.targets))[: fleet.file.optimize.budget.variants]
    more = may_follow(fleet) and len(plans) < fleet.file.optimize.budget.variants
    measure = estimate.measuring(fleet.file)
    devices = []
    for target in fleet.targets:
        candidates = (len(plans) + 1) * len(target.options_threads)
        screening = -(-(candidates - 1) // FINALISTS)
        seconds = estimate.seconds(fleet.file, target, screening)
        devices.append({"name": target.name, "candidates": candidates, "screening_rounds": screening, "estimated_seconds": round(seconds)})
    if as_json:
        steps = [{"name": p.name, "steps": [{"pass": s.pass_name, "parameters": dict(s.parameters)} for s in p.steps]} for p in plans]
        document = {"campaign": fleet.name, "plans": steps, "more_may_follow": more, "devices": devices, "measure": measure}
        print(json.dumps({**document, "estimate": _ROUGH}))
        return
    print(f"{fleet.name}: {len(plans)} plans")
    for plan in plans:
        told = " -> ".join(f"{step.pass_name} {json.dumps(dict(step.parameters))}" for step in plan.steps)
        print(f"  {plan.name}: {told}")
    if more:
        print(f"  what devices show of these may suggest more, up to {fleet.file.optimize.budget.variants} in all")
    for device in devices:
        print(
            f"{device['name']}: {device['candidates']} candidates: {device['screening_rounds']} screening rounds, then the best compared "
            f"over {ROUND} to {LAUNCHES} launches; roughly {device['estimated_seconds']} s of device time"
        )
    for name, text in measure.items():
        print(f"{name}: {text}")
    print(f"The times are {_ROUGH}.")

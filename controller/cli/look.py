"""Verbs that only look: devices, runs, show, report. They ask a running controller, or read the store of a hosted one while it works."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from controller import waits
from controller.cli.connect import looking
from controller.cli.verb import ControllerOption, FleetOption, JsonOption, StateOption, plain, report_width, verb
from controller.compare import forms as comparisons
from controller.looking import Look, RemoteLook
from controller.report import FORMS, caveat, render
from controller.report.times import utc
from edgefarm.errors import UserError
from edgefarm.model import Capability, Run

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="NAME@N, or NAME for its newest run.")]


@verb
def devices(fleet: FleetOption = None, state: StateOption = None, json_: JsonOption = False, controller: ControllerOption = None) -> None:
    """List the devices, what they can run, and what is deployed on them.

    Example: controller devices --fleet edge.yaml
    """
    with looking(fleet, state, controller) as look:
        deployed = look.deployments()
        rows: list[dict[str, Any]] = [
            {
                "name": s.device.name,
                "class": s.device_class,
                "state": s.state,
                "reason": s.reason or None,
                "threads": s.device.threads,
                "emulated": s.device.emulated,
                "caveat": caveat(s.device),
                "capabilities": [_capability(c) for c in s.device.capabilities],
                "labels": dict(s.device.labels),
                "fingerprint": dict(s.device.fingerprint),
                "last_seen": utc(s.last_seen_unix_ms),
                "deployments": [
                    {"model": d.model, "generation": d.generation, "state": d.state.value, "digest": d.digest, "path": d.path or None}
                    for d in deployed
                    if d.device == s.device.name
                ],
            }
            for s in look.devices()
        ]
    if json_:
        print(json.dumps({"devices": rows}))
        return
    table = _table("device", "state", "class", "threads", "runtimes", "deployed")
    for row in rows:
        told = (f"{c['runtime']} {c['version']}" if c["available"] else f"no {c['runtime']}: {c['reason']}" for c in row["capabilities"])
        able = ", ".join(dict.fromkeys(told))  # a runtime may have several providers
        running = ", ".join(f"{d['model']} generation {d['generation']} {d['state']}" for d in row["deployments"])
        table.add_row(row["name"], row["state"].replace("_", " "), row["class"], str(row["threads"]), plain(able), plain(running))
    _print(table)
    for reason in dict.fromkeys(row["reason"] for row in rows if row["state"] == "off"):
        print(f"off: {reason}")
    for row in rows:
        if row["reason"] and row["state"] not in ("off", "in_use"):
            print(plain(f"{row['name']}: {row['reason']}"))
        if row["caveat"]:
            print(f"{row['name']}: {row['caveat']}")


@verb
def runs(fleet: FleetOption = None, state: StateOption = None, json_: JsonOption = False, controller: ControllerOption = None) -> None:
    """List the runs.

    Example: controller runs --fleet edge.yaml
    """
    with looking(fleet, state, controller) as look:
        known, waiting = look.runs(), look.waits()
    waits_of = {r.name: [w for w in waiting if w.run == r.name] for r in known}
    if json_:
        print(json.dumps({"runs": [{**_run(r), "waits": waits.as_json(waits_of[r.name])} for r in known]}))
        return
    table = _table("run", "state", "exit", "started", "finished", "by")
    for run in known:
        code = "" if run.exit_code is None else str(run.exit_code)
        table.add_row(run.name, run.state, code, utc(run.started_unix_ms) or "", utc(run.finished_unix_ms) or "", run.owner)
    _print(table)
    for run in known:
        if waits_of[run.name]:
            print(plain(f"{run.name}: {waits.told(waits_of[run.name])}"))


@verb
def show(
    run: RunArgument, fleet: FleetOption = None, state: StateOption = None, json_: JsonOption = False, controller: ControllerOption = None
) -> None:
    """Show where a run stands: its state, and its orders by stage.

    Example: controller show fashion@1
    """
    with looking(fleet, state, controller) as look:
        found = find_run(look, run)
        orders, waiting = look.orders(found.name), look.waits(found.name)
    stages: dict[str, dict[str, int]] = {}
    for status in orders:
        stage = stages.setdefault(status.order.id.split("/")[-2], {"orders": 0, "done": 0, "attempts": 0})
        stage["orders"] += 1
        stage["done"] += status.state.value == "done"
        stage["attempts"] += len(status.attempts)
    if json_:
        print(json.dumps({**_run(found), "stages": stages, "waits": waits.as_json(waiting)}))
        return
    print(f"{found.name}: {found.state}, started {utc(found.started_unix_ms)}, by {found.owner}")
    for name, counts in stages.items():
        print(f"  {name}: {counts['done']} of {counts['orders']} orders done, {counts['attempts']} attempts")
    for wait in waiting:
        print(plain(f"  {waits.told([wait])}"))


@verb
def report(
    run: RunArgument,
    form: Annotated[str, typer.Option("--format", metavar="|".join(FORMS), help="Form of the report.")] = "table",
    fleet: FleetOption = None,
    state: StateOption = None,
    json_: JsonOption = False,
    controller: ControllerOption = None,
) -> None:
    """Print the report of a run that has ended.

    Example: controller report fashion@1 --format html > report.html
    """
    if form not in FORMS:
        raise UserError(f"--format {form}: not a form; one of {', '.join(FORMS)}")
    with looking(fleet, state, controller) as look:
        found = find_run(look, run)
        document = look.report(found)
    if not document:
        raise UserError(f"{found.name} has no report yet: it is {found.state}; 'controller deploy' goes on with it")
    if document.get("kind") == "comparison":
        print(plain(_comparison(document, "json" if json_ else form)), end="")
        return
    print(plain(render(document, "json" if json_ else form, report_width())), end="")


def _comparison(document: Mapping[str, Any], form: str) -> str:
    if form not in comparisons.FORMS:
        raise UserError(f"--format {form}: not a form of a comparison; one of {', '.join(comparisons.FORMS)}")
    return comparisons.FORMS[form](document)


def _capability(capability: Capability) -> dict[str, Any]:
    return {
        "runtime": capability.runtime,
        "provider": capability.provider,
        "version": capability.version,
        "available": capability.available,
        "reason": capability.reason or None,
    }


def find_run(look: Look | RemoteLook, name: str) -> Run:
    """The run NAME@N, or the newest of campaign NAME. Raises UserError that names those that there are."""
    known = look.runs(name.partition("@")[0])
    found = [r for r in known if r.name == name or "@" not in name]
    if not found:
        names = ", ".join(r.name for r in look.runs()) or "none"
        raise UserError(f"no run is named '{name}'; there are: {names}")
    return found[-1]


def _run(run: Run) -> dict[str, Any]:
    return {
        "run": run.name,
        "state": run.state,
        "exit_code": run.exit_code,
        "owner": run.owner,
        "labels": dict(run.labels),
        "started": utc(run.started_unix_ms),
        "finished": utc(run.finished_unix_ms),
    }


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(table: Table) -> None:
    Console(width=None if Console().is_terminal else 150, highlight=False, markup=False).print(table)  # what devices say is no markup

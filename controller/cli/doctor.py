"""`controller doctor`: what is missing, and how to get it."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path, PurePath

import typer

from controller import preflight
from controller.cli.connect import asking
from controller.cli.verb import ControllerOption, FleetOption, JsonOption, StateOption, verb
from controller.config import load_fleet
from controller.events import Events
from controller.sources import ready
from controller.workload import load_workload
from edgefarm import __version__, hostlock
from edgefarm.errors import EdgefarmError

_NEEDED = {
    "grpcio": "pip install edgefarm",
    "onnx": "pip install 'edgefarm[controller]'",
    "onnxruntime": "pip install 'edgefarm[onnxruntime]'",
    "sqlalchemy": "pip install 'edgefarm[controller]'",
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `remedy` says what to do if it is not well."""

    subject: str
    well: bool
    detail: str
    remedy: str = ""


@verb
def doctor(fleet: FleetOption = None, state: StateOption = None, json_: JsonOption = False, controller: ControllerOption = None) -> None:
    """Look for what is missing on this machine and in a fleet file.

    Example: controller doctor --fleet edge.yaml
    """
    findings = list(_machine())
    if fleet is not None:
        findings += _fleet(fleet, state, controller)
    elif controller is not None:
        findings.append(_controller(controller))
    if json_:
        print(json.dumps({"findings": [asdict(f) for f in findings]}))
    else:
        for finding in findings:
            remedy = f"\n        {finding.remedy}" if finding.remedy and not finding.well else ""
            print(f"{'ok  ' if finding.well else 'BAD '}  {finding.subject}: {finding.detail}{remedy}")
    if not all(f.well for f in findings):
        raise typer.Exit(2)


def _machine() -> Iterator[Finding]:
    version = platform.python_version()
    yield Finding("python", sys.version_info >= (3, 10), version, "edgefarm needs Python 3.10 or newer")
    yield Finding("edgefarm", True, __version__)
    for name, remedy in _NEEDED.items():
        try:
            yield Finding(name, True, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, False, "not installed", remedy)
    lock = hostlock.default_path()
    writable = os.access(lock if lock.exists() else lock.parent, os.W_OK)
    yield Finding("measure lock", writable, str(lock), f"make {lock} writable: devices of one host take turns by it")
    folder = Path(tempfile.gettempdir())
    yield Finding("temporary folder", os.access(folder, os.W_OK), str(folder), "set TMPDIR to a folder that you may write to")


def _controller(address: str) -> Finding:
    try:
        with asking(address) as client:
            known = client.devices()
    except EdgefarmError as error:
        return Finding("controller", False, str(error), "start it, mend the address, or log in again")
    there = sum(s.state != "lost" for s in known)
    return Finding("controller", True, f"{address}: {there} of {len(known)} devices are there")


def _fleet(path: Path, state: Path | None, controller: str | None) -> Iterator[Finding]:
    try:
        fleet = load_fleet(path, controller)
        yield Finding("fleet file", True, f"{path}: {len(fleet.file.devices)} entries of devices")
        if fleet.controller is not None:
            yield _controller(fleet.controller)
        with tempfile.TemporaryDirectory(prefix="edgefarm-doctor-") as aside, Events(quiet=True) as events:
            fleet = ready(fleet, Path(aside), events)
            workload = load_workload(fleet)
            preflight.check(fleet, workload)
        counts = f"{workload.selection.n} selection and {workload.evaluation.n} evaluation samples"
        name, same = PurePath(fleet.file.model.path).name, " (the same)" if workload.same_data else ""
        yield Finding("model and data", True, f"{name}, {counts}{same}")
    except EdgefarmError as error:
        yield Finding("fleet file", False, str(error), "mend the file")
        return
    folder = fleet.state(state)
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    free = os.statvfs(nearest)
    mib = free.f_bavail * free.f_frsize // 2**20
    yield Finding("state folder", os.access(nearest, os.W_OK) and mib >= 200, f"{folder}: {mib} MiB free", "at least 200 MiB, writable")

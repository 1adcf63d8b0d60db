"""`controller rollback`: back to what ran before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from controller.cli.connect import asking
from controller.cli.verb import ControllerOption, FleetOption, JsonOption, StateOption, fleet_of, plain, verb
from controller.config import Fleet
from controller.control import Control
from controller.hosted import Hosted, LocalDevice, driver_lock
from controller.looking import look_into
from edgefarm.errors import DeviceLost, RolledBack, UserError
from edgefarm.model import DeploymentState, DeploymentStatus

_WAIT_S = 300.0


@verb
def rollback(
    device: Annotated[list[str] | None, typer.Option("--device", metavar="NAME", help="Only this device; may be repeated.")] = None,
    fleet: FleetOption = None,
    state: StateOption = None,
    json_: JsonOption = False,
    controller: ControllerOption = None,
) -> None:
    """Activate what each device ran before its present deployment.

    Example: controller rollback --fleet edge.yaml --device bench-1
    """
    loaded = fleet_of(fleet, controller)
    if loaded.controller is not None:
        with asking(loaded.controller) as client:
            enlisted = loaded.enlist(client.devices())
            statuses = _roll_back(client, enlisted, _chosen(enlisted, device))
    else:
        chosen, folder = _chosen(loaded, device), loaded.state(state)
        with look_into(folder) as look, driver_lock(folder):  # before any agent is started
            look.check_way_back(loaded.model_name, chosen)
        locals_ = [LocalDevice(t.name, t.runtimes, t.threads, t.labels) for t in loaded.targets if t.name in chosen]
        with Hosted(folder, locals_) as hosted:
            statuses = _roll_back(hosted.control, loaded, chosen)
    rows = [_row(s) for s in statuses]
    if json_:
        print(json.dumps({"deployments": rows}))
    else:
        for row in rows:
            where = row["path"] or row["reason"] or ""
            print(plain(f"{row['device']}: {row['model']} generation {row['generation']} {row['state']}  {where}"))
    if failed := [s for s in statuses if s.state is not DeploymentState.COMMITTED]:
        raise RolledBack("; ".join(f"{s.device}: {s.state.value}: {s.reason or 'no answer in time'}" for s in failed))


def _chosen(fleet: Fleet, device: list[str] | None) -> list[str]:
    names = [t.name for t in fleet.targets]
    chosen = device or names
    if unknown := [n for n in chosen if n not in names]:
        raise UserError(f"--device {unknown[0]}: not in {fleet.path}; it has {', '.join(names)}")
    return chosen


def _roll_back(control: Control, fleet: Fleet, chosen: list[str]) -> Sequence[DeploymentStatus]:
    if lost := [s for s in control.devices() if s.state == "lost" and s.device.name in chosen]:
        others = "nothing was ordered; --device names the devices to go back on"
        raise DeviceLost("; ".join(f"{s.device.name}: {s.reason}" for s in lost) + f"; {others}")
    ordered = control.roll_back(fleet.model_name, chosen)
    return control.wait_for_deployments([s.id for s in ordered], _WAIT_S)


def _row(status: DeploymentStatus) -> dict[str, Any]:
    return {
        "device": status.device,
        "model": status.model,
        "generation": status.generation,
        "state": status.state.value,
        "path": status.path or None,
        "reason": status.reason or None,
    }

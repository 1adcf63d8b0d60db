"""`controller rollback`: back to what ran before."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from controller.cli.verb import ControllerOption, FleetOption, JsonOption, StateOption, fleet_of, verb
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
    loaded = fleet_of(fleet)
    names = [t.name for t in loaded.targets]
    chosen = device or names
    if unknown := [n for n in chosen if n not in names]:
        raise UserError(f"--device {unknown[0]}: not in {loaded.path}; it has {', '.join(names)}")
    folder = loaded.state(state)
    with look_into(folder) as look, driver_lock(folder):  # before any agent is started
        look.check_way_back(loaded.model_name, chosen)
    locals_ = [LocalDevice(t.name, t.runtimes, t.threads, t.labels) for t in loaded.targets if t.name in chosen]
    with Hosted(folder, locals_) as hosted:
        if lost := [s for s in hosted.control.devices() if s.state == "lost" and s.device.name in chosen]:
            others = "nothing was ordered; --device names the devices to go back on"
            raise DeviceLost("; ".join(f"{s.device.name}: {s.reason}" for s in lost) + f"; {others}")
        ordered = hosted.control.roll_back(loaded.model_name, chosen)
        statuses = hosted.control.wait_for_deployments([s.id for s in ordered], _WAIT_S)
    rows = [_row(s) for s in statuses]
    if json_:
        print(json.dumps({"deployments": rows}))
    else:
        for row in rows:
            print(f"{row['device']}: {row['model']} generation {row['generation']} {row['state']}  {row['path'] or row['reason'] or ''}")
    if failed := [s for s in statuses if s.state is not DeploymentState.COMMITTED]:
        raise RolledBack("; ".join(f"{s.device}: {s.state.value}: {s.reason or 'no answer in time'}" for s in failed))


def _row(status: DeploymentStatus) -> dict[str, Any]:
    return {
        "device": status.device,
        "model": status.model,
        "generation": status.generation,
        "state": status.state.value,
        "path": status.path or None,
        "reason": status.reason or None,
    }

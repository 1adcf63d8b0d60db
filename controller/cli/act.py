"""Verbs that act on a running controller: cancel, drain, lease, release."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated

import typer

from controller.cli.connect import asking, chosen
from controller.cli.verb import ControllerOption, FleetOption, JsonOption, StateOption, verb
from controller.report.times import utc
from edgefarm.errors import UserError
from edgefarm.model import Hold

SelectorArgument = Annotated[str, typer.Argument(metavar="SELECTOR", help="A device's name, or labels: KEY=VALUE[,KEY=VALUE …].")]
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_HIMSELF = ""  # the controller knows who calls


def seconds(text: str, option: str) -> float:
    """`90s`, `30m`, `2h`, `1d` in seconds. Raises UserError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if found is None or float(found[1]) == 0:
        raise UserError(f"{option} {text}: not a length of time such as 90s, 30m, 2h or 1d")
    return float(found[1]) * _UNITS_S[found[2]]


@verb
def cancel(
    run: Annotated[str, typer.Argument(metavar="RUN", help="NAME@N.")],
    fleet: FleetOption = None,
    state: StateOption = None,
    json_: JsonOption = False,
    controller: ControllerOption = None,
) -> None:
    """End a run at a running controller: its orders are cancelled, its driver stops. The next deploy starts a new run.

    Example: controller cancel fashion@1 --controller farm.example:7443
    """
    with asking(controller, fleet) as client:
        ended = client.cancel_run(run)
    print(json.dumps({"run": ended.name, "state": ended.state}) if json_ else f"{ended.name}: {ended.state}")


@verb
def drain(
    device: SelectorArgument,
    fleet: FleetOption = None,
    state: StateOption = None,
    json_: JsonOption = False,
    controller: ControllerOption = None,
) -> None:
    """Give devices no new orders until they are released; what runs there ends.

    Example: controller drain pi-kitchen
    """
    with asking(controller, fleet) as client:
        _tell(client.drain(chosen(client, device), _HIMSELF), as_json=json_)


@verb
def lease(
    selector: SelectorArgument,
    length: Annotated[str, typer.Option("--for", metavar="TIME", help="How long: 90s, 30m, 2h, 1d.")],
    fleet: FleetOption = None,
    state: StateOption = None,
    json_: JsonOption = False,
    controller: ControllerOption = None,
) -> None:
    """Keep devices for your own runs, for a while; leasing them again sets the time anew.

    Example: controller lease board=orin-nano --for 2h
    """
    for_s = seconds(length, "--for")
    with asking(controller, fleet) as client:
        _tell(client.lease(chosen(client, selector), _HIMSELF, for_s), as_json=json_)


@verb
def release(
    selector: SelectorArgument,
    fleet: FleetOption = None,
    state: StateOption = None,
    json_: JsonOption = False,
    controller: ControllerOption = None,
) -> None:
    """End your leases, and drains, of devices (an admin: anybody's).

    Example: controller release board=orin-nano
    """
    with asking(controller, fleet) as client:
        released = list(client.release(chosen(client, selector), _HIMSELF))
    if json_:
        print(json.dumps({"released": released}))
    else:
        print("\n".join(f"{name}: released" for name in released) or "nothing was held")


def _tell(holds: Sequence[Hold], *, as_json: bool) -> None:
    if as_json:
        rows = [{"device": h.name, "kind": h.kind.value, "holder": h.holder, "until": utc(h.expires_unix_ms)} for h in holds]
        print(json.dumps({"holds": rows}))
        return
    for hold in holds:
        until = f"until {utc(hold.expires_unix_ms)}" if hold.expires_unix_ms else "until it is released"
        print(f"{hold.name}: {hold.kind.value} of {hold.holder} {until}")

"""Which controller a verb speaks to, and `login`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from controller.cli.verb import ControllerOption, FleetOption, JsonOption, StateOption, fleet_of, state_of, verb
from controller.client import Client
from controller.config.enrolled import matches
from controller.login import TOKEN_VARIABLE, connected, folder_of, log_in, renewed, write_pem
from controller.looking import Look, RemoteLook, look_into
from controller.report.times import utc
from edgefarm.errors import NotFound, UserError

DRIVING_PATIENCE_S = 600.0  # a driver waits out a restart of its controller, and a longer break
_ASKING_PATIENCE_S = 10.0  # a person who asks does not


def address_of(controller: str | None, fleet: Path | None, state: Path | None = None) -> str | None:
    """The running controller that is meant: as told, else the fleet file's; None where a command hosts its own. Raises FleetFileError."""
    if controller or state:
        return controller
    if fleet is None and not Path("edge.yaml").exists():
        return None
    return fleet_of(fleet).controller


@contextlib.contextmanager
def asking(controller: str | None, fleet: Path | None = None) -> Iterator[Client]:
    """A client for one question. Raises UserError where no controller is meant, or it does not know what was asked for; Unreachable."""
    address = address_of(controller, fleet)
    if address is None:
        raise UserError("which controller? Give --controller HOST:PORT (or set EDGEFARM_CONTROLLER), or a fleet file with 'controller:'")
    with connected(address, folder_of(address) / "fetched", _ASKING_PATIENCE_S) as client:
        try:
            yield client
        except NotFound as error:
            raise UserError(f"controller {address}: {error}") from error


@contextlib.contextmanager
def looking(fleet: Path | None, state: Path | None, controller: str | None) -> Iterator[Look | RemoteLook]:
    """What there is to see: at a running controller, or in a state folder."""
    if address_of(controller, fleet, state) is not None:
        with asking(controller, fleet) as client:
            yield RemoteLook(client)
    else:
        with look_into(state_of(fleet, state)) as look:
            yield look


def chosen(client: Client, selector: str) -> list[str]:
    """Names of the devices that are meant by a name, or by KEY=VALUE[,KEY=VALUE …]. Raises UserError if there are none."""
    known = {s.device.name: s.device.labels for s in client.devices()}
    if selector in known:
        return [selector]
    wanted = dict(part.partition("=")[::2] for part in selector.split(","))
    if "=" not in selector or "" in wanted:
        raise UserError(f"no device is named {selector!r}; there are: {', '.join(known) or 'none'}; or select by labels: board=orin-nano")
    found = [name for name, labels in known.items() if matches(wanted, labels)]
    if not found:
        raise UserError(f"no device has the labels {selector}; there are: {', '.join(known) or 'none'}")
    return found


@verb
def login(
    controller: ControllerOption = None,
    token: Annotated[
        str | None, typer.Option("--token", envvar=TOKEN_VARIABLE, metavar="TOKEN", help="From 'controller user add'; once per machine.")
    ] = None,
    pem: Annotated[
        Path | None,
        typer.Option("--pem", metavar="DIR", help="Also write authority.pem, certificate.pem and key.pem there, for Prometheus."),
    ] = None,
    fleet: FleetOption = None,
    state: StateOption = None,
    json_: JsonOption = False,
) -> None:
    """Log in at a controller: a key is made on this machine, and certified. It is kept in your configuration folder.

    Every other command renews the certificate in time; without --token this one does, for programs that use it by themselves.

    Example: controller login --controller farm.example:7443 --token edgefarm1.…
    """
    address = address_of(controller, fleet)
    if address is None:
        raise UserError("login needs --controller HOST:PORT, the address where the controller takes members in")
    identity = log_in(address, token) if token else renewed(address)
    if pem is not None:
        write_pem(identity, pem)
    until = utc(identity.not_after_unix_ms)
    if json_:
        told = {"controller": identity.controller, "name": identity.name, "kept_in": str(folder_of(address)), "certificate_until": until}
        print(json.dumps(told))
    else:
        print(f"logged in at {identity.controller} as {identity.name}, certificate until {until}; kept in {folder_of(address)}")

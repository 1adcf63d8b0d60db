"""Verbs about who takes part: `user add|list|revoke`, `token create`, `device label|replace|revoke`. For admins of a running controller."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from controller.cli.act import seconds
from controller.cli.connect import asking
from controller.cli.verb import ControllerOption, FleetOption, JsonOption, StateOption, verb
from controller.report.times import utc
from controller.roles import OPERATOR, ROLES
from edgefarm.errors import UserError

user = typer.Typer(help="Users of a running controller.", no_args_is_help=True)
token = typer.Typer(help="Join tokens of a running controller.", no_args_is_help=True)
device = typer.Typer(help="Enrolled devices.", no_args_is_help=True)
DeviceArgument = Annotated[str, typer.Argument(metavar="DEVICE", help="The name it enrolled with.")]


@user.command("add")
@verb
def add_user(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As it stands with runs and leases.")],
    role: Annotated[
        str,
        typer.Option(metavar="|".join(ROLES), help=f"What the user may do, from now on; by default as before, {OPERATOR} for a new one."),
    ] = "",
    fleet: FleetOption = None,
    state: StateOption = None,
    json_: JsonOption = False,
    controller: ControllerOption = None,
) -> None:
    """Make a token with which a user logs in on one machine; one for another machine of a user leaves those before logged in.

    Example: controller user add anna --role operator
    """
    if role not in ("", *ROLES):
        raise UserError(f"--role {role}: not a role; one of {', '.join(ROLES)}")
    with asking(controller, fleet) as client:
        made = client.add_user(name, role)
    _tell_token(made, "controller login --controller HOST:PORT --token", as_json=json_)


@user.command("list")
@verb
def list_users(
    fleet: FleetOption = None,
    state: StateOption = None,
    json_: JsonOption = False,
    controller: ControllerOption = None,
) -> None:
    """List the users, their roles, and from how many machines they are logged in.

    Example: controller user list
    """
    with asking(controller, fleet) as client:
        rows = [{**asdict(u), "last_login": utc(u.enrolled_unix_ms)} for u in client.users()]
    if json_:
        print(json.dumps({"users": [{k: v for k, v in row.items() if k != "enrolled_unix_ms"} for row in rows]}))
        return
    for row in rows:
        standing = "" if row["standing"] == "good" else f", {row['standing']}"
        machines = f"{row['machines']} machine{'' if row['machines'] == 1 else 's'}"
        print(f"{row['name']}: {row['role']}{standing}, {machines}, last login {row['last_login']}")


@user.command("revoke")
@verb
def revoke_user(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As it was added.")],
    fleet: FleetOption = None,
    state: StateOption = None,
    json_: JsonOption = False,
    controller: ControllerOption = None,
) -> None:
    """Shut a user out, at once and on all machines. What this user's runs have ordered stays: 'controller cancel RUN' ends it.

    Example: controller user revoke anna
    """
    with asking(controller, fleet) as client:
        client.revoke_user(name)
    print(json.dumps({"user": name, "revoked": True}) if json_ else f"{name}: revoked")


@token.command("create")
@verb
def create_token(
    uses: Annotated[int, typer.Option(metavar="N", help="Devices that may join with it.")] = 1,
    expires: Annotated[str, typer.Option(metavar="TIME", help="How long it is good: 90s, 30m, 2h, 1d.")] = "1h",
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A label of those devices; may be repeated.")] = None,
    fleet: FleetOption = None,
    state: StateOption = None,
    json_: JsonOption = False,
    controller: ControllerOption = None,
) -> None:
    """Make a token with which devices join.

    Example: controller token create --uses 46 --expires 2h --label site=lab
    """
    if uses < 1:
        raise UserError(f"--uses {uses}: at least 1")
    labels = {key: value or "" for key, value in parsed_labels(label or [], "--label").items()}
    with asking(controller, fleet) as client:
        made = client.create_token(uses, seconds(expires, "--expires"), labels)
    _tell_token(made, "edge-agent enroll --controller HOST:PORT --token", as_json=json_)


@device.command("label")
@verb
def label(
    name: DeviceArgument,
    labels: Annotated[list[str], typer.Argument(metavar="KEY=VALUE|KEY-", help="A label to set, or to take away.")],
    fleet: FleetOption = None,
    state: StateOption = None,
    json_: JsonOption = False,
    controller: ControllerOption = None,
) -> None:
    """Set labels of a device, or take them away.

    Example: controller device label pi-kitchen site=kitchen shelf-
    """
    parsed = parsed_labels(labels, "device label")
    with asking(controller, fleet) as client:
        client.label(name, parsed)
    _tell_device(name, "labelled", as_json=json_)


@device.command("replace")
@verb
def replace(
    name: DeviceArgument,
    fleet: FleetOption = None,
    state: StateOption = None,
    json_: JsonOption = False,
    controller: ControllerOption = None,
) -> None:
    """Make a token with which other hardware takes over a device's name; then the old key counts no more.

    Example: controller device replace pi-kitchen
    """
    with asking(controller, fleet) as client:
        made = client.replace(name)
    _tell_token(made, f"edge-agent enroll --controller HOST:PORT --name {name} --token", as_json=json_)


@device.command("revoke")
@verb
def revoke(
    name: DeviceArgument,
    fleet: FleetOption = None,
    state: StateOption = None,
    json_: JsonOption = False,
    controller: ControllerOption = None,
) -> None:
    """Shut a device out, at once.

    Example: controller device revoke pi-kitchen
    """
    with asking(controller, fleet) as client:
        client.revoke(name)
    _tell_device(name, "revoked", as_json=json_)


def parsed_labels(texts: list[str], option: str) -> dict[str, str | None]:
    """KEY=VALUE, or KEY- with None for its value. Raises UserError."""
    found: dict[str, str | None] = {}
    for text in texts:
        key, sign, value = text.partition("=")
        if not sign and text.endswith("-"):
            found[text[:-1]] = None
        elif sign and key and value:
            found[key] = value
        else:
            raise UserError(f"{option} {text}: not KEY=VALUE")
    return found


def _tell_token(made: str, use: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"token": made}))
    else:
        print(f"{made}\n\nuse it with: {use} {made}\nIt is shown this once.")


def _tell_device(name: str, what: str, *, as_json: bool) -> None:
    print(json.dumps({"device": name, what: True}) if as_json else f"{name}: {what}")

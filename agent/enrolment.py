"""`edge-agent enroll` and `renew`, and which controller an agent serves as whom."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from agent.clock import Clock
from agent.identity import open_state
from edgefarm.credentials import Identity, is_local, load_identity
from edgefarm.errors import UserError

FOLDER = "identity"  # in the state folder


@dataclass(frozen=True)
class Place:
    """Where an agent belongs: the controller's address, its own name, and the identity that proves it, if it has enrolled."""

    address: str
    name: str
    identity: Identity | None


def place_of(controller: str, name: str, state: Path) -> Place:
    """What options and identity together mean. Raises UserError, StorageError."""
    if controller and is_local(controller):
        if not name:
            raise UserError("run: --name is required with a controller on this machine")
        return Place(controller, name, None)
    identity = load_identity(state / FOLDER)
    example = f"edge-agent enroll --controller {controller or 'HOST:PORT'} --token TOKEN --state {state}"
    if identity is None:
        raise UserError(f"{state}: this device has not enrolled; a token of 'controller token create' lets it: {example}")
    if controller not in ("", identity.controller, identity.main):
        raise UserError(
            f"--controller {controller}: this device enrolled at {identity.controller}: leave the option out, or remove "
            f"{state / FOLDER} and enroll there: {example}"
        )
    if name not in ("", identity.name):
        raise UserError(f"--name {name}: this device enrolled as {identity.name!r}: leave the option out")
    return Place(identity.main, identity.name, identity)


def enroll(state: Path, controller: str, token: str, name: str) -> None:
    """`edge-agent enroll`. Raises what `edgefarm.enrolment.enroll` does."""
    identity = _protocol().enroll(controller, token, name or platform.node().partition(".")[0], open_state(state) / FOLDER, "device")
    print(f"{identity.name} enrolled at {identity.controller}; it serves it with: edge-agent run --state {state}")


def renew(state: Path) -> None:
    """`edge-agent renew`. Raises what `edgefarm.enrolment.renew` does."""
    renewed = _protocol().renew(state / FOLDER)
    clock = Clock(state / "clock")
    clock.heard(renewed.unix_ms)
    clock.keep()
    print(f"{renewed.identity.name}: certificate renewed at {renewed.identity.controller}")


def _protocol() -> ModuleType:
    try:
        from edgefarm import enrolment
    except ModuleNotFoundError as error:
        raise UserError(f"enrolling needs: pip install 'edgefarm[agent]' (no module {error.name!r})") from error
    return enrolment

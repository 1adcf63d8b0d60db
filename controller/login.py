"""Which controllers this user has logged in at: an identity per controller, in the user's configuration folder."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from controller.client import Client
from controller.connection import Connection
from edgefarm.credentials import Identity, load_identity, parse_address
from edgefarm.errors import EdgefarmError, UserError

TOKEN_VARIABLE = "EDGEFARM_TOKEN"
_LOG = logging.getLogger(__name__)
_RENEW_AT = 2 / 3  # of a certificate's life


def folder_of(address: str) -> Path:
    """Where the identity for a controller lies (and a private socket, which needs none). Raises UserError for what is no address."""
    if address.startswith("unix:"):
        return Path(address.removeprefix("unix:")).parent
    host, port = parse_address(address)
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "edgefarm" / "controllers" / f"{host.strip('[]').replace(':', '-')}_{port}"


def log_in(address: str, token: str) -> Identity:
    """Makes a key here and gets a certificate for it; doing it again changes nothing. Raises UserError, Unreachable, StorageError."""
    from edgefarm.enrolment import enroll  # brings the `cryptography` library

    identity = enroll(address, token, "", folder_of(address))
    if identity.kind != "user":
        shutil.rmtree(folder_of(address), ignore_errors=True)
        raise UserError(f"this token is for a {identity.kind}, not for a user: 'controller user add NAME' makes one for you")
    return identity


def identity_for(address: str) -> Identity:
    """The identity to show at a controller, renewed where its certificate is old. Raises UserError where nobody has logged in."""
    identity = load_identity(folder_of(address))
    if identity is None:
        if token := os.environ.get(TOKEN_VARIABLE):
            return log_in(address, token)
        raise UserError(
            f"controller {address}: log in first: controller login --controller {address} --token TOKEN (or set {TOKEN_VARIABLE})"
        )
    life_ms = identity.not_after_unix_ms - identity.not_before_unix_ms
    if time.time() * 1000 < identity.not_before_unix_ms + _RENEW_AT * life_ms:
        return identity
    from edgefarm.enrolment import renew

    try:
        return renew(folder_of(address)).identity
    except EdgefarmError as error:  # what is there may still do; if not, the controller says so
        _LOG.warning("the certificate was not renewed: %s", error)
        return identity


@contextlib.contextmanager
def connected(address: str, cache: Path, patience_s: float) -> Iterator[Client]:
    """A client of the controller at HOST:PORT, or behind the private socket `unix:/path`. Raises UserError, Unreachable."""
    if address.startswith("unix:"):
        connection = Connection(address, patience_s=patience_s)
    else:
        identity = identity_for(address)
        connection = Connection(identity.main, identity, patience_s)
    try:
        yield Client(connection, cache)
    finally:
        connection.close()

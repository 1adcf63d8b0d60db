"""Which controllers this user has logged in at: an identity per controller, in the user's configuration folder."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from controller.client import Client
from controller.connection import Connection
from edgefarm.credentials import Identity, load_identity, parse_address
from edgefarm.digest import atomic_write
from edgefarm.errors import Denied, EdgefarmError, StorageError, UserError

TOKEN_VARIABLE = "EDGEFARM_TOKEN"
_LOG = logging.getLogger(__name__)


def folder_of(address: str) -> Path:
    """Where the identity for a controller lies (and a private socket, which needs none). Raises UserError for what is no address."""
    if address.startswith("unix:"):
        return Path(address.removeprefix("unix:")).parent
    host, port = parse_address(address)
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "edgefarm" / "controllers" / f"{host.strip('[]').replace(':', '-')}_{port}"


def log_in(address: str, token: str) -> Identity:
    """Makes a key here and gets a certificate for it; doing it again renews that. Raises UserError, Unreachable, StorageError."""
    from edgefarm.enrolment import enroll  # brings the `cryptography` library

    return enroll(address, token, "", folder_of(address), "user")


def renewed(address: str) -> Identity:
    """The identity for a controller with a fresh certificate. Raises UserError where nobody has logged in, Denied, Unreachable."""
    if load_identity(folder_of(address)) is None:
        raise _not_logged_in(address)
    from edgefarm.enrolment import renew

    return renew(folder_of(address)).identity


def write_pem(identity: Identity, folder: Path) -> None:
    """Writes what programs want as files: authority.pem, certificate.pem, key.pem; readable by this user only. Raises StorageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, pem in (("authority", identity.authority_pem), ("key", identity.key_pem), ("certificate", identity.certificate_pem)):
            atomic_write(folder / f"{name}.pem", pem.encode(), mode=0o600)
    except OSError as error:
        raise StorageError(f"--pem {folder}: {error.strerror}: choose a folder that you may write to") from error


def _not_logged_in(address: str) -> UserError:
    return UserError(
        f"controller {address}: log in first: controller login --controller {address} --token TOKEN (or set {TOKEN_VARIABLE}); "
        "an admin makes the token with 'controller user add NAME'"
    )


def identity_for(address: str) -> Identity:
    """The identity to show at a controller, renewed where its certificate is old.

    Raises:
        UserError: nobody has logged in.
        Denied: the controller renews it no more.
    """
    identity = load_identity(folder_of(address))
    if identity is None:
        if token := os.environ.get(TOKEN_VARIABLE):
            return log_in(address, token)
        raise _not_logged_in(address)
    if time.time() * 1000 < identity.renewal_unix_ms:
        return identity
    try:
        return renewed(address)
    except Denied:
        raise
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

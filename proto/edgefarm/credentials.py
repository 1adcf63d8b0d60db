"""Who a device or a user is, as files: its key, its certificate, the authority that it believes, the controller's addresses.

Both sides share names and formats here; nothing in this module needs a network or the `cryptography` library.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from edgefarm.digest import atomic_write
from edgefarm.errors import StorageError, UserError

SERVER_NAME = "controller.edgefarm.internal"  # what every controller's certificate says, wherever it is reached
DEVICE_SERVER_NAME = "device.edgefarm.internal"  # what every device's certificate says, for who reads its metrics page
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
JOIN_PORT = 7443
_VERSION = "edgefarm1"
_KEY, _REST = "key.pem", "identity.json"


@dataclass(frozen=True)
class JoinToken:
    """What `token create` gives out. `fingerprint` says whose answer to believe before anything is sent."""

    secret: str
    fingerprint: str

    def __str__(self) -> str:
        return f"{_VERSION}.{self.secret}.{self.fingerprint}"

    @property
    def secret_hash(self) -> str:
        """What the controller keeps of it."""
        return hash_of_secret(self.secret)


def parse_token(text: str) -> JoinToken:
    """Raises UserError unless it has a token's form."""
    found = re.fullmatch(rf"{_VERSION}\.([\w-]+)\.([0-9a-f]{{32}})", text.strip())
    if found is None:
        makers = "'controller token create' makes one for devices, 'controller user add' one for a user"
        raise UserError(f"this is no join token: one begins with {_VERSION!r} and has three parts; {makers}")
    return JoinToken(found[1], found[2])


def hash_of_secret(secret: str) -> str:
    """SHA-256 in hex; secrets are random and long, so nothing slower is needed."""
    return hashlib.sha256(secret.encode()).hexdigest()


def fingerprint_of(certificate_der: bytes) -> str:
    """Of an authority's certificate: 128 bits of its SHA-256, which only another preimage could match."""
    return hashlib.sha256(certificate_der).hexdigest()[:32]


def proof_of_key(nonce: bytes, certificate_pem: bytes) -> bytes:
    """What is signed to renew a certificate: the controller's nonce makes it good for one call only."""
    return b"edgefarm renew 1\0" + nonce + hashlib.sha256(certificate_pem).digest()


def urn(kind: str, name: str) -> str:
    """The name in a certificate: `urn:edgefarm:device:NAME`, `urn:edgefarm:user:NAME`."""
    return f"urn:edgefarm:{kind}:{name}"


def is_local(address: str) -> bool:
    """Whether a gRPC address stays on this machine, so that it may be spoken to in plain text."""
    host = address.rpartition(":")[0].strip("[]")
    return address.startswith("unix:") or host in ("localhost", "::1") or bool(re.fullmatch(r"127(\.\d{1,3}){3}", host))


def parse_address(text: str, least_port: int = 1) -> tuple[str, int]:
    """HOST:PORT, or HOST with the usual port. Raises UserError."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]/\s]+)(?::(\d{1,5}))?", text.strip())
    if found is None or not least_port <= int(found[2] or JOIN_PORT) < 65536:
        raise UserError(f"{text!r}: expected HOST:PORT, as in farm.example:{JOIN_PORT}")
    return found[1], int(found[2] or JOIN_PORT)


@dataclass(frozen=True)
class Identity:
    """One device or user at one controller.

    Attributes:
        controller: HOST:PORT where it enrolled and renews.
        main: HOST:PORT where all else is done.
        not_before_unix_ms, not_after_unix_ms: life of the certificate.
    """

    kind: str
    name: str
    controller: str
    main: str
    key_pem: str
    certificate_pem: str
    authority_pem: str
    not_before_unix_ms: int
    not_after_unix_ms: int

    @property
    def renewal_unix_ms(self) -> int:
        """When to renew: after two thirds of the certificate's life."""
        return self.not_before_unix_ms + (self.not_after_unix_ms - self.not_before_unix_ms) * 2 // 3


def load_identity(folder: Path) -> Identity | None:
    """What `save_identity` left; None if there is nothing. Raises StorageError; UserError if somebody damaged it."""
    try:
        known = {f.name for f in fields(Identity)}
        rest = {k: v for k, v in json.loads((folder / _REST).read_text()).items() if k in known}  # a newer version may have kept more
        return Identity(key_pem=(folder / _KEY).read_text(), **rest)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}: the identity must be readable by the user that runs this") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: not an identity ({error}): remove the folder and enroll anew") from error


def save_identity(folder: Path, identity: Identity) -> None:
    """Keeps an identity; a power cut leaves the old one or this one. Raises StorageError."""
    rest = {k: v for k, v in asdict(identity).items() if k != "key_pem"}
    _write(folder / _REST, json.dumps(rest, indent=1) + "\n")


def forget_identity(folder: Path) -> None:
    """Removes an identity and its key, for a new one. Raises StorageError."""
    for name in (_REST, _KEY):
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"{folder / name}: {error.strerror}: the folder must be writable") from error


def load_key(folder: Path) -> str:
    """The private key that was made there, PEM; empty if none was. Raises StorageError."""
    try:
        return (folder / _KEY).read_text()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise StorageError(f"{folder / _KEY}: {error.strerror}") from error


def save_key(folder: Path, key_pem: str) -> None:
    """Keeps a private key for this user's eyes only. Raises StorageError."""
    _write(folder / _KEY, key_pem)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.chmod(path.parent, 0o700)
        atomic_write(path, text.encode(), mode=0o600)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}: the folder must be writable") from error

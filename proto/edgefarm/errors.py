"""The error tree.

    EdgefarmError                     1  a bug of ours, or one of:
    ├── UserError                     2  the user's file, option or model is wrong
    │   ├── FleetFileError               … with file, line and field
    │   ├── NotAvailable                 … promised by the interface, not in this version
    │   ├── Busy                         … another driver, a port in use
    │   └── NeedsUpgrade                 … this program, or the one it speaks to, is too old for the other
    ├── NoFeasible                    3  no feasible variant on at least one device
    ├── DeviceLost                    4  a device could not be reached or was lost
    ├── RolledBack                    5  a rollout was rolled back
    ├── Unreachable                   6  the controller or its store cannot be reached
    │   └── StorageError                 … its disk is full, read-only or failing
    ├── BeyondLimit                   7  `compare`: beyond the limit
    ├── Inconclusive                  8  too noisy, or too few samples to say
    ├── RunCancelled                130  another command cancelled the run
    └── PeerError                     1  between processes:
        ├── DigestMismatch               bytes are not what their digest says
        ├── NotFound                     no such artifact, order, run
        ├── Denied                       not allowed for this device or user
        ├── QuotaExceeded                too many bytes for the open orders
        └── ProtocolError                a message that the protocol does not allow

The number is the exit code of a command that ends with the error.
"""

from __future__ import annotations

from pathlib import Path

INTERRUPTED = 130  # exit code of a command that the user interrupted; its state is kept


class EdgefarmError(Exception):
    """Root of all errors that edgefarm raises on purpose. `code` is stable and may be matched by programs."""

    code = "internal"
    exit_code = 1


class UserError(EdgefarmError):
    """The user's file, option or model is wrong; the message says what and how to mend it."""

    code = "user"
    exit_code = 2


class FleetFileError(UserError):
    """A fleet file that cannot be used. The message starts with `file:line: field:`."""

    code = "fleet-file"

    def __init__(self, message: str, *, path: Path | str, line: int | None = None, field: str = "") -> None:
        place = f"{path}:{line}" if line else str(path)
        super().__init__(f"{place}: {field}: {message}" if field else f"{place}: {message}")
        self.path, self.line, self.field = str(path), line, field


class NotAvailable(UserError):
    """Promised by the interface, not built in this version."""

    code = "not-available"


class Busy(UserError):
    """Something that only one process may hold is held: a driver's lock, a port."""

    code = "busy"


class NeedsUpgrade(UserError):
    """This program, or the one it speaks to, is too old for the other; the message names both versions."""

    code = "needs-upgrade"


class NoFeasible(EdgefarmError):
    """No variant satisfies the constraints on at least one device."""

    code = "no-feasible"
    exit_code = 3


class DeviceLost(EdgefarmError):
    """A device could not be reached, or was lost."""

    code = "device-lost"
    exit_code = 4


class RolledBack(EdgefarmError):
    """A rollout was rolled back."""

    code = "rolled-back"
    exit_code = 5


class Unreachable(EdgefarmError):
    """The controller or its store cannot be reached."""

    code = "unreachable"
    exit_code = 6


class StorageError(Unreachable):
    """A state folder that is full, read-only or failing."""

    code = "storage"


class BeyondLimit(EdgefarmError):
    """`compare` found a difference beyond the limit."""

    code = "beyond-limit"
    exit_code = 7


class Inconclusive(EdgefarmError):
    """Too noisy, or too few samples to say."""

    code = "inconclusive"
    exit_code = 8


class RunCancelled(EdgefarmError):
    """Another command cancelled the run."""

    code = "cancelled"
    exit_code = INTERRUPTED


class PeerError(EdgefarmError):
    """Something went wrong between two of our processes; travels as a gRPC status (see GRPC_STATUS)."""

    code = "peer"


class DigestMismatch(PeerError):
    """Bytes are not what their digest says."""

    code = "digest-mismatch"


class NotFound(PeerError):
    """No such artifact, order or run."""

    code = "not-found"


class Denied(PeerError):
    """Not allowed for this device or user."""

    code = "denied"
    exit_code = 2


class QuotaExceeded(PeerError):
    """More bytes than the open orders allow."""

    code = "quota"


class ProtocolError(PeerError):
    """A message that the protocol does not allow."""

    code = "protocol"


# Names of grpc.StatusCode members; this module must not import grpc.
GRPC_STATUS: dict[str, str] = {
    "digest-mismatch": "DATA_LOSS",
    "not-found": "NOT_FOUND",
    "denied": "PERMISSION_DENIED",
    "quota": "RESOURCE_EXHAUSTED",
    "protocol": "INVALID_ARGUMENT",
    "storage": "UNAVAILABLE",
    "unreachable": "UNAVAILABLE",
    "busy": "FAILED_PRECONDITION",
    "user": "INVALID_ARGUMENT",
    "cancelled": "ABORTED",
}

_BY_CODE: dict[str, type[EdgefarmError]] = {}


def _register(root: type[EdgefarmError]) -> None:
    _BY_CODE[root.code] = UserError if root is FleetFileError else root  # place and field are in its message already
    for child in root.__subclasses__():
        _register(child)


_register(EdgefarmError)


def from_code(code: str, message: str) -> EdgefarmError:
    """The error that `code` stands for (the root for a code of a newer peer)."""
    return _BY_CODE.get(code, EdgefarmError)(message)

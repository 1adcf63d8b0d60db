"""Who may do what: one table, from the method of a service to the least role that may call it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from edgefarm.errors import Denied
from edgefarm.model import User

VIEWER, OPERATOR, ADMIN = ROLES = ("viewer", "operator", "admin")

# Reading is for all; what occupies or changes devices for operators; who takes part at all for admins.
LEAST_ROLE: Mapping[str, str] = MappingProxyType(
    {
        "Artifacts.Stat": VIEWER,
        "Artifacts.Fetch": VIEWER,
        "Artifacts.Push": OPERATOR,
        "Control.OpenRun": OPERATOR,
        "Control.UpdateRun": OPERATOR,
        "Control.Runs": VIEWER,
        "Control.Devices": VIEWER,
        "Control.Submit": OPERATOR,
        "Control.CancelOrders": OPERATOR,
        "Control.Retry": OPERATOR,
        "Control.Progress": VIEWER,
        "Control.Waits": VIEWER,
        "Control.CancelRun": OPERATOR,
        "Control.Deploy": OPERATOR,
        "Control.RollBack": OPERATOR,
        "Control.Deployments": VIEWER,
        "Control.WaitForDeployments": VIEWER,
        "Control.Drive": OPERATOR,
        "Control.Leave": OPERATOR,
        "Control.Lease": OPERATOR,
        "Control.Drain": OPERATOR,
        "Control.Release": OPERATOR,
        "Control.Holds": VIEWER,
        "Control.CreateToken": ADMIN,
        "Control.AddUser": ADMIN,
        "Control.LabelDevice": ADMIN,
        "Control.ReplaceDevice": ADMIN,
        "Control.RevokeDevice": ADMIN,
        "Control.Users": ADMIN,
        "Control.RevokeUser": ADMIN,
    }
)


@dataclass(frozen=True)
class Caller:
    """Who calls: `kind` is user or device; a device has no role."""

    kind: str
    name: str
    role: str = ""


def check(caller: Caller, method: str) -> None:
    """Raises Denied unless the caller may call `method` (`Service.Method`); one without a row is nobody's."""
    least = LEAST_ROLE.get(method)
    if least is not None and caller.role in ROLES and ROLES.index(caller.role) >= ROLES.index(least):
        return
    needed = f"that needs a user with the role {least}" if least else "no role allows that"
    raise Denied(f"{caller.kind} {caller.name!r}{f', a {caller.role},' if caller.role else ''} may not call {method}: {needed}")


class Members(Protocol):
    """Who may take part: what `Control` asks of the registry of devices and users. Tokens are shown once and kept as hashes."""

    def create_token(self, by: str, *, uses: int, expires_s: float, labels: Mapping[str, str]) -> str:
        """A token with which devices join."""
        ...

    def add_user(self, name: str, role: str, by: str) -> str:
        """A token with which a user logs in; the role counts at once. Raises UserError for an unknown role."""
        ...

    def users(self) -> Sequence[User]:
        """All users, by name."""
        ...

    def label(self, device: str, labels: Mapping[str, str | None]) -> None:
        """Sets labels of a device, takes away those that are None. Raises NotFound."""
        ...

    def replace(self, device: str, by: str) -> str:
        """A token with which other hardware takes the name over. Raises NotFound."""
        ...

    def revoke(self, device: str) -> None:
        """Shuts a device out. Raises NotFound."""
        ...

    def revoke_user(self, name: str) -> None:
        """Shuts a user out, on all machines. Raises NotFound."""
        ...

"""Runs, and where their orders stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from edgefarm.model.trials import Attempt, Order

CANCELLED = "cancelled"  # state of a run that a user ended: it is not taken up again


class OrderState(str, Enum):
    """Life of one order in the queue."""

    UNSPECIFIED = "unspecified"
    QUEUED = "queued"
    SENT = "sent"
    DONE = "done"
    CANCELLED = "cancelled"
    QUARANTINED = "quarantined"


@dataclass(frozen=True)
class Run:
    """One execution of a campaign, NAME@N.

    Attributes:
        spec: JSON text; `spec_digest` covers model, data and fleet file.
        report: JSON text, in runs of earlier versions; else the report is the artifact `report_digest`.
        devices: names of those that its orders may occupy; empty (in runs of earlier versions): any.
    """

    name: str
    campaign: str
    number: int
    spec_digest: str
    spec: str
    state: str
    owner: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    started_unix_ms: int = 0
    finished_unix_ms: int = 0
    exit_code: int | None = None
    report: str = ""
    report_digest: str = ""
    devices: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether no driver has anything left to do for it."""
        return self.state == CANCELLED or self.state.startswith("done")

    @property
    def has_report(self) -> bool:
        """Whether a driver has written one."""
        return bool(self.report_digest or self.report)


@dataclass(frozen=True)
class OrderStatus:
    """An order with all attempts that were received; `device` is where it was sent last."""

    order: Order
    state: OrderState
    device: str = ""
    attempts: tuple[Attempt, ...] = ()


@dataclass(frozen=True)
class Progress:
    """State of a run's orders at `revision`."""

    revision: int
    orders: tuple[OrderStatus, ...]


@dataclass(frozen=True)
class Wait:
    """Why orders of a run wait for a device; of several that may take them, for the one that will soonest.

    Attributes:
        orders: how many of the run wait for it.
        state: `leased` (to another user), `draining` (a user drained it, or its agent stops), `busy` (others come first), `window` (it
            is not that time of the day there), or a state of the device in which it measures nothing (`lost`, `paused` …).
        holder: the user who holds the device, or whose order comes first; empty where it is nobody.
        until_unix_ms: when the lease ends or the window opens; 0: nobody knows.
        ahead: orders that come first, as things stand.
        reason: all of this for people.
    """

    run: str
    device: str
    orders: int
    state: str
    holder: str = ""
    until_unix_ms: int = 0
    ahead: int = 0
    reason: str = ""


class HoldKind(str, Enum):
    """What a hold keeps others from."""

    UNSPECIFIED = "unspecified"
    LEASE = "lease"  # a device: it takes orders of the holder's runs only
    DRAIN = "drain"  # a device: it takes no orders
    DRIVER = "driver"  # a campaign: nobody else drives it


@dataclass(frozen=True)
class User:
    """Who may use a controller. `standing`: good or revoked; `machines`: how many have logged in; `enrolled_unix_ms`: the last login."""

    name: str
    role: str
    standing: str = "good"
    machines: int = 0
    enrolled_unix_ms: int = 0


@dataclass(frozen=True)
class Hold:
    """Something kept for a holder: a device, or a campaign. `expires_unix_ms` 0: until it is released."""

    kind: HoldKind
    name: str
    holder: str
    expires_unix_ms: int = 0

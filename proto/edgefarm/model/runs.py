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
    """One execution of a campaign, NAME@N. `spec`, `report`: JSON text; `spec_digest` covers model, data and fleet file."""

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

    @property
    def ended(self) -> bool:
        """Whether no driver has anything left to do for it."""
        return self.state == CANCELLED or self.state.startswith("done")


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


class HoldKind(str, Enum):
    """What a hold keeps others from."""

    UNSPECIFIED = "unspecified"
    LEASE = "lease"  # a device: it takes orders of the holder's runs only
    DRAIN = "drain"  # a device: it takes no orders
    DRIVER = "driver"  # a campaign: nobody else drives it


@dataclass(frozen=True)
class Hold:
    """Something kept for a holder: a device, or a campaign. `expires_unix_ms` 0: until it is released."""

    kind: HoldKind
    name: str
    holder: str
    expires_unix_ms: int = 0

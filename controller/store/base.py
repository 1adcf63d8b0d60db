"""`Store`: what the controller keeps. One contract test suite runs over every implementation."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from controller.store.identities import Identities
from edgefarm.model import Attempt, Deployment, DeploymentStatus, Device, Hold, HoldKind, Order, OrderState, Run


@dataclass(frozen=True)
class QueueEntry:
    """An order that has not ended, without its work.

    Attributes:
        sent_to: the device that holds it, empty while queued.
        touched: an attempt arrived since it was sent last.
        losses: how often its device's process was lost while working on it.
        sequence: grows with submission.
        window: part of the day in which its launches may begin; empty: any time.
        only_on: of its class, the devices that may take it; empty: any.
    """

    id: str
    run: str
    device: str
    device_class: str
    state: OrderState
    sent_to: str
    touched: bool
    losses: int
    sequence: int
    window: str = ""
    only_on: frozenset[str] = frozenset()


@dataclass(frozen=True)
class StoredOrder:
    """An order as it stands; `done` holds the indices of the attempts that count."""

    order: Order
    state: OrderState
    sent_to: str
    done: frozenset[int]


@dataclass(frozen=True)
class OrderChange:
    """An order of a run, as of its last change."""

    order: Order
    state: OrderState
    sent_to: str


@dataclass(frozen=True)
class Changes:
    """What changed in a run's orders after some revision: orders (by submission) and new attempts."""

    revision: int
    orders: tuple[OrderChange, ...]
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True)
class Share:
    """How long orders of an owner occupied a host while others wanted it too; `wanting`: has orders for it."""

    host: str
    owner: str
    used_ms: int
    wanting: bool


@dataclass(frozen=True)
class Counts:
    """Orders, and the newest deployment of each (device, model), by state; names of runs, oldest first."""

    orders: Mapping[str, int]
    deployments: Mapping[str, int]
    runs: tuple[str, ...]


@dataclass(frozen=True)
class StoredDeployment:
    """A deployment as it stands.

    Attributes:
        deployment: None where another controller made it and only the device told of it.
        committed: whether it was so at some time.
        undoes: the id of the deployment that this one rolls back.
    """

    status: DeploymentStatus
    deployment: Deployment | None
    candidate_key: str
    committed: bool
    undoes: str = ""


class Store(Identities, Protocol):
    """Durable state. Every call is one transaction; all are safe from any thread. All raise StorageError."""

    def close(self) -> None:
        """Releases the database."""
        ...

    def open_run(self, campaign: str, spec_digest: str, spec: str, owner: str, labels: Mapping[str, str], now_unix_ms: int) -> Run:
        """The campaign's newest run if its spec is the same, else a new one; `owner` has the first one and all that follow."""
        ...

    def update_run(self, run: Run) -> None:
        """Replaces a run. Raises NotFound."""
        ...

    def runs(self, campaign: str = "") -> list[Run]:
        """Runs (of a campaign), oldest first."""
        ...

    def run(self, name: str) -> Run | None:
        """One run."""
        ...

    def save_hold(self, hold: Hold) -> None:
        """Adds or replaces the hold of one kind on one name."""
        ...

    def delete_hold(self, kind: HoldKind, name: str) -> None:
        """Forgets a hold, if there is one."""
        ...

    def holds(self) -> list[Hold]:
        """All holds, by kind and name, also those whose time is over."""
        ...

    def save_shares(self, host: str, shares: Sequence[Share]) -> None:
        """Replaces the shares of one host."""
        ...

    def shares(self) -> list[Share]:
        """All shares, by host and owner."""
        ...

    def save_device(self, device: Device, last_seen_unix_ms: int) -> None:
        """Adds or replaces a device by name."""
        ...

    def devices(self) -> list[tuple[Device, int]]:
        """Devices and when they were seen last (UTC ms), by name."""
        ...

    def add_orders(self, orders: Sequence[Order]) -> None:
        """Queues orders; known ids stay as they are. Raises NotFound for an unknown run (then nothing is queued)."""
        ...

    def queue(self) -> list[QueueEntry]:
        """Orders that have not ended, by submission."""
        ...

    def order(self, order_id: str) -> StoredOrder | None:
        """One order."""
        ...

    def mark(self, order_id: str, state: OrderState, sent_to: str = "", *, from_states: Collection[OrderState]) -> bool:
        """Moves an order to `state` if it is in one of `from_states`; says whether it was. Moving to SENT makes it untouched."""
        ...

    def add_loss(self, order_id: str) -> int:
        """Counts a loss; returns the new count."""
        ...

    def add_attempt(self, attempt: Attempt, state: OrderState | None = None) -> bool:
        """Stores an attempt once, and moves its order to `state` in the same transaction; False if it was there. Raises NotFound."""
        ...

    def retry(self, run: str, orders: Collection[str] = ()) -> list[str]:
        """Sets failed attempts of ended orders aside, queues those orders again with no losses; returns their ids.

        Where `orders` are named, of these only.
        """
        ...

    def revision(self, run: str) -> int:
        """Grows with every change of a run's orders or attempts. Raises NotFound."""
        ...

    def changes(self, run: str, since: int) -> Changes:
        """What changed after revision `since` (-1: everything). Raises NotFound."""
        ...

    def add_deployment(self, deployment: Deployment, status: DeploymentStatus, undoes: str = "") -> None:
        """Adds a deployment; earlier ones of (device, model) still underway become superseded. Raises UserError on a taken generation."""
        ...

    def save_status(self, status: DeploymentStatus) -> None:
        """Stores what a device says; adopts an unknown deployment. When committed, the one before is superseded (or rolled back)."""
        ...

    def history(self, device: str, model: str = "") -> list[StoredDeployment]:
        """Deployments of a device (of one model), by model, oldest generation first."""
        ...

    def newest_deployments(self, device: str = "", model: str = "") -> list[StoredDeployment]:
        """The newest of every (device, model), by device and model."""
        ...

    def counts(self) -> Counts:
        """How much there is of what."""
        ...

    def statuses(self, ids: Collection[str]) -> list[DeploymentStatus]:
        """Statuses of some deployments, in the order of their generation."""
        ...

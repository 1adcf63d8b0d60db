"""What should be against what a device says is. Pure: first contact, reconnect and restart are this one comparison."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgefarm.model import Cancel, Deployment, DeploymentState, DeploymentStatus, Hello, Order, remaining

WANTED = (DeploymentState.ORDERED, DeploymentState.STAGED, DeploymentState.COMMITTED)
ENDED = (DeploymentState.COMMITTED, DeploymentState.FAILED, DeploymentState.ROLLED_BACK, DeploymentState.SUPERSEDED)


@dataclass(frozen=True)
class HeldOrder:
    """An order that the device is believed to hold; `done` are the indices of its stored attempts."""

    order: Order
    done: frozenset[int]


@dataclass(frozen=True)
class KnownDeployment:
    """A deployment of the device, and how it stands as far as the controller knows; None: it got that one elsewhere."""

    deployment: Deployment | None
    status: DeploymentStatus


@dataclass(frozen=True)
class Difference:
    """What to do about the difference.

    Attributes:
        resend: orders that the device lost or never got, without the launches that are done or about to be told.
        finished: ids of orders with nothing left to do.
        cancel: orders that the device holds and should not.
        deploy: deployments that the device does not run.
        learned: statuses that the device knows better.
    """

    resend: tuple[Order, ...] = ()
    finished: tuple[str, ...] = ()
    cancel: tuple[Cancel, ...] = ()
    deploy: tuple[Deployment, ...] = ()
    learned: tuple[DeploymentStatus, ...] = ()


def reconcile(hello: Hello, held: Sequence[HeldOrder], known: Sequence[KnownDeployment], *, too_old: bool = False) -> Difference:
    """The difference between what `hello` says and what is stored.

    Args:
        known: all deployments of the device.
        too_old: its agent is only learned from.
    """
    stored = {k.status.id: k.status for k in known}
    learned = tuple(s for s in hello.deployments if stored.get(s.id) != s and s.state is not DeploymentState.UNSPECIFIED)
    if too_old:
        return Difference(learned=learned)
    resend, finished = _orders(hello, held)
    ids = {h.order.id for h in held}
    cancel = tuple(Cancel(o) for o in dict.fromkeys(hello.open_orders) if o not in ids)
    return Difference(resend, finished, cancel, _deployments(hello, known), learned)


def _orders(hello: Hello, held: Sequence[HeldOrder]) -> tuple[tuple[Order, ...], tuple[str, ...]]:
    coming: dict[str, set[int]] = {}
    for attempt in hello.unacknowledged:
        coming.setdefault(attempt.order, set()).add(attempt.index)
    resend: list[Order] = []
    finished: list[str] = []
    for entry in held:
        if entry.order.id in hello.open_orders:
            continue
        if remaining(entry.order, entry.done) is None:
            finished.append(entry.order.id)
        elif left := remaining(entry.order, entry.done | coming.get(entry.order.id, set())):
            resend.append(left)
    return tuple(resend), tuple(finished)


def _deployments(hello: Hello, known: Iterable[KnownDeployment]) -> tuple[Deployment, ...]:
    """The newest of each model, unless it has failed, or the device speaks of it (or of a newer one) itself."""
    newest: dict[str, KnownDeployment] = {}
    for entry in known:
        present = newest.get(entry.status.model)
        if present is None or present.status.generation < entry.status.generation:
            newest[entry.status.model] = entry
    reached: dict[str, int] = {}
    for status in hello.deployments:
        if status.state is not DeploymentState.STAGED:
            reached[status.model] = max(status.generation, reached.get(status.model, 0))
    return tuple(
        entry.deployment
        for model, entry in sorted(newest.items())
        if entry.deployment and entry.status.state in WANTED and reached.get(model, 0) < entry.status.generation
    )

"""Statements about orders and their attempts; each function runs inside the caller's transaction."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from sqlalchemy import Connection, func, insert, select, update

from controller.store.base import Changes, OrderChange, QueueEntry, StoredOrder
from controller.store.tables import attempts, orders, runs
from edgefarm.errors import NotFound
from edgefarm.model import Attempt, Failure, LatencyResult, Order, OrderState
from edgefarm.wire import from_bytes, to_bytes

OPEN = (OrderState.QUEUED, OrderState.SENT)
_MOST_PARAMETERS = 500  # of one IN (…): databases limit them


def bump(connection: Connection, run: str) -> int:
    """The run's next revision. Raises NotFound."""
    connection.execute(update(runs).where(runs.c.name == run).values(revision=runs.c.revision + 1))
    return revision(connection, run)


def revision(connection: Connection, run: str) -> int:
    """The run's revision. Raises NotFound."""
    found = connection.execute(select(runs.c.revision).where(runs.c.name == run)).scalar()
    if found is None:
        raise NotFound(f"no run {run!r}")
    return int(found)


def add(connection: Connection, new: Sequence[Order]) -> None:
    """Queues orders whose ids are not known yet."""
    known = _known(connection, [o.id for o in new])
    fresh = {o.id: o for o in new if o.id not in known}
    revisions = {run: bump(connection, run) for run in sorted({o.run for o in fresh.values()})}
    rows = [
        {
            "id": o.id, "run": o.run, "device": o.device, "device_class": o.device_class, "state": OrderState.QUEUED.value,
            "sent_to": "", "touched": False, "losses": 0, "revision": revisions[o.run], "payload": to_bytes(o),
            "window": o.window, "only_on": json.dumps(sorted(o.only_on)) if o.only_on else "",
        }
        for o in fresh.values()
    ]  # fmt: skip
    if rows:
        connection.execute(insert(orders), rows)


def _known(connection: Connection, ids: Sequence[str]) -> set[str]:
    known: set[str] = set()
    for start in range(0, len(ids), _MOST_PARAMETERS):
        known.update(connection.execute(select(orders.c.id).where(orders.c.id.in_(ids[start : start + _MOST_PARAMETERS]))).scalars())
    return known


def queue(connection: Connection) -> list[QueueEntry]:
    """Orders that have not ended, by submission."""
    columns = (orders.c.id, orders.c.run, orders.c.device, orders.c.device_class, orders.c.state, orders.c.sent_to)
    query = select(*columns, orders.c.touched, orders.c.losses, orders.c.sequence, orders.c.window, orders.c.only_on)
    rows = connection.execute(query.where(orders.c.state.in_([s.value for s in OPEN])).order_by(orders.c.sequence))
    return [
        QueueEntry(
            r.id, r.run, r.device, r.device_class, OrderState(r.state), r.sent_to, r.touched, r.losses, r.sequence, r.window,
            frozenset(json.loads(r.only_on)) if r.only_on else frozenset(),
        )
        for r in rows
    ]  # fmt: skip


def one(connection: Connection, order_id: str) -> StoredOrder | None:
    """One order with the indices of its attempts that count."""
    row = connection.execute(select(orders.c.payload, orders.c.state, orders.c.sent_to).where(orders.c.id == order_id)).first()
    if row is None:
        return None
    done = connection.execute(select(attempts.c.index).where(attempts.c.order_id == order_id, attempts.c.retired == 0)).scalars()
    return StoredOrder(from_bytes(Order, row.payload), OrderState(row.state), row.sent_to, frozenset(done))


def mark(connection: Connection, order_id: str, state: OrderState, sent_to: str, from_states: Collection[OrderState]) -> bool:
    """Moves an order if it is in one of `from_states`."""
    row = connection.execute(select(orders.c.run, orders.c.state).where(orders.c.id == order_id)).first()
    if row is None or OrderState(row.state) not in from_states:
        return False
    values: dict[str, object] = {"state": state.value, "revision": bump(connection, row.run)}
    if state in OPEN:
        values["sent_to"] = sent_to
    if state is OrderState.SENT:
        values["touched"] = False
    connection.execute(update(orders).where(orders.c.id == order_id).values(values))
    return True


def add_loss(connection: Connection, order_id: str) -> int:
    """Counts a loss."""
    connection.execute(update(orders).where(orders.c.id == order_id).values(losses=orders.c.losses + 1))
    return int(connection.execute(select(orders.c.losses).where(orders.c.id == order_id)).scalar_one())


def add_attempt(connection: Connection, attempt: Attempt, state: OrderState | None) -> bool:
    """Stores an attempt once. One that a retry set aside is known by its bytes when it comes a second time."""
    run = connection.execute(select(orders.c.run).where(orders.c.id == attempt.order)).scalar()
    if run is None:
        raise NotFound(f"no order {attempt.order!r}")
    payload = to_bytes(attempt)
    same = select(attempts.c.retired, attempts.c.payload).where(attempts.c.order_id == attempt.order, attempts.c.index == attempt.index)
    if any(r.retired == 0 or bytes(r.payload) == payload for r in connection.execute(same)):
        return False
    number = bump(connection, run)
    row = {"order_id": attempt.order, "index": attempt.index, "retired": 0, "revision": number, "payload": payload}
    connection.execute(insert(attempts).values(row))
    values: dict[str, object] = {"touched": True}
    if state is not None:
        values |= {"state": state.value, "revision": number}
    connection.execute(update(orders).where(orders.c.id == attempt.order).values(values))
    return True


def retry(connection: Connection, run: str, only: Collection[str] = ()) -> list[str]:
    """Sets failed attempts of ended orders (of `only` these, if any) aside, queues those orders again. Nothing measured is deleted."""
    number = bump(connection, run)
    ended = [OrderState.DONE.value, OrderState.QUARANTINED.value]
    query = select(attempts.c.order_id, attempts.c.index, attempts.c.payload).join(orders, orders.c.id == attempts.c.order_id)
    query = query.where(orders.c.run == run, orders.c.state.in_(ended), attempts.c.retired == 0)
    failed = [(r.order_id, r.index) for r in connection.execute(query) if _failed(from_bytes(Attempt, r.payload))]
    failed = [(order_id, index) for order_id, index in failed if not only or order_id in only]
    for order_id, index in failed:
        here = (attempts.c.order_id == order_id) & (attempts.c.index == index)
        free = connection.execute(select(func.max(attempts.c.retired)).where(here)).scalar_one() + 1
        connection.execute(update(attempts).where(here, attempts.c.retired == 0).values(retired=free))
    again = dict.fromkeys(order_id for order_id, _ in failed)
    quarantined = select(orders.c.id).where(orders.c.run == run, orders.c.state == OrderState.QUARANTINED.value).order_by(orders.c.sequence)
    again |= dict.fromkeys(i for i in connection.execute(quarantined).scalars() if not only or i in only)
    for order_id in again:
        values = {"state": OrderState.QUEUED.value, "sent_to": "", "losses": 0, "touched": False, "revision": number}
        connection.execute(update(orders).where(orders.c.id == order_id).values(values))
    return list(again)


def _failed(attempt: Attempt) -> bool:
    if isinstance(attempt.outcome, LatencyResult):
        return any(c.failure for c in attempt.outcome.contenders)
    return isinstance(attempt.outcome, Failure)


def changes(connection: Connection, run: str, since: int) -> Changes:
    """Orders and attempts of a run that changed after revision `since`."""
    number = revision(connection, run)
    changed = select(orders.c.payload, orders.c.state, orders.c.sent_to).where(orders.c.run == run, orders.c.revision > since)
    rows = connection.execute(changed.order_by(orders.c.sequence)).all()
    new = select(attempts.c.payload).join(orders, orders.c.id == attempts.c.order_id)
    new = new.where(orders.c.run == run, attempts.c.retired == 0, attempts.c.revision > since)
    payloads = connection.execute(new.order_by(orders.c.sequence, attempts.c.index)).scalars().all()
    return Changes(
        number,
        tuple(OrderChange(from_bytes(Order, r.payload), OrderState(r.state), r.sent_to) for r in rows),
        tuple(from_bytes(Attempt, p) for p in payloads),
    )

"""`SqlStore`: the store on a SQL database. SQLite (a file, or memory) by default; nothing here is SQLite's own."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from sqlalchemy import Connection, delete, insert, select, update

from controller.store import counts, deployment_rows, identity_rows, order_rows, tables
from controller.store.base import Changes, Counts, QueueEntry, Share, StoredDeployment, StoredOrder
from controller.store.engine import connect, transaction, upgrade
from controller.store.identities import Member, Token
from controller.store.tables import devices, holds, runs
from edgefarm.errors import NotFound, StorageError
from edgefarm.model import CANCELLED, Attempt, Deployment, DeploymentStatus, Device, Hold, HoldKind, Order, OrderState, Run
from edgefarm.wire import from_bytes, to_bytes


class SqlStore:
    """Implements `controller.store.Store`.

    Args:
        location: a path of a SQLite file (made if absent), `:memory:`, or a SQLAlchemy URL.

    Raises:
        StorageError: the database can't be opened, is full, read-only, damaged or held by another process.
        UserError: a newer version of edgefarm wrote it.
    """

    def __init__(self, location: Path | str) -> None:
        if isinstance(location, Path):
            try:
                location.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(f"store {location}: {error.strerror}: choose another place with --state") from error
        self._engine, self._place = connect(location)
        # One connection serves a database in memory: its transactions take turns. Else only writers do.
        self._reads_take_turns = str(location) == ":memory:"
        self._turn = threading.RLock()
        try:
            upgrade(self._engine, self._place)
        except BaseException:
            self._engine.dispose()
            raise

    def close(self) -> None:
        """Releases the database."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _read(self) -> Iterator[Connection]:
        with (
            self._turn if self._reads_take_turns else contextlib.nullcontext(),
            transaction(self._engine, self._place, write=False) as connection,
        ):
            yield connection

    @contextlib.contextmanager
    def _write(self) -> Iterator[Connection]:
        with self._turn, transaction(self._engine, self._place, write=True) as connection:
            yield connection

    def open_run(self, campaign: str, spec_digest: str, spec: str, owner: str, labels: Mapping[str, str], now_unix_ms: int) -> Run:
        """The campaign's newest run if its spec is the same (it gets the labels) and not cancelled, else a new one of its owner."""
        with self._write() as connection:
            query = select(runs.c.payload).where(runs.c.campaign == campaign).order_by(runs.c.number.desc()).limit(1)
            payload = connection.execute(query).scalar()
            newest = None if payload is None else from_bytes(Run, payload)
            if newest is not None and newest.spec_digest == spec_digest and newest.state != CANCELLED:
                if newest.labels != dict(labels):
                    newest = replace(newest, labels=dict(labels))
                    connection.execute(update(runs).where(runs.c.name == newest.name).values(payload=to_bytes(newest)))
                return newest
            number = newest.number + 1 if newest else 1
            whose = newest.owner if newest else owner
            run = Run(f"{campaign}@{number}", campaign, number, spec_digest, spec, "open", whose, dict(labels), now_unix_ms)
            row = {"name": run.name, "campaign": campaign, "number": number, "spec_digest": spec_digest}
            connection.execute(insert(runs).values(row | {"revision": 0, "payload": to_bytes(run)}))
            return run

    def update_run(self, run: Run) -> None:
        """Replaces a run. Raises NotFound."""
        with self._write() as connection:
            row = connection.execute(select(runs.c.payload).where(runs.c.name == run.name)).scalar()
            if row is None:
                raise NotFound(f"no run {run.name!r}")
            known = from_bytes(Run, row)
            kept = {"campaign": known.campaign, "number": known.number, "spec_digest": known.spec_digest, "owner": known.owner}
            fixed = replace(run, **kept)  # type: ignore[arg-type]
            connection.execute(update(runs).where(runs.c.name == run.name).values(payload=to_bytes(fixed)))

    def runs(self, campaign: str = "") -> list[Run]:
        """Runs (of a campaign), oldest first."""
        query = select(runs.c.payload).order_by(runs.c.sequence)
        with self._read() as connection:
            return [
                from_bytes(Run, p) for p in connection.execute(query.where(runs.c.campaign == campaign) if campaign else query).scalars()
            ]

    def run(self, name: str) -> Run | None:
        """One run."""
        with self._read() as connection:
            payload = connection.execute(select(runs.c.payload).where(runs.c.name == name)).scalar()
            return None if payload is None else from_bytes(Run, payload)

    def save_hold(self, hold: Hold) -> None:
        """Adds or replaces the hold of one kind on one name."""
        row = {"kind": hold.kind.value, "name": hold.name, "holder": hold.holder, "expires_unix_ms": hold.expires_unix_ms}
        with self._write() as connection:
            connection.execute(delete(holds).where(holds.c.kind == hold.kind.value, holds.c.name == hold.name))
            connection.execute(insert(holds).values(row))

    def delete_hold(self, kind: HoldKind, name: str) -> None:
        """Forgets a hold, if there is one."""
        with self._write() as connection:
            connection.execute(delete(holds).where(holds.c.kind == kind.value, holds.c.name == name))

    def holds(self) -> list[Hold]:
        """All holds, by kind and name, also those whose time is over."""
        with self._read() as connection:
            rows = connection.execute(select(holds).order_by(holds.c.kind, holds.c.name))
            return [Hold(HoldKind(r.kind), r.name, r.holder, r.expires_unix_ms) for r in rows]

    def save_shares(self, host: str, shares: Sequence[Share]) -> None:
        """Replaces the shares of one host."""
        with self._write() as connection:
            connection.execute(delete(tables.shares).where(tables.shares.c.host == host))
            if shares:
                connection.execute(insert(tables.shares), [asdict(s) for s in shares])

    def shares(self) -> list[Share]:
        """All shares, by host and owner."""
        with self._read() as connection:
            rows = connection.execute(select(tables.shares).order_by(tables.shares.c.host, tables.shares.c.owner))
            return [Share(**r._mapping) for r in rows]

    def add_token(self, token: Token, now_unix_ms: int) -> None:
        """Keeps a token; forgets those that are over, and an older one for the same name."""
        with self._write() as connection:
            identity_rows.add_token(connection, token, now_unix_ms)

    def token(self, secret_hash: str) -> Token | None:
        """One token."""
        with self._read() as connection:
            return identity_rows.token(connection, secret_hash)

    def drop_tokens(self, kind: str, name: str) -> None:
        """Forgets the tokens that are good for this name only."""
        with self._write() as connection:
            identity_rows.drop_tokens(connection, kind, name)

    def save_member(self, member: Member, uses_token: str = "") -> None:
        """Adds or replaces a member, and takes a use of a token."""
        with self._write() as connection:
            identity_rows.save_member(connection, member, uses_token)

    def members(self) -> list[Member]:
        """All members, by kind and name."""
        with self._read() as connection:
            return identity_rows.all_members(connection)

    def save_device(self, device: Device, last_seen_unix_ms: int) -> None:
        """Adds or replaces a device by name."""
        values = {"last_seen_unix_ms": last_seen_unix_ms, "payload": to_bytes(device)}
        with self._write() as connection:
            if connection.execute(select(devices.c.name).where(devices.c.name == device.name)).first():
                connection.execute(update(devices).where(devices.c.name == device.name).values(values))
            else:
                connection.execute(insert(devices).values(values | {"name": device.name}))

    def devices(self) -> list[tuple[Device, int]]:
        """Devices and when they were seen last (UTC ms), by name."""
        with self._read() as connection:
            rows = connection.execute(select(devices.c.payload, devices.c.last_seen_unix_ms).order_by(devices.c.name))
            return [(from_bytes(Device, r.payload), r.last_seen_unix_ms) for r in rows]

    def add_orders(self, orders: Sequence[Order]) -> None:
        """Queues orders; known ids stay as they are. Raises NotFound for an unknown run."""
        with self._write() as connection:
            order_rows.add(connection, orders)

    def queue(self) -> list[QueueEntry]:
        """Orders that have not ended, by submission."""
        with self._read() as connection:
            return order_rows.queue(connection)

    def order(self, order_id: str) -> StoredOrder | None:
        """One order."""
        with self._read() as connection:
            return order_rows.one(connection, order_id)

    def mark(self, order_id: str, state: OrderState, sent_to: str = "", *, from_states: Collection[OrderState]) -> bool:
        """Moves an order to `state` if it is in one of `from_states`; says whether it was."""
        with self._write() as connection:
            return order_rows.mark(connection, order_id, state, sent_to, from_states)

    def add_loss(self, order_id: str) -> int:
        """Counts a loss; returns the new count."""
        with self._write() as connection:
            return order_rows.add_loss(connection, order_id)

    def add_attempt(self, attempt: Attempt, state: OrderState | None = None) -> bool:
        """Stores an attempt once, and moves its order to `state`; False if it was there. Raises NotFound."""
        with self._write() as connection:
            return order_rows.add_attempt(connection, attempt, state)

    def retry(self, run: str, orders: Collection[str] = ()) -> list[str]:
        """Sets failed attempts of ended orders (of these, if any are named) aside and queues those orders again; returns their ids."""
        with self._write() as connection:
            return order_rows.retry(connection, run, orders)

    def revision(self, run: str) -> int:
        """Grows with every change of a run's orders or attempts. Raises NotFound."""
        with self._read() as connection:
            return order_rows.revision(connection, run)

    def changes(self, run: str, since: int) -> Changes:
        """What changed after revision `since`. Raises NotFound."""
        with self._read() as connection:
            return order_rows.changes(connection, run, since)

    def add_deployment(self, deployment: Deployment, status: DeploymentStatus, undoes: str = "") -> None:
        """Adds a deployment. Raises UserError on a generation that is not the newest."""
        with self._write() as connection:
            deployment_rows.add(connection, deployment, status, undoes)

    def save_status(self, status: DeploymentStatus) -> None:
        """Stores what a device says; adopts an unknown deployment. When committed, the one before is superseded (or rolled back)."""
        with self._write() as connection:
            deployment_rows.save_status(connection, status)

    def history(self, device: str, model: str = "") -> list[StoredDeployment]:
        """Deployments of a device (of one model), by model, oldest generation first."""
        with self._read() as connection:
            return deployment_rows.history(connection, device, model)

    def newest_deployments(self, device: str = "", model: str = "") -> list[StoredDeployment]:
        """The newest of every (device, model), by device and model."""
        with self._read() as connection:
            return deployment_rows.newest(connection, device, model)

    def counts(self) -> Counts:
        """How much there is of what."""
        with self._read() as connection:
            return counts.counts(connection)

    def statuses(self, ids: Collection[str]) -> list[DeploymentStatus]:
        """Statuses of some deployments."""
        with self._read() as connection:
            return deployment_rows.statuses(connection, ids)

"""`Farm`: the controller's core, in one process. The driver sees it as `Control`; the servicers bring it the devices.

One lock guards all, and only the database is waited for while holding it. What a device is told follows from what is stored and
from its Hello alone (`controller.reconcile`); what it measures next from what is queued (`controller.schedule`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from controller.artifacts import ArtifactStore
from controller.deployments import UNDERWAY, Deployments
from controller.dispatch import Dispatcher
from controller.progress import RunView
from controller.sessions import Doorkeeper, Peer, Session
from controller.store import Store
from edgefarm.errors import NotFound, ProtocolError, StorageError
from edgefarm.model import (
    FEATURES,
    PROTOCOL,
    AgentBody,
    Deployment,
    DeploymentStatus,
    DeviceStatus,
    Heartbeat,
    Hello,
    Order,
    Progress,
    Run,
    Welcome,
)

HEARTBEAT_S = 5.0
LOST_AFTER_S = 30.0
_SILENT_HEARTBEATS = 3


def _utc_ms() -> int:
    return time.time_ns() // 1_000_000


class Farm:
    """Implements `controller.control.Control`, and the device side that `controller.servicers` need. Safe from any thread.

    Args:
        store: durable state; the farm is its only writer.
        artifacts: bytes by digest.
        heartbeat_s: how often devices give a sign of life; three missing ones end a session.
        lost_after_s: how long a device may be away before its orders are taken back.
        clock: monotonic seconds.
        wall: UTC milliseconds.
    """

    def __init__(
        self,
        store: Store,
        artifacts: ArtifactStore,
        *,
        heartbeat_s: float = HEARTBEAT_S,
        lost_after_s: float = LOST_AFTER_S,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], int] = _utc_ms,
    ) -> None:
        self.artifacts = artifacts
        self.doorkeeper = Doorkeeper()
        self._store, self._heartbeat_s, self._wall = store, heartbeat_s, wall
        self._changed = threading.Condition(threading.RLock())
        self._dispatcher = Dispatcher(store, clock, wall, lost_after_s)
        self._deployments = Deployments(store, self._dispatcher.send_deployment)
        self._views: dict[str, RunView] = {}
        self._epoch = 0
        self._failed: StorageError | None = None

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Holds the lock, then wakes all who wait for a change."""
        with self._changed:
            try:
                yield
            finally:
                self._changed.notify_all()

    def _raise_failed(self) -> None:
        """Raises, once, what `storage_failed` was told. Callers hold the lock."""
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

    # Control: runs and artifacts

    def open_run(self, campaign: str, spec_digest: str, spec: str, owner: str, labels: Mapping[str, str]) -> Run:
        """The campaign's newest run if its `spec_digest` is equal, else a new one."""
        return self._store.open_run(campaign, spec_digest, spec, owner, labels, self._wall())

    def update_run(self, run: Run) -> None:
        """Stores state, report, exit code and end of a run. Raises NotFound."""
        self._store.update_run(run)

    def runs(self, campaign: str = "") -> Sequence[Run]:
        """All runs (of a campaign), oldest first."""
        return self._store.runs(campaign)

    def has(self, digest: str) -> bool:
        """Whether the artifact store holds these bytes."""
        return self.artifacts.has(digest)

    def put(self, source: Path | bytes) -> str:
        """Stores bytes unless they are there; returns their digest."""
        return self.artifacts.put(source)

    def get(self, digest: str) -> Path:
        """A local, read-only file with these bytes. Raises NotFound."""
        return self.artifacts.local_path(digest)

    # Control: devices and orders

    def devices(self) -> Sequence[DeviceStatus]:
        """All registered devices, by name."""
        with self._changed:
            return self._dispatcher.statuses()

    def submit(self, orders: Sequence[Order]) -> None:
        """Queues orders; one whose id is known already is left as it is. Raises NotFound for an unknown run."""
        with self._changing():
            self._store.add_orders(orders)
            self._dispatcher.dispatch()

    def cancel(self, run: str, orders: Sequence[str]) -> None:
        """Cancels orders that have not ended."""
        with self._changing():
            self._dispatcher.cancel(run, set(orders))

    def retry(self, run: str, orders: Collection[str] = ()) -> None:
        """Lifts quarantines and remembered failures of a run's orders (of these, if any are named): their failed attempts are set
        aside, they are queued again."""
        with self._changing():
            self._store.retry(run, orders)
            self._views.pop(run, None)
            self._dispatcher.dispatch()

    def progress(self, run: str, since: int = -1, wait_s: float = 0.0) -> Progress:
        """All orders of a run with their attempts; waits until its revision is above `since`, or `wait_s` passed. Raises NotFound."""
        with self._changed:
            self._changed.wait_for(lambda: self._failed or self._store.revision(run) > since, wait_s)
            self._raise_failed()
            view = self._views.setdefault(run, RunView(self._store, run))
            return view.refresh()

    def wait_for_devices(self, names: Collection[str], timeout_s: float) -> list[str]:
        """Waits until each is attached and has probed, or was given up (`mark_lost`), or the time is over; returns those missing."""

        def missing() -> list[str]:
            there = {s.device.name for s in self._dispatcher.statuses() if s.state not in ("lost", "probing")}
            return sorted(set(names) - there)

        with self._changed:
            self._changed.wait_for(lambda: self._failed or not set(missing()) - self._dispatcher.given_up(), timeout_s)
            self._raise_failed()
            return missing()

    # Control: deployments

    def deploy(self, deployments: Sequence[Deployment], retry: bool = False) -> Sequence[DeploymentStatus]:
        """Says what devices are to run. Raises NotFound for an unknown device, UserError for a generation that went back."""
        with self._changing():
            return self._deployments.deploy(deployments, retry)

    def deployments(self, model: str = "") -> Sequence[DeploymentStatus]:
        """The newest deployment of every (device, model)."""
        return [s.status for s in self._store.newest_deployments(model=model)]

    def roll_back(self, model: str, devices: Sequence[str]) -> Sequence[DeploymentStatus]:
        """Orders the last committed deployment before the present one again. Raises UserError if there is none."""
        with self._changing():
            return self._deployments.roll_back(model, devices)

    def wait_for_deployments(self, ids: Sequence[str], timeout_s: float) -> Sequence[DeploymentStatus]:
        """Waits until each has ended (committed, failed …) or the time is over; returns the statuses as they are then. Raises NotFound."""
        with self._changed:
            self._changed.wait_for(lambda: self._failed or all(s.state not in UNDERWAY for s in self._store.statuses(ids)), timeout_s)
            self._raise_failed()
            found = {s.id: s for s in self._store.statuses(ids)}
        if missing := [i for i in ids if i not in found]:
            raise NotFound(f"no deployment {missing[0]!r}")
        return [found[i] for i in ids]

    # The device side

    def attach(self, peer: Peer, hello: Hello, wake: Callable[[], None]) -> Session:
        """Takes a device in; Welcome and what it must do wait in the session. Raises Denied, ProtocolError, StorageError."""
        if hello.device.name != peer.device or not hello.instance:
            raise ProtocolError(f"device {peer.device!r} said Hello as {hello.device.name!r}, instance {hello.instance!r}")
        with self._changing():
            token = self.doorkeeper.exchange(peer, hello.instance)
            self._epoch = max(self._epoch + 1, self._wall())  # grows over restarts too
            session = Session(peer.device, hello.instance, self._epoch, wake)
            features = tuple(f for f in FEATURES if f in hello.features)
            heartbeat_ns = round(self._heartbeat_s * 1e9)
            session.send([Welcome(min(PROTOCOL, hello.protocol), features, self._epoch, heartbeat_ns, token)])
            self._dispatcher.attach(session, hello)
            return session

    def receive(self, session: Session, body: AgentBody) -> None:
        """Takes what an attached device says. Raises the error that ended its session, or StorageError."""
        if isinstance(body, Hello):
            raise ProtocolError(f"device {session.device!r} said Hello twice in one session")
        with self._changed:
            self._dispatcher.receive(session, body)
            if not isinstance(body, Heartbeat):
                self._changed.notify_all()

    def detach(self, session: Session, reason: str = "its connection is gone") -> None:
        """The stream ended."""
        with self._changing():
            self._dispatcher.detach(session, reason)

    def mark_lost(self, device: str, reason: str) -> None:
        """Says why nobody expects a device back; forgotten when it attaches."""
        with self._changing():
            self._dispatcher.mark_lost(device, reason)

    def storage_failed(self, error: StorageError) -> None:
        """Takes an error of the store or the artifacts that a device met: who waits for devices here gets it, since they can't go on."""
        with self._changing():
            self._failed = error

    def tick(self) -> None:
        """Notices silence; call it every second or so."""
        with self._changed:
            if self._dispatcher.tick(_SILENT_HEARTBEATS * self._heartbeat_s):
                self._changed.notify_all()

    def check_fetch(self, device: str, digest: str) -> None:
        """Raises Denied unless an open order or a deployment of the device needs these bytes."""
        with self._changed:
            self._dispatcher.check_fetch(device, digest)

    def check_stat(self, device: str) -> None:
        """Raises Denied unless the device has something to fetch or push."""
        with self._changed:
            self._dispatcher.check_stat(device)

    def take_quota(self, device: str, count: int) -> None:
        """Takes bytes of what the device may push, gives them back if negative. Raises QuotaExceeded."""
        with self._changed:
            self._dispatcher.take_quota(device, count)

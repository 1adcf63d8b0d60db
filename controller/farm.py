"""`Farm`: the controller's core, in one process. The driver sees it as `Control`; the servicers bring it the devices.

One lock guards all, and only the database is waited for while holding it. What a device is told follows from what is stored and
from its Hello alone (`controller.reconcile`); what it measures next from what is queued (`controller.schedule`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from controller.artifacts import ArtifactStore
from controller.changes import Change
from controller.deployments import UNDERWAY, Deployments
from controller.dispatch import Dispatcher
from controller.holds import Holds
from controller.runs import Runs
from controller.sessions import Doorkeeper, Peer, Session
from controller.store import Store
from controller.telemetry import Relay
from controller.versions import why_too_old
from edgefarm import __version__, windows
from edgefarm.errors import Denied, EdgefarmError, NotFound, ProtocolError, StorageError, UserError
from edgefarm.model import (
    FEATURES,
    PROTOCOL,
    AgentBody,
    Deployment,
    DeploymentStatus,
    DeviceStatus,
    Heartbeat,
    Hello,
    Hold,
    HoldKind,
    Order,
    Progress,
    Run,
    Telemetry,
    Wait,
    Welcome,
)

HEARTBEAT_S = 5.0
# Together with the silence before it: a device whose link was cut for a minute comes back to its order, which nobody else has run.
LOST_AFTER_S = 75.0
DRIVER_LIMIT_S = 30.0  # after which a driver that gave no sign of life is gone
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
        labels: those that users set for a device, on top of its own.
        telemetry_s: how often devices report their metrics; 0: never, nobody looks at them.
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
        labels: Callable[[str], Mapping[str, str]] = lambda device: {},
        telemetry_s: float = 0.0,
    ) -> None:
        self.artifacts = artifacts
        self._labels = labels
        self.doorkeeper = Doorkeeper()
        self.relay = Relay(telemetry_s, wall)
        self._store, self._heartbeat_s, self._wall = store, heartbeat_s, wall
        self._changed = Change()
        self.watched = self._changed.watched  # tells those who can't wait in a thread
        self._holds = Holds(store, wall)
        self._dispatcher = Dispatcher(store, self._holds, clock, wall, lost_after_s)
        self._deployments = Deployments(store, self._dispatcher.send_deployment)
        self._runs = Runs(store, self._dispatcher.owner, wall)
        self._epoch = 0

    @property
    def store(self) -> Store:
        """The durable state, to look at."""
        return self._store

    # Control: runs and artifacts

    def open_run(self, campaign: str, spec_digest: str, spec: str, owner: str, labels: Mapping[str, str], *, admin: bool = True) -> Run:
        """The campaign's newest run if its `spec_digest` is equal, else a new one, of the same owner. Raises Denied.

        Args:
            owner: who asks; a new campaign is theirs.
            admin: they may go on with another user's campaign; so may everybody who may open the state folder of a hosted farm.
        """
        with self._changed:
            return self._runs.open(campaign, spec_digest, spec, owner, labels, admin=admin)

    def check_owner(self, user: str, runs: Iterable[str]) -> None:
        """Raises Denied for the first run that is another user's."""
        with self._changed:
            self._runs.check_owner(user, runs)

    def update_run(self, run: Run) -> None:
        """Stores state, report, exit code and end of a run. Raises NotFound, RunCancelled."""
        with self._changed.making():
            self._runs.update(run)
            self._dispatcher.run_changed(run.name)

    def cancel_run(self, run: str) -> Run:
        """Ends a run for good: its open orders are cancelled, its driver is told. Raises NotFound, UserError if it has ended."""
        with self._changed.making():
            ended = self._runs.cancel(run)
            self._dispatcher.cancel(run, None)
            return ended

    def runs(self, campaign: str = "", *, brief: bool = False) -> Sequence[Run]:
        """All runs (of a campaign), oldest first; `brief`: without specs and reports."""
        found = self._store.runs(campaign)
        return [replace(r, spec="", report="") for r in found] if brief else found

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
            return [self._labelled(s) for s in self._dispatcher.statuses()]

    def _labelled(self, status: DeviceStatus) -> DeviceStatus:
        device = status.device
        return replace(status, device=replace(device, labels={**device.labels, **self._labels(device.name)}))

    def submit(self, orders: Sequence[Order]) -> None:
        """Queues orders; one whose id is known already is left as it is. Raises NotFound for an unknown run, UserError for a bad window."""
        for window in {o.window for o in orders if o.window}:
            try:
                windows.parse(window)
            except ValueError as error:
                raise UserError(f"an order's window: {error}") from None
        with self._changed.making():
            for run in dict.fromkeys(o.run for o in orders):
                self._runs.check_not_cancelled(run)
            self._store.add_orders(orders)
            self._dispatcher.dispatch()

    def cancel(self, run: str, orders: Sequence[str]) -> None:
        """Cancels orders that have not ended."""
        with self._changed.making():
            self._dispatcher.cancel(run, set(orders))

    def retry(self, run: str, orders: Collection[str] = ()) -> None:
        """Lifts quarantines and remembered failures of a run's orders (of these, if any are named): their failed attempts are set
        aside, they are queued again."""
        with self._changed.making():
            self._runs.retry(run, orders)
            self._dispatcher.dispatch()

    def progress(self, run: str, since: int = -1, wait_s: float = 0.0) -> Progress:
        """All orders of a run with their attempts; waits until its revision is above `since`, or `wait_s` passed. Raises NotFound."""
        with self._changed:
            self._changed.until(lambda: self._store.revision(run) > since, wait_s)
            return self._runs.view(run).refresh()

    def news(self, run: str, since: int) -> Progress:
        """As `progress`, at once, and only of orders that changed after revision `since`, each whole."""
        with self._changed:
            self._changed.raise_failed()
            return self._runs.view(run).news(since)

    def waits(self, run: str = "") -> Sequence[Wait]:
        """What orders that wait (of one run), wait for, by run and device; those that only wait for their run's own are not told."""
        with self._changed:
            return self._dispatcher.standing().waits(run)

    def wait_for_devices(self, names: Collection[str], timeout_s: float) -> list[str]:
        """Waits until each is attached and has probed, or was given up (`mark_lost`), or the time is over; returns those missing."""

        def missing() -> list[str]:
            there = {s.device.name for s in self._dispatcher.statuses() if s.state not in ("lost", "probing")}
            return sorted(set(names) - there)

        with self._changed:
            self._changed.until(lambda: not set(missing()) - self._dispatcher.given_up(), timeout_s)
            return missing()

    # Control: deployments

    def deploy(self, deployments: Sequence[Deployment], retry: bool = False) -> Sequence[DeploymentStatus]:
        """Says what devices are to run. Raises NotFound for an unknown device, UserError for a generation that went back."""
        with self._changed.making():
            return self._deployments.deploy(deployments, retry)

    def deployments(self, model: str = "") -> Sequence[DeploymentStatus]:
        """The newest deployment of every (device, model)."""
        return [s.status for s in self._store.newest_deployments(model=model)]

    def roll_back(self, model: str, devices: Sequence[str]) -> Sequence[DeploymentStatus]:
        """Orders the last committed deployment before the present one again. Raises UserError if there is none."""
        with self._changed.making():
            return self._deployments.roll_back(model, devices)

    def wait_for_deployments(self, ids: Sequence[str], timeout_s: float) -> Sequence[DeploymentStatus]:
        """Waits until each has ended (committed, failed …) or the time is over; returns the statuses as they are then. Raises NotFound."""
        with self._changed:
            self._changed.until(lambda: all(s.state not in UNDERWAY for s in self._store.statuses(ids)), timeout_s)
            found = {s.id: s for s in self._store.statuses(ids)}
        if missing := [i for i in ids if i not in found]:
            raise NotFound(f"no deployment {missing[0]!r}")
        return [found[i] for i in ids]

    # Control: holds

    def drive(self, campaign: str, driver: str, user: str | None = None) -> None:
        """Holds a campaign for one driver, for DRIVER_LIMIT_S; repeat it to go on. Raises Busy where another one holds it, Denied.

        Args:
            user: whose driver it is; None: it may drive everybody's campaigns.
        """
        with self._changed:
            self._runs.check_campaign(campaign, user)
            self._holds.take(HoldKind.DRIVER, [campaign], driver, DRIVER_LIMIT_S)

    def leave(self, campaign: str, driver: str) -> None:
        """Ends `drive`."""
        with self._changed:
            self._holds.leave(campaign, driver)

    def lease(self, devices: Sequence[str], holder: str, for_s: float) -> Sequence[Hold]:
        """Keeps devices for the orders of one owner: all, or none. Raises NotFound, Busy where one is leased to another."""
        if for_s <= 0:
            raise UserError(f"a lease lasts longer than {for_s:g} s")
        return self._hold(HoldKind.LEASE, devices, holder, for_s)

    def drain(self, devices: Sequence[str], holder: str) -> Sequence[Hold]:
        """Keeps devices from new orders until they are released; what runs there ends. Raises NotFound."""
        return self._hold(HoldKind.DRAIN, devices, holder, None)

    def _hold(self, kind: HoldKind, devices: Sequence[str], holder: str, for_s: float | None) -> Sequence[Hold]:
        with self._changed.making():
            self._check_registered(devices)
            taken = self._holds.take(kind, devices, holder, for_s)
            for device in devices:
                self._dispatcher.recall(device)
            self._dispatcher.dispatch()
            return taken

    def release(self, devices: Sequence[str], holder: str | None) -> Sequence[str]:
        """Ends leases of `holder` (None: anybody's) and drains of devices; returns those that were held. Raises NotFound, Denied."""
        with self._changed.making():
            self._check_registered(devices)
            held = self._holds.release(devices, holder)
            self._dispatcher.dispatch()
            return held

    def _check_registered(self, devices: Sequence[str]) -> None:
        for device in devices:
            if not self._dispatcher.known(device):
                raise NotFound(f"no device {device!r} is registered")

    def holds(self) -> Sequence[Hold]:
        """All that is held, by kind and name."""
        with self._changed:
            return self._holds.all()

    # The device side

    def attach(self, peer: Peer, hello: Hello, wake: Callable[[], None]) -> Session:
        """Takes a device in; Welcome and what it must do wait in the session. Raises Denied, ProtocolError, StorageError."""
        if hello.device.name != peer.device or not hello.instance:
            raise ProtocolError(f"device {peer.device!r} said Hello as {hello.device.name!r}, instance {hello.instance!r}")
        with self._changed.making():
            token = self.doorkeeper.exchange(peer, hello.instance)
            self._epoch = max(self._epoch + 1, self._wall())  # grows over restarts too
            session = Session(peer.device, hello.instance, self._epoch, wake)
            features = tuple(f for f in FEATURES if f in hello.features)
            protocol, heartbeat_ns = min(PROTOCOL, hello.protocol), round(self._heartbeat_s * 1e9)
            telemetry_ns, upgrade = self.relay.begin(peer.device), why_too_old(hello)
            times = (telemetry_ns, self._wall())
            session.send([Welcome(protocol, features, self._epoch, heartbeat_ns, token, *times, __version__, upgrade)])
            self._dispatcher.attach(session, hello)
            return session

    def receive(self, session: Session, body: AgentBody) -> None:
        """Takes what an attached device says. Raises the error that ended its session, or StorageError."""
        if isinstance(body, Hello):
            raise ProtocolError(f"device {session.device!r} said Hello twice in one session")
        with self._changed:
            self._dispatcher.receive(session, body)
            if isinstance(body, Telemetry):
                self.relay.take(session.device, body)
            elif not isinstance(body, Heartbeat):
                self._changed.tell()

    def detach(self, session: Session, reason: str = "its connection is gone") -> None:
        """The stream ended."""
        with self._changed.making():
            self._dispatcher.detach(session, reason)

    def mark_lost(self, device: str, reason: str) -> None:
        """Says why nobody expects a device back; forgotten when it attaches."""
        with self._changed.making():
            self._dispatcher.mark_lost(device, reason)

    def expel(self, device: str, reason: str) -> None:
        """Ends a device's session with Denied, for this reason. Keeping it out is not the farm's business."""
        with self._changed.making():
            self._dispatcher.mark_lost(device, reason)
            self._dispatcher.end_session(device, Denied(reason))

    def end_sessions(self, error: EdgefarmError) -> None:
        """Ends all streams with an error."""
        with self._changed.making():
            for status in self._dispatcher.statuses():
                self._dispatcher.end_session(status.device.name, error)

    def storage_failed(self, error: StorageError) -> None:
        """Takes an error of the store or the artifacts that a device met: who waits for devices here gets it, since they can't go on."""
        with self._changed.making():
            self._changed.fail(error)

    def tick(self) -> None:
        """Notices silence, and holds whose time is over; call it every second or so."""
        with self._changed:
            over = self._holds.end_expired()
            if over:
                self._dispatcher.dispatch()
            if self._dispatcher.tick(_SILENT_HEARTBEATS * self._heartbeat_s) or over:
                self._changed.tell()

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

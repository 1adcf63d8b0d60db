"""The farm's side towards devices: attach, listen, give orders, notice losses. No gRPC, no waiting; callers hold the farm's lock."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from controller import rights, versions
from controller.fair_queue import FairQueue
from controller.holds import Holds
from controller.reconcile import HeldOrder, KnownDeployment, reconcile
from controller.sessions import Session, Station
from controller.standing import Standing
from controller.store import QueueEntry, Store
from edgefarm.errors import Busy, Denied, EdgefarmError, QuotaExceeded, Unreachable
from edgefarm.model import (
    Ack,
    AgentBody,
    Attempt,
    Cancel,
    Deployment,
    DeploymentState,
    DeploymentStatus,
    Device,
    DeviceStatus,
    Failure,
    FailureKind,
    Heartbeat,
    Hello,
    LatencyWork,
    Order,
    OrderEnded,
    OrderState,
    Probed,
    Stage,
    remaining,
)

_LOG = logging.getLogger(__name__)
_ENDING_S = 3.0  # in which a device that holds an order says that it ended
_MOST_LOSSES = 2
_OPEN = (OrderState.QUEUED, OrderState.SENT)
_KEPT = (DeploymentState.ORDERED, DeploymentState.STAGED, DeploymentState.COMMITTED)


class Dispatcher:
    """Devices and their orders.

    Args:
        holds: who holds which device.
        clock: monotonic seconds.
        wall: UTC milliseconds.
        lost_after_s: silence after which a device's process counts as lost and its orders are taken back.
    """

    def __init__(self, store: Store, holds: Holds, clock: Callable[[], float], wall: Callable[[], int], lost_after_s: float) -> None:
        self._store, self._holds, self._clock, self._wall, self._lost_after_s = store, holds, clock, wall, lost_after_s
        self._stations = {d.name: Station(d, seen, quiet_since=clock()) for d, seen in store.devices()}
        self._queue = FairQueue(store, holds, clock)
        self._sent_turn = self._queue.sent_turn
        self.owner, self.run_changed = self._queue.owner, self._queue.changed

    def attach(self, session: Session, hello: Hello) -> None:
        """Takes a device in: an older session ends, losses are counted, the difference to what should be is sent."""
        station = self._stations.setdefault(session.device, Station(hello.device))
        if station.session is not None:
            station.session.end(Busy(f"superseded by a newer session of device {session.device!r}"))
        if station.instance not in ("", hello.instance) and not station.released:
            suspect = station.session.working_on if station.session else station.last_order
            self._process_lost(session.device, suspect, {a.order for a in hello.unacknowledged})
        station.session, station.instance = session, hello.instance
        station.too_old, station.lacks = versions.why_too_old(hello), versions.lacking(hello)
        station.released, station.last_order, station.given_up = False, "", ""
        session.heard = self._clock()
        self._know(station, hello.device, hello.probed)
        self._send_difference(station, session, hello)
        self.dispatch()

    def _send_difference(self, station: Station, session: Session, hello: Hello) -> None:
        for entry in self._store.queue():  # taken back while the device was away, but it never stopped working on it
            still_there = entry.state is OrderState.QUEUED and entry.id in hello.open_orders and entry.device in ("", session.device)
            if still_there and self._queue.may_take(session.device, entry):
                self._mark_sent(entry.id, session.device)
        stored = [o for e in self._held(session.device) if (o := self._store.order(e.id)) is not None]
        known = [KnownDeployment(s.deployment, s.status) for s in self._store.history(session.device)]
        difference = reconcile(hello, [HeldOrder(o.order, o.done) for o in stored], known, too_old=bool(station.too_old))
        for status in difference.learned:
            self._store.save_status(replace(status, device=session.device))
        for order_id in difference.finished:
            self._store.mark(order_id, OrderState.DONE, from_states=_OPEN)
        for order in difference.resend:
            self._mark_sent(order.id, session.device)
        station.granted -= {o.id for o in difference.resend}
        session.send([*difference.cancel, *difference.resend])
        self._grant(station)
        for deployment in difference.deploy:
            self.send_deployment(deployment)

    def _know(self, station: Station, device: Device, probed: bool) -> None:
        """Until it has probed again, a device is what it was when it last had."""
        old, station.probed = station.device, probed
        station.device = device if probed else replace(device, capabilities=old.capabilities, fingerprint=old.fingerprint)
        station.last_seen_unix_ms = self._wall()
        self._store.save_device(station.device, station.last_seen_unix_ms)

    def receive(self, session: Session, body: AgentBody) -> None:
        """Takes what an attached device says. Raises the error that ended its session, StorageError."""
        if session.ended is not None:
            raise session.ended
        session.heard = self._clock()
        station = self._stations[session.device]
        if isinstance(body, Heartbeat):
            session.working_on = body.order
            self._heard_time(station, body.local_s)
            if session.paused != body.paused:
                session.paused = body.paused
                self.dispatch()
        elif isinstance(body, Probed):
            self._know(station, body.device, probed=True)
            self.dispatch()
        elif isinstance(body, Attempt):
            self._attempt(session, replace(body, device=session.device))
        elif isinstance(body, OrderEnded):
            self._ended(session, body)
        elif isinstance(body, DeploymentStatus) and body.state is not DeploymentState.UNSPECIFIED:  # a newer agent's: it says more later
            self._store.save_status(replace(body, device=session.device))
            self._grant(station)

    def _heard_time(self, station: Station, local_s: int | None) -> None:
        station.told_s, station.told_at = local_s, self._clock()
        if self._queue.windows_moved(self._stations):
            self.dispatch()

    def _attempt(self, session: Session, attempt: Attempt) -> None:
        """Stored once, then acknowledged; one of an order that nobody knows is only acknowledged."""
        stored = self._store.order(attempt.order)
        done = False
        if stored is None or not _expected(stored.order, attempt.index):
            _LOG.warning("device %s: attempt %d of order %s was not asked for", session.device, attempt.index, attempt.order)
        else:
            done = stored.state in _OPEN and remaining(stored.order, stored.done | {attempt.index}) is None
            self._store.add_attempt(attempt, OrderState.DONE if done else None)
        session.send([Ack(attempt.order, attempt.index)])
        if done:
            session.ending[attempt.order] = self._clock() + _ENDING_S
            self._released(attempt.order, session.device)

    def _ended(self, session: Session, body: OrderEnded) -> None:
        if session.ending.pop(body.order, None) is not None:  # known by its attempts; it may have been queued again since
            self.dispatch()
            return
        stored = self._store.order(body.order)
        if stored is None or stored.state is not OrderState.SENT or stored.sent_to != session.device:
            return
        if body.cancelled:  # nobody here asked for that: the agent takes nothing more, until it is resumed where its user paused it
            if body.local_s is None:
                session.draining |= not session.paused
            else:  # by its own clock the order's window is not open
                station = self._stations[session.device]
                station.told_s, station.told_at = body.local_s, self._clock()
            self._store.mark(body.order, OrderState.QUEUED, from_states=_OPEN)
        else:
            self._store.mark(body.order, OrderState.DONE, from_states=_OPEN)
        self._released(body.order, session.device)

    def _released(self, order_id: str, device: str) -> None:
        """A device holds an order no more: its rights end, its host has a place."""
        self._sent_turn.pop(order_id, None)
        if (station := self._stations.get(device)) is not None:
            self._grant(station)
        self.dispatch()

    def detach(self, session: Session, reason: str) -> None:
        """The stream is gone. The device's process may live on: its orders stay with it until it is silent for too long."""
        station = self._stations[session.device]
        if station.session is not session:
            return
        station.session, station.last_order = None, session.working_on
        station.quiet_since, station.reason, station.last_seen_unix_ms = self._clock(), reason, self._wall()
        self._store.save_device(station.device, station.last_seen_unix_ms)

    def mark_lost(self, device: str, reason: str) -> None:
        """Says why nobody expects a device back, or that it ever comes: one that never attached is known by its name only."""
        self._stations.setdefault(device, Station(Device(device, "", ""))).given_up = reason

    def end_session(self, device: str, error: EdgefarmError) -> None:
        """Ends a device's stream with an error, if it has one."""
        session = self._stations[device].session
        if session is not None:
            session.end(error)

    def given_up(self) -> set[str]:
        """Devices that nobody expects back."""
        return {name for name, s in self._stations.items() if s.given_up}

    def tick(self, silent_after_s: float) -> bool:
        """Ends sessions that went silent, takes orders back from devices that are away; says whether anything changed."""
        changed = False
        now = self._clock()
        for name, station in self._stations.items():
            session = station.session
            if session is not None and now - session.heard > silent_after_s:
                session.end(Unreachable(f"device {name!r} sent no heartbeat for {silent_after_s:g} s"))
                self.detach(session, f"no heartbeat for {silent_after_s:g} s")
                changed = True
            if station.session is None and not station.released and now - station.quiet_since > self._lost_after_s:
                self._process_lost(name, station.last_order, set())
                for entry in self._held(name):
                    self._store.mark(entry.id, OrderState.QUEUED, from_states=(OrderState.SENT,))
                station.released = changed = True
            changed |= session is not None and session.let_go(now)
        changed |= self._queue.windows_moved(self._stations)
        if changed:
            self.dispatch()
        return changed

    def _process_lost(self, device: str, suspect: str, productive: set[str]) -> None:
        """Counts a loss of the order that the process worked on (`suspect`, if known); the second one quarantines it.

        An order of which an attempt arrived since it was sent, or is about to (`productive`), got on: that is no loss.

        Only what this process sent can be lost by a device: a restart of the controller is no loss.
        """
        held = [e for e in self._held(device) if e.id in self._sent_turn]
        if not held:
            return
        by_turn = min(held, key=lambda e: self._sent_turn[e.id])
        culprit = next((e for e in held if e.id == suspect), by_turn)
        if culprit.touched or culprit.id in productive or self._store.add_loss(culprit.id) < _MOST_LOSSES:
            return
        stored = self._store.order(culprit.id)
        assert stored is not None
        left = remaining(stored.order, stored.done)
        index = left.work.launches[0] if left is not None and isinstance(left.work, LatencyWork) else 0
        detail = f"device {device!r} was lost {_MOST_LOSSES} times while it worked on this: quarantined until --retry"
        failure = Failure(FailureKind.DEVICE_LOST, detail, Stage.RUN)
        self._store.add_attempt(Attempt(culprit.id, index, device, self._wall(), 0, failure), OrderState.QUARANTINED)
        self._sent_turn.pop(culprit.id)

    def dispatch(self) -> None:
        """Gives ready devices what the schedule says."""
        ending = {order for s in self._stations.values() if s.session is not None for order in s.session.ending}
        queue = self._store.queue()
        assignments = self._queue.assign(queue, self._stations, ending)
        given = [self._give(a.order, self._stations[a.device]) for a in assignments]
        hopeless = self._queue.hopeless(queue, self._stations)
        for order_id, device in hopeless.items():
            self._give_up(order_id, self._stations[device])
        if hopeless or not all(given):
            self.dispatch()

    def _give_up(self, order_id: str, station: Station) -> None:
        """Answers for a device whose agent could not: every launch that is left has failed."""
        stored = self._store.order(order_id)
        assert stored is not None
        missing = versions.features_of(stored.order) & station.lacks
        failure = versions.unable(station.device, min(missing))
        for index in stored.order.work.launches if isinstance(stored.order.work, LatencyWork) else (0,):
            if index not in stored.done:
                self._store.add_attempt(Attempt(order_id, index, station.device.name, self._wall(), 0, failure), None)
        self._store.mark(order_id, OrderState.DONE, from_states=_OPEN)

    def _give(self, order_id: str, station: Station) -> bool:
        """Sends an order; False if there is nothing left to do of it."""
        stored, session = self._store.order(order_id), station.session
        assert stored is not None
        assert session is not None
        left = remaining(stored.order, stored.done)
        if left is None:  # its last attempts arrived while it was queued
            self._store.mark(order_id, OrderState.DONE, from_states=_OPEN)
            return False
        self._mark_sent(order_id, session.device)
        self._queue.served(session.device, left.run)
        self._grant(station)
        session.send([left])
        return True

    def _mark_sent(self, order_id: str, device: str) -> None:
        self._store.mark(order_id, OrderState.SENT, device, from_states=_OPEN)
        self._queue.sent(order_id)

    def recall(self, device: str) -> None:
        """Takes back what a device holds and may not take any more; the order that runs goes on to its end."""
        session = self._stations[device].session
        if session is None:
            return
        for entry in self._queue.running_first(self._held(device), session.working_on)[1:]:
            if not self._queue.may_take(device, entry):
                self._store.mark(entry.id, OrderState.QUEUED, from_states=(OrderState.SENT,))
                session.ending[entry.id] = self._clock() + _ENDING_S
                session.send([Cancel(entry.id)])
                self._released(entry.id, device)

    def known(self, device: str) -> bool:
        """Whether such a device is registered."""
        return device in self._stations

    def cancel(self, run: str, order_ids: set[str] | None) -> None:
        """Cancels open orders of a run (these, or all), also where they are being worked on."""
        for entry in self._store.queue():
            if entry.run != run or (order_ids is not None and entry.id not in order_ids):
                continue
            self._store.mark(entry.id, OrderState.CANCELLED, from_states=_OPEN)
            self._sent_turn.pop(entry.id, None)
            if (station := self._stations.get(entry.sent_to)) is not None:
                self._grant(station)
                if station.session is not None:
                    station.session.send([Cancel(entry.id)])
        self.dispatch()

    def send_deployment(self, deployment: Deployment) -> None:
        """Brings a deployment to its device, if that is there; else it gets it when it attaches."""
        station = self._stations.get(deployment.device)
        if station is None or station.session is None or station.too_old:
            return
        if (status := versions.refused(deployment, station.device, station.lacks)) is not None:
            self._store.save_status(status)
            return
        self._grant(station)
        station.session.send([deployment])

    def standing(self) -> Standing:
        """How devices and waiting orders stand now."""
        return Standing(self._store.queue(), self._stations, self._holds, self._queue, self._clock(), self._wall())

    def statuses(self) -> list[DeviceStatus]:
        """All devices, by name."""
        return self.standing().statuses()

    def check_fetch(self, device: str, digest: str) -> None:
        """Raises Denied unless an open order or a deployment of the device needs these bytes."""
        station = self._stations.get(device)
        if station is None or digest not in station.allowed:
            raise Denied(f"device {device!r}: no open order or deployment of it needs {digest}")

    def check_stat(self, device: str) -> None:
        """Raises Denied unless the device has something to fetch or push."""
        station = self._stations.get(device)
        if station is None or not (station.allowed or station.push_left):
            raise Denied(f"device {device!r} has no open orders")

    def take_quota(self, device: str, count: int) -> None:
        """Takes `count` bytes (gives back, if negative) of what the device may push. Raises QuotaExceeded."""
        station = self._stations.get(device)
        left = station.push_left if station else 0
        if station is None or count > left:
            raise QuotaExceeded(f"device {device!r}: {count} bytes to push, its open orders allow {left} more")
        station.push_left -= count

    def _grant(self, station: Station) -> None:
        """Recomputes what the device may touch: a new order adds to its quota, the end of one takes away what it left unused."""
        held = [o.order for e in self._held(station.device.name) if (o := self._store.order(e.id)) is not None]
        newest = self._store.newest_deployments(device=station.device.name)
        deployments = [s.deployment for s in newest if s.deployment is not None and s.status.state in _KEPT]
        station.allowed = frozenset().union(*map(rights.digests_of_order, held), *map(rights.digests_of_deployment, deployments))
        quotas = {o.id: rights.push_quota(o) for o in held}
        added = sum(q for order_id, q in quotas.items() if order_id not in station.granted)
        station.push_left = min(station.push_left + added, sum(quotas.values()))
        station.granted = frozenset(quotas)

    def _held(self, device: str) -> list[QueueEntry]:
        return [e for e in self._store.queue() if e.state is OrderState.SENT and e.sent_to == device]


def _expected(order: Order, index: int) -> bool:
    return index in order.work.launches if isinstance(order.work, LatencyWork) else index == 0

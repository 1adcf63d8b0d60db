"""Feeds the schedule: what waits, who is ready, whose turn it is, who used how much. No gRPC, no waiting; callers hold the farm's lock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set

from controller import schedule
from controller.holds import Holds
from controller.reconcile import is_supported
from controller.sessions import Station
from controller.shares import Shares
from controller.store import QueueEntry, Store
from edgefarm.model import OrderState


class FairQueue:
    """Decides which queued order goes where.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, store: Store, holds: Holds, clock: Callable[[], float]) -> None:
        self._store, self._holds, self._clock = store, holds, clock
        self._owners: dict[str, str] = {}
        self._device_turns: dict[str, int] = {}
        self._run_turns: dict[str, int] = {}
        self._turn = 0
        self._shares = Shares()
        self.sent_turn: dict[str, int] = {}  # order -> when this process sent it; an order sent by an earlier one is absent

    def owner(self, run: str) -> str:
        """Whose run it is; empty for a run that is unknown."""
        if run not in self._owners:
            found = self._store.run(run)
            self._owners[run] = found.owner if found else ""
        return self._owners[run]

    def sent(self, order: str) -> None:
        """An order was sent."""
        self._turn += 1
        self.sent_turn[order] = self._turn

    def served(self, device: str, run: str) -> None:
        """The order that was just sent was a turn of this device and this run."""
        self._device_turns[device] = self._run_turns[run] = self._turn

    def may_take(self, device: str, run: str) -> bool:
        """Whether the device is kept neither from all work nor from that of this run's owner."""
        return not self._holds.drained(device) and self._holds.leased_to(device) in (None, self.owner(run))

    def running_first(self, held: Sequence[QueueEntry], working_on: str) -> list[QueueEntry]:
        """The orders that one device or host holds: first the one that runs, as far as one can know."""
        return sorted(held, key=lambda e: (e.id != working_on, self.sent_turn.get(e.id, 0), e.sequence))

    def assign(self, queue: Sequence[QueueEntry], stations: Mapping[str, Station], ending: Set[str]) -> list[schedule.Assignment]:
        """What to send now. Time that passed since the last call is charged to those whose orders ran.

        Args:
            queue: all orders that have not ended.
            ending: orders that a device has not let go of yet: not to be sent before.
        """
        hosts = {name: s.device.host for name, s in stations.items()}
        sent = [e for e in queue if e.state is OrderState.SENT]
        queued = [e for e in queue if e.state is OrderState.QUEUED and e.id not in ending]
        self._settle(queue, sent, stations)
        waiting = [schedule.Waiting(e.id, e.run, e.device, e.device_class, e.sequence, self.owner(e.run)) for e in queued]
        if not waiting:
            return []
        underway = [schedule.Underway(e.id, e.sent_to, hosts.get(e.sent_to, e.sent_to), self.owner(e.run)) for e in sent]
        ready = [
            schedule.Ready(name, s.device.device_class, s.device.host, self._holds.leased_to(name))
            for name, s in stations.items()
            if s.takes_orders and is_supported(s.protocol) and not self._holds.drained(name)
        ]
        return schedule.assign(waiting, ready, underway, self._device_turns, self._run_turns, self._shares.used)

    def why(self, device: str, held: Sequence[QueueEntry], queue: Sequence[QueueEntry], stations: Mapping[str, Station]) -> str:
        """What a person wants to know of a device: who holds it, whose order runs, what waits for it or what it waits for."""
        told = self._holds.told(device)
        here = stations[device]
        if held:
            told += [
                f"{'next' if place else 'runs'}: {self._named(e)}" for place, e in enumerate(self.running_first(held, _working_on(here)))
            ]
        waiting = [e for e in queue if e.state is OrderState.QUEUED and (e.device or device) == device]
        waiting = [e for e in waiting if e.device or e.device_class == here.device.device_class]
        if waiting:
            told.append(f"{len(waiting)} {'order waits' if len(waiting) == 1 else 'orders wait'} for it")
            neighbours = [n for n, s in stations.items() if s.device.host == here.device.host and n != device]
            if busy := [e for e in queue if e.state is OrderState.SENT and e.sent_to in neighbours and not held]:
                told.append(f"its host measures on {busy[0].sent_to!r}: {self._named(busy[0])}")
        return "; ".join(told)

    def _named(self, entry: QueueEntry) -> str:
        owner = self.owner(entry.run)
        return f"{entry.run} of {owner}" if owner else entry.run

    def _settle(self, queue: Sequence[QueueEntry], sent: Sequence[QueueEntry], stations: Mapping[str, Station]) -> None:
        hosts = {name: s.device.host for name, s in stations.items()}
        by_class: dict[str, set[str]] = {}
        for station in stations.values():
            by_class.setdefault(station.device.device_class, set()).add(station.device.host)
        wanting: dict[str, set[str]] = {}
        for entry in queue:
            device = entry.sent_to or entry.device
            for host in [hosts.get(device, device)] if device else by_class.get(entry.device_class, ()):
                wanting.setdefault(host, set()).add(self.owner(entry.run))
        on_host: dict[str, list[QueueEntry]] = {}
        for entry in sent:
            on_host.setdefault(hosts.get(entry.sent_to, entry.sent_to), []).append(entry)
        running = {host: self.owner(self.running_first(held, "")[0].run) for host, held in on_host.items()}
        self._shares.settle(self._clock(), running, wanting)


def _working_on(station: Station) -> str:
    return station.session.working_on if station.session else ""

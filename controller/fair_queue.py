"""Feeds the schedule: what waits, who is ready, whose turn it is, who used how much. No gRPC, no waiting; callers hold the farm's lock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from itertools import zip_longest

from controller import schedule
from controller.holds import Holds
from controller.sessions import Station
from controller.shares import Shares
from controller.store import QueueEntry, Store
from controller.versions import features_of
from edgefarm.model import OrderState, Run
from edgefarm.windows import Window, parse


class FairQueue:
    """Decides which queued order goes where.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, store: Store, holds: Holds, clock: Callable[[], float]) -> None:
        self._store, self._holds, self._clock = store, holds, clock
        self._runs: dict[str, Run] = {}
        self._features: dict[str, frozenset[str]] = {}
        self._windows: frozenset[str] = frozenset()  # of the orders that wait
        self._open: frozenset[tuple[str, str]] = frozenset()  # (window, device) where it is that time of the day
        self._device_turns: dict[str, int] = {}
        self._run_turns: dict[str, int] = {}
        self._turn = 0
        self._shares = Shares(kept := store.shares())
        self._kept = {share.host for share in kept}  # hosts of which the store has shares
        self._stands: Mapping[str, tuple[str, Set[str]]] = {}
        self.sent_turn: dict[str, int] = {}  # order -> when this process sent it; an order sent by an earlier one is absent

    def owner(self, run: str) -> str:
        """Whose run it is; empty for a run that is unknown."""
        found = self._run(run)
        return found.owner if found else ""

    def changed(self, run: str) -> None:
        """A run's devices may be others now."""
        self._runs.pop(run, None)

    def _run(self, name: str) -> Run | None:
        if name not in self._runs and (found := self._store.run(name)) is not None:
            self._runs[name] = replace(found, spec="", report="")  # only what is small is kept
        return self._runs.get(name)

    def devices(self, run: str) -> frozenset[str]:
        """Names of those that its orders may occupy; empty: any."""
        found = self._run(run)
        return frozenset(found.devices if found else ())

    def sent(self, order: str) -> None:
        """An order was sent."""
        self._turn += 1
        self.sent_turn[order] = self._turn

    def served(self, device: str, run: str) -> None:
        """The order that was just sent was a turn of this device and this run."""
        self._device_turns[device] = self._run_turns[run] = self._turn

    def is_meant(self, device: str, entry: QueueEntry) -> bool:
        """Whether an order is for this device, as far as the order and its run name any."""
        return all(not names or device in names for names in (self.devices(entry.run), entry.only_on))

    def may_take(self, device: str, entry: QueueEntry) -> bool:
        """Whether an order is for the device, and that is kept neither from all work nor from that of the order's owner."""
        free = not self._holds.drained(device) and self._holds.leased_to(device) in (None, self.owner(entry.run))
        return free and self.is_meant(device, entry)

    def windows_moved(self, stations: Mapping[str, Station]) -> bool:
        """Whether a window that orders wait for has opened or closed on a device since the last call."""
        now, before = self._clock(), self._open
        self._open = frozenset(
            (window, name)
            for window in self._windows
            for name, station in stations.items()
            if (local_s := station.local_s(now)) is not None and parse(window).holds(local_s)
        )
        return self._open != before

    def is_open(self, device: str, entry: QueueEntry) -> bool:
        """Whether the order's window, if it has one, is open on the device, as of the last look at the clocks."""
        return not entry.window or (entry.window, device) in self._open

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
        self._windows = frozenset(e.window for e in queued if e.window)
        self.windows_moved(stations)
        self._settle(queue, sent, stations)
        mixed = any(s.lacks for s in stations.values())
        self._features = {e.id: self._features_of(e.id) for e in queue} if mixed else {}
        windows = {text: parse(text) for text in self._windows}
        waiting = [self._waiting(e, windows.get(e.window)) for e in queued]
        if not waiting:
            return []
        underway = [schedule.Underway(e.id, e.sent_to, hosts.get(e.sent_to, e.sent_to), self.owner(e.run)) for e in sent]
        now = self._clock()
        ready = [
            schedule.Ready(name, s.device.device_class, s.device.host, self._holds.leased_to(name), s.lacks, s.local_s(now))
            for name, s in stations.items()
            if s.takes_orders and not self._holds.drained(name)
        ]
        return schedule.assign(waiting, ready, underway, self._device_turns, self._run_turns, self._shares.used)

    def _waiting(self, e: QueueEntry, window: Window | None) -> schedule.Waiting:
        features, named = self._features.get(e.id, frozenset()), self.devices(e.run)
        return schedule.Waiting(e.id, e.run, e.device, e.device_class, e.sequence, self.owner(e.run), features, named, e.only_on, window)

    def hopeless(self, queue: Sequence[QueueEntry], stations: Mapping[str, Station]) -> dict[str, str]:
        """Queued orders that no agent of their devices knows how to carry out, each with one of those devices.

        As long as one of them is away there is hope: it may come back upgraded.
        """
        lacks = {name: s.lacks if s.attached else frozenset() for name, s in stations.items()}
        if not any(lacks.values()):
            return {}
        found: dict[str, str] = {}
        for entry in queue:
            class_ = [n for n, s in stations.items() if s.device.device_class == entry.device_class and self.is_meant(n, entry)]
            meant = [entry.device] if entry.device else class_
            needs = self._features_of(entry.id) if entry.state is OrderState.QUEUED and meant else frozenset()
            if needs and all(needs & lacks.get(name, frozenset()) for name in meant):
                found[entry.id] = meant[0]
        return found

    def _features_of(self, order: str) -> frozenset[str]:
        """What an agent must know for an order. Asked for only where agents of other versions are attached: it reads the whole order."""
        if order in self._features:
            return self._features[order]
        stored = self._store.order(order)
        return features_of(stored.order) if stored else frozenset()

    def line(self, host: str, held: Sequence[QueueEntry], waiting: Sequence[QueueEntry]) -> list[QueueEntry]:
        """Orders that wait for devices of a host, as they would be served if all took equally long: users take turns, and their runs.

        Args:
            held: orders that the host holds already.
        """
        runs: dict[str, list[QueueEntry]] = {}
        for entry in sorted(waiting, key=lambda e: e.sequence):
            runs.setdefault(entry.run, []).append(entry)
        owners: dict[str, list[list[QueueEntry]]] = {}
        for run in sorted(runs, key=lambda r: (self._run_turns.get(r, 0), runs[r][0].sequence)):
            owners.setdefault(self.owner(run), []).append(runs[run])
        used, holders = self._shares.used, [self.owner(e.run) for e in held]
        first = sorted(owners, key=lambda o: (used.get((host, o), 0.0), holders.count(o), owners[o][0][0].sequence))
        return _taking_turns([_taking_turns(owners[o]) for o in first])

    def _settle(self, queue: Sequence[QueueEntry], sent: Sequence[QueueEntry], stations: Mapping[str, Station]) -> None:
        hosts = {name: s.device.host for name, s in stations.items()}
        by_class: dict[str, set[str]] = {}
        for name, station in stations.items():
            by_class.setdefault(station.device.device_class, set()).add(name)
        wanting: dict[str, set[str]] = {}
        for entry in queue:
            device = entry.sent_to or entry.device
            class_ = by_class.get(entry.device_class, set())
            meant = [device] if device else [n for n in class_ if self.is_meant(n, entry)]
            for name in [n for n in meant if entry.sent_to or self.is_open(n, entry)]:
                host = hosts.get(name, name)
                wanting.setdefault(host, set()).add(self.owner(entry.run))
        on_host: dict[str, list[QueueEntry]] = {}
        for entry in sent:
            on_host.setdefault(hosts.get(entry.sent_to, entry.sent_to), []).append(entry)
        first = {host: self.running_first(held, "")[0] for host, held in on_host.items()}
        self._shares.settle(self._clock(), {host: self.owner(e.run) for host, e in first.items()}, wanting)
        self._keep({host: (first[host].id if host in first else "", owners) for host, owners in wanting.items()})

    def _keep(self, stands: Mapping[str, tuple[str, Set[str]]]) -> None:
        """Stores the shares of hosts where another order runs, or others want to: at most the time of one order is lost with the process.

        Args:
            stands: host -> the order that occupies it, and the owners that want it.
        """
        others = {h for h in {*stands, *self._stands} if stands.get(h) != self._stands.get(h)}
        for host in others | (self._kept - set(stands)):
            shares = self._shares.to_keep(host)
            if shares or host in self._kept:
                self._store.save_shares(host, shares)
                self._kept = self._kept | {host} if shares else self._kept - {host}
        self._stands = stands


def _taking_turns(groups: Sequence[Sequence[QueueEntry]]) -> list[QueueEntry]:
    return [entry for row in zip_longest(*groups) for entry in row if entry is not None]

"""Where everybody stands: what each device holds, what waits for it, and why a run has to wait. One look at the queue, no waiting."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from controller.fair_queue import FairQueue
from controller.holds import Holds
from controller.sessions import Station
from controller.store import QueueEntry
from edgefarm.model import DeviceStatus, HoldKind, OrderState, Wait
from edgefarm.windows import parse

_SOONEST = ("busy", "leased", "window", "probing", "paused", "draining", "needs_upgrade", "lost")  # states that keep orders waiting
_LOOKED_AT = 8  # of a large class, devices whose queues are looked at: those that hold fewest orders


class Standing:
    """What people and drivers are told of devices and of orders that wait.

    Args:
        queue: all orders that have not ended.
        now_s: monotonic seconds; `now_unix_ms`: the same moment, UTC.
    """

    def __init__(
        self, queue: Sequence[QueueEntry], stations: Mapping[str, Station], holds: Holds, fair_queue: FairQueue,
        now_s: float, now_unix_ms: int,
    ) -> None:  # fmt: skip
        self._now_s, self._now_unix_ms = now_s, now_unix_ms
        self._stations, self._holds, self._fair_queue = stations, holds, fair_queue
        self._held: dict[str, list[QueueEntry]] = defaultdict(list)  # by device
        self._on_host: dict[str, list[QueueEntry]] = defaultdict(list)
        self._of_class: dict[str, list[str]] = defaultdict(list)
        self._at_host: dict[str, list[str]] = defaultdict(list)
        self._wanted: dict[str, list[QueueEntry]] = defaultdict(list)  # orders that wait, by the device or the class that they are for
        for name, station in stations.items():
            self._of_class[station.device.device_class].append(name)
            self._at_host[station.device.host].append(name)
        for entry in queue:
            if entry.state is OrderState.QUEUED:
                self._wanted[entry.device or entry.device_class].append(entry)
            elif entry.sent_to in stations:
                self._held[entry.sent_to].append(entry)
                self._on_host[stations[entry.sent_to].device.host].append(entry)
        self._lines: dict[str, list[QueueEntry]] = {}

    def statuses(self) -> list[DeviceStatus]:
        """All devices, by name."""
        found = []
        for name, station in sorted(self._stations.items()):
            state, reason = self._state(name)
            seen = self._now_unix_ms if station.session else station.last_seen_unix_ms
            found.append(DeviceStatus(station.device, station.device.device_class, state, seen, reason or self._why(name)))
        return found

    def waits(self, run: str = "") -> list[Wait]:
        """Orders (of one run) that wait for somebody else, by run and device."""
        waiting = (e for entries in self._wanted.values() for e in entries)
        alike: dict[tuple[object, ...], list[QueueEntry]] = defaultdict(list)
        for entry in waiting:
            if run in ("", entry.run):
                alike[entry.run, entry.device, entry.device_class, entry.window, entry.only_on].append(entry)
        found: dict[tuple[str, str], Wait] = {}
        for entries in alike.values():
            one, orders = entries[0], len(entries)
            name = one.run
            devices = [one.device] if one.device else [d for d in self._of_class[one.device_class] if self._fair_queue.is_meant(d, one)]
            if (wait := self._soonest(one, [d for d in devices if d in self._stations], orders)) is not None:
                known = found.get((name, wait.device))
                found[name, wait.device] = replace(wait, orders=orders + known.orders) if known else wait
        return [wait for _, wait in sorted(found.items())]

    def _state(self, name: str) -> tuple[str, str]:
        station = self._stations[name]
        if station.session is None or not station.attached:
            return "lost", station.given_up or station.reason
        if station.too_old:
            return "needs_upgrade", station.too_old
        if not station.probed:
            return "probing", ""
        if station.session.draining or self._holds.drained(name):
            return "draining", ""
        if station.session.paused:
            return "paused", "its user paused it: edge-agent pause --resume"
        return ("busy" if self._held.get(name) else "ready"), ""

    def _why(self, name: str) -> str:
        """What a person wants to know of a device: who holds it, whose order runs, what waits for it or what it waits for."""
        station = self._stations[name]
        told, held = self._holds.told(name), self._held.get(name, [])
        told += [f"{'next' if place else 'runs'}: {self._named(e)}" for place, e in enumerate(self._running_first(held, station))]
        if count := len(self._wanted.get(name, ())) + len(self._wanted.get(station.device.device_class, ())):
            told.append(f"{count} {'order waits' if count == 1 else 'orders wait'} for it")
            others = [e for e in self._on_host.get(station.device.host, ()) if e.sent_to != name]
            if others and not held:
                told.append(f"its host measures on {others[0].sent_to!r}: {self._named(others[0])}")
        return "; ".join(told)

    def _running_first(self, held: Sequence[QueueEntry], station: Station) -> list[QueueEntry]:
        return self._fair_queue.running_first(held, station.session.working_on if station.session else "")

    def _named(self, entry: QueueEntry) -> str:
        owner = self._fair_queue.owner(entry.run)
        return f"{entry.run} of {owner}" if owner else entry.run

    def _soonest(self, entry: QueueEntry, devices: Sequence[str], orders: int) -> Wait | None:
        """Why so many orders alike wait for the one of these devices that takes them first; None if nobody else is the reason."""
        run = entry.run
        kept = {name: self._kept(entry, name, orders) for name in devices}
        free = [name for name in devices if kept[name] is None]
        free.sort(key=lambda n: len(self._on_host.get(self._stations[n].device.host, ())))
        options = [self._busy(run, name, orders) for name in free[:_LOOKED_AT]] or list(kept.values())
        return min((w for w in options if w), key=_how_soon) if options and None not in options else None

    def _kept(self, entry: QueueEntry, name: str, orders: int) -> Wait | None:
        """Why a device would not take such orders even if it were idle; None if it would."""
        run, (state, reason) = entry.run, self._state(name)
        lease, drain = self._holds.find(HoldKind.LEASE, name), self._holds.find(HoldKind.DRAIN, name)
        told = "; ".join(self._holds.told(name))
        if drain is not None:
            return Wait(run, name, orders, "draining", drain.holder, reason=told)
        if lease is not None and lease.holder != self._fair_queue.owner(run):
            return Wait(run, name, orders, "leased", lease.holder, lease.expires_unix_ms, reason=told)
        if entry.window and not self._fair_queue.is_open(name, entry) and (closed := self._closed(entry, name, orders)) is not None:
            return closed
        if state not in ("busy", "ready"):
            return Wait(run, name, orders, state, reason=f"{state.replace('_', ' ')}{f': {reason}' if reason else ''}")
        return None

    def _closed(self, entry: QueueEntry, name: str, orders: int) -> Wait | None:
        """Until when a device's window keeps orders back; None for a device that has not told its time since we started."""
        station = self._stations[name]
        if station.told_at is None:
            return None
        local_s = station.local_s(self._now_s)
        if local_s is None:
            reason = f"it does not know the time of day, so nobody knows whether it is inside of {entry.window}: set its clock (NTP)"
            return Wait(entry.run, name, orders, "window", reason=reason)
        opens_ms = self._now_unix_ms + parse(entry.window).opens_in_s(local_s) * 1000
        reason = f"its window {entry.window} is closed: it is {local_s // 3600:02d}:{local_s // 60 % 60:02d} there"
        return Wait(entry.run, name, orders, "window", until_unix_ms=opens_ms, reason=reason)

    def _busy(self, run: str, name: str, orders: int) -> Wait | None:
        """Whose orders a device takes before a run's; None if it works for that run, or is about to."""
        host = self._stations[name].device.host
        running = self._fair_queue.running_first(self._on_host.get(host, ()), "")
        if running and running[0].run == run:
            return None
        ahead = [e for e in running if e.run != run] + list(takewhile(lambda e: e.run != run, self._line(host)))
        if not ahead:
            return None
        first = ahead[0]
        where = "" if first.sent_to in ("", name) else f" on {first.sent_to!r}, of the same host"
        count = f"{len(ahead)} {'order comes' if len(ahead) == 1 else 'orders come'} first"
        reason = f"{count}: {self._named(first)} {'runs' if first.sent_to else 'is next'}{where}"
        return Wait(run, name, orders, "busy", self._fair_queue.owner(first.run), ahead=len(ahead), reason=reason)

    def _line(self, host: str) -> list[QueueEntry]:
        """Orders that wait for devices of a host, as they would be served if all took equally long."""
        if host not in self._lines:
            waiting: dict[str, QueueEntry] = {}
            for name in self._at_host[host]:
                station = self._stations[name]
                meant = [*self._wanted.get(name, ()), *self._wanted.get(station.device.device_class, ())] if station.takes_orders else []
                waiting.update({e.id: e for e in meant if self._fair_queue.may_take(name, e) and self._fair_queue.is_open(name, e)})
            self._lines[host] = self._fair_queue.line(host, self._on_host.get(host, ()), list(waiting.values()))
        return self._lines[host]


def _how_soon(wait: Wait) -> tuple[int, int, int, str]:
    return _SOONEST.index(wait.state), wait.until_unix_ms, wait.ahead, wait.device

"""Who measures what next. Pure: equal sets in, equal assignments out, whatever their order.

A host (the measure domain) holds at most one running and one prefetched order. Its time is shared between owners: the one that used
least of this host comes first, then the one that holds fewest of its places. Among an owner's runs the one that was served longest ago
comes first, and in a run the order that was submitted first. Devices of one host take turns. A leased device takes orders of the
lease's holder only, and an order that has a window goes to devices where it is that time of the day. An order is prefetched only for
the device that is running: another device of the host would fetch it while its neighbour measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgefarm.windows import Window

RUNNING_AND_PREFETCHED = 2


@dataclass(frozen=True)
class Waiting:
    """A queued order.

    Attributes:
        device: empty: any of `device_class`, and of `devices` if there are any.
        sequence: grows with submission.
        features: that its agent needs.
        only_on: empty: any of those.
        window: part of the device's day in which it may go there; None: any time.
    """

    order: str
    run: str
    device: str
    device_class: str
    sequence: int
    owner: str = ""
    features: frozenset[str] = frozenset()
    devices: frozenset[str] = frozenset()
    only_on: frozenset[str] = frozenset()
    window: Window | None = None

    def may_go_to(self, device: Ready) -> bool:
        """Whether nothing keeps this order from a device of its class. One that knows no time is outside of every window."""
        named = all(not names or device.device in names for names in (self.devices, self.only_on))
        able = device.leased_to in (None, self.owner) and not self.features & device.lacks
        return named and able and (self.window is None or (device.local_s is not None and self.window.holds(device.local_s)))


@dataclass(frozen=True)
class Ready:
    """A device that may be given orders; where it is leased, those of `leased_to` only.

    `lacks`: features that its agent does not have. `local_s`: seconds since midnight there; None: it does not know.
    """

    device: str
    device_class: str
    host: str
    leased_to: str | None = None
    lacks: frozenset[str] = frozenset()
    local_s: int | None = None


@dataclass(frozen=True)
class Underway:
    """An order that a device of `host` holds."""

    order: str
    device: str
    host: str
    owner: str = ""


@dataclass(frozen=True)
class Assignment:
    """Send `order` to `device`."""

    order: str
    device: str


Turns = Mapping[str, int]  # a device's or a run's name -> when it was served last (grows; absent: never)
Used = Mapping[tuple[str, str], float]  # (host, owner) -> seconds of that host (absent: none)


def assign(
    waiting: Iterable[Waiting],
    ready: Iterable[Ready],
    underway: Iterable[Underway],
    device_turns: Turns,
    run_turns: Turns,
    used: Used,
) -> list[Assignment]:
    """Fills every host: first those that are idle, then the prefetch places."""
    hosts: dict[str, list[Ready]] = {}
    for device in sorted(ready, key=lambda r: r.device):
        hosts.setdefault(device.host, []).append(device)
    held: dict[str, list[tuple[str, str]]] = {}
    for entry in underway:
        held.setdefault(entry.host, []).append((entry.device, entry.owner))
    state = _Table(sorted(waiting, key=lambda w: (w.sequence, w.order)), dict(device_turns), dict(run_turns), used)
    assignments: list[Assignment] = []
    for places in range(RUNNING_AND_PREFETCHED):
        for host in sorted(hosts, key=lambda h: (state.last_turn(hosts[h]), h)):
            holders = held.setdefault(host, [])
            if len(holders) != places:
                continue
            picked = state.pick(hosts[host], [owner for _, owner in holders])
            if picked is None or (holders and picked.device not in [device for device, _ in holders]):
                continue
            holders.append((picked.device, state.serve(picked)))
            assignments.append(picked)
    return assignments


class _Table:
    def __init__(self, waiting: list[Waiting], device_turns: dict[str, int], run_turns: dict[str, int], used: Used) -> None:
        self._by_device: dict[str, dict[str, Waiting]] = {}
        self._by_class: dict[str, dict[str, Waiting]] = {}
        self._orders = {w.order: w for w in waiting}
        for w in waiting:
            self._table_of(w)[w.order] = w
        self._device_turns, self._run_turns, self._used = device_turns, run_turns, used
        self._next = max([0, *device_turns.values(), *run_turns.values()]) + 1

    def _table_of(self, w: Waiting) -> dict[str, Waiting]:
        return self._by_device.setdefault(w.device, {}) if w.device else self._by_class.setdefault(w.device_class, {})

    def last_turn(self, devices: list[Ready]) -> int:
        return max(self._device_turns.get(d.device, 0) for d in devices)

    def pick(self, devices: list[Ready], holders: list[str]) -> Assignment | None:
        """The device of a host whose turn it is and has something to do, with the order whose turn it is.

        `holders`: owners of the orders that the host holds.
        """
        for device in sorted(devices, key=lambda d: (self._device_turns.get(d.device, 0), d.device)):
            mine = [*self._by_device.get(device.device, {}).values(), *self._by_class.get(device.device_class, {}).values()]
            allowed = [w for w in mine if w.may_go_to(device)]
            if allowed:
                first = min(allowed, key=lambda w: self._rank(w, device.host, holders))
                return Assignment(first.order, device.device)
        return None

    def _rank(self, w: Waiting, host: str, holders: list[str]) -> tuple[float, int, int, int, str]:
        used = self._used.get((host, w.owner), 0.0)
        return used, holders.count(w.owner), self._run_turns.get(w.run, 0), w.sequence, w.order

    def serve(self, picked: Assignment) -> str:
        """Takes an order out of the queue; returns its owner."""
        order = self._orders[picked.order]
        del self._table_of(order)[order.order]
        self._device_turns[picked.device] = self._run_turns[order.run] = self._next
        self._next += 1
        return order.owner

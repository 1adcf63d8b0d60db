"""Who measures what next. Pure: equal sets in, equal assignments out, whatever their order.

A host (the measure domain) holds at most one running and one prefetched order. Devices of one host take turns, and so do runs:
the one that was served longest ago comes first, then the order that was submitted first. An order is prefetched only for the
device that is running: another device of the host would fetch it while its neighbour measures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

RUNNING_AND_PREFETCHED = 2


@dataclass(frozen=True)
class Waiting:
    """A queued order; `device` empty: any device of `device_class`. `sequence` grows with submission."""

    order: str
    run: str
    device: str
    device_class: str
    sequence: int


@dataclass(frozen=True)
class Ready:
    """A device that may be given orders."""

    device: str
    device_class: str
    host: str


@dataclass(frozen=True)
class Underway:
    """An order that a device of `host` holds."""

    order: str
    device: str
    host: str


@dataclass(frozen=True)
class Assignment:
    """Send `order` to `device`."""

    order: str
    device: str


Turns = Mapping[str, int]  # a device's or a run's name -> when it was served last (grows; absent: never)


def assign(
    waiting: Iterable[Waiting], ready: Iterable[Ready], underway: Iterable[Underway], device_turns: Turns, run_turns: Turns
) -> list[Assignment]:
    """Fills every host: first those that are idle, then the prefetch places."""
    hosts: dict[str, list[Ready]] = {}
    for device in sorted(ready, key=lambda r: r.device):
        hosts.setdefault(device.host, []).append(device)
    held: dict[str, list[str]] = {}
    for entry in underway:
        held.setdefault(entry.host, []).append(entry.device)
    state = _Table(sorted(waiting, key=lambda w: (w.sequence, w.order)), dict(device_turns), dict(run_turns))
    assignments: list[Assignment] = []
    for places in range(RUNNING_AND_PREFETCHED):
        for host in sorted(hosts, key=lambda h: (state.last_turn(hosts[h]), h)):
            holders = held.setdefault(host, [])
            if len(holders) != places:
                continue
            picked = state.pick(hosts[host])
            if picked is None or (holders and picked.device not in holders):
                continue
            state.serve(picked)
            holders.append(picked.device)
            assignments.append(picked)
    return assignments


class _Table:
    def __init__(self, waiting: list[Waiting], device_turns: dict[str, int], run_turns: dict[str, int]) -> None:
        self._by_device: dict[str, dict[str, Waiting]] = {}
        self._by_class: dict[str, dict[str, Waiting]] = {}
        self._run_of = {w.order: w.run for w in waiting}
        self._place: dict[str, dict[str, Waiting]] = {}
        for w in waiting:
            table = self._by_device.setdefault(w.device, {}) if w.device else self._by_class.setdefault(w.device_class, {})
            table[w.order], self._place[w.order] = w, table
        self._device_turns, self._run_turns = device_turns, run_turns
        self._next = max([0, *device_turns.values(), *run_turns.values()]) + 1

    def last_turn(self, devices: list[Ready]) -> int:
        return max(self._device_turns.get(d.device, 0) for d in devices)

    def pick(self, devices: list[Ready]) -> Assignment | None:
        """The device of a host whose turn it is and has something to do, with the order whose turn it is."""
        for device in sorted(devices, key=lambda d: (self._device_turns.get(d.device, 0), d.device)):
            mine = [*self._by_device.get(device.device, {}).values(), *self._by_class.get(device.device_class, {}).values()]
            if mine:
                first = min(mine, key=lambda w: (self._run_turns.get(w.run, 0), w.sequence, w.order))
                return Assignment(first.order, device.device)
        return None

    def serve(self, picked: Assignment) -> None:
        del self._place[picked.order][picked.order]
        self._device_turns[picked.device] = self._run_turns[self._run_of[picked.order]] = self._next
        self._next += 1

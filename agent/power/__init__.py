"""Where a device's power can be read: one file per source, found through the tables. What can't be read is absent with its reason.

To add one: a file beside this one with `find(root, meter) -> Source`, a row in LOCAL (the device's own, read below `root`) or METERS
(beside the device, over HTTP), a parameter in tests/contract/test_power.py. A source never imports another one.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from edgefarm.energy.signal import Kind


class NoPower(Exception):
    """Power can't be read here; the message says why, and what to do about it."""


@dataclass(frozen=True)
class Rail:
    """One thing that a source measures.

    Attributes:
        name: as the hardware calls it.
        kind: what a reading is.
        includes: what hangs on it, and what does not.
        accuracy: as documented; empty: nobody says.
        period_ns: how often it updates, where its driver or its documents say so; 0: unknown.
        wraps_at: joules at which a counter begins again; 0: never.
        sum_of: the rails that it is the sum of; empty: it is measured itself.
    """

    name: str
    kind: Kind
    includes: str
    accuracy: str = ""
    period_ns: int = 0
    wraps_at: float = 0.0
    sum_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """Watts or joules of one rail. `stamp`: what the source says of its update; None: nothing."""

    value: float
    stamp: float | None = None


class Source(Protocol):
    """A power meter that answers.

    Attributes:
        name: its row in the table.
        rails: the first is the one to measure a device by: that which holds the most of it.
        poll_ns: how often to ask.
        external: it has a clock of its own, or answers late.
    """

    name: str
    rails: Sequence[Rail]
    poll_ns: int
    external: bool

    def read(self, rail: str) -> Sample:
        """A reading. Raises OSError or ValueError where there is none just now."""
        ...


@dataclass(frozen=True)
class Meter:
    """What the device's user said of power (`[power]` in agent.toml).

    Attributes:
        source: a row of LOCAL, to prefer it, or of METERS; empty: the best that the device has.
        rail: a rail of that source, e.g. `VDD_CPU_CV`; empty: its first.
        url: address of a meter, e.g. `http://192.168.1.20`.
        channel: which of its sockets.
        query: of Prometheus: an expression that gives watts, in one series.
    """

    source: str = ""
    rail: str = ""
    url: str = ""
    channel: int = 0
    query: str = ""


# The best first: whole boards by their own sensors, then parts of them.
LOCAL: dict[str, str] = {
    "hwmon": "agent.power.hwmon",
    "iio": "agent.power.iio",
    "raspberry-pi": "agent.power.raspberry_pi",
    "odpm": "agent.power.odpm",
    "rapl": "agent.power.rapl",
    "nvml": "agent.power.nvml",
    "battery": "agent.power.battery",
}
METERS: dict[str, str] = {
    "shelly": "agent.power.shelly",
    "tasmota": "agent.power.tasmota",
    "prometheus": "agent.power.prometheus",
}
CHEAP = ("hwmon", "iio", "odpm", "rapl", "battery")  # a few small files: read for the live metrics
_ROOT = Path("/")


def find(name: str, root: Path = _ROOT, meter: Meter | None = None, *, ask: bool = True) -> Source:
    """The source `name`. Raises NoPower: there is none, or (`ask`) its first rail gives nothing."""
    where = {**LOCAL, **METERS}.get(name)
    if where is None:
        raise NoPower(f"no power source {name!r}; known are {', '.join([*LOCAL, *METERS])}")
    try:
        source: Source = importlib.import_module(where).find(root, meter or Meter())
        if ask:
            source.read(source.rails[0].name)
    except (OSError, ValueError) as error:
        raise NoPower(f"{name}: {error}") from error
    return source


def look(root: Path = _ROOT, meter: Meter | None = None, *, ask_meter: bool = True) -> tuple[Mapping[str, Source], Mapping[str, str]]:
    """(sources that answer, reason of each other one), by name, in order of preference.

    `ask_meter`: whether a meter in the network must answer now; it may be asleep while the device starts.
    """
    found: dict[str, Source] = {}
    reasons: dict[str, str] = {}
    preferred = meter.source if meter is not None else ""
    for name in dict.fromkeys([*filter(None, [preferred]), *LOCAL]):
        try:
            found[name] = find(name, root, meter, ask=ask_meter or name in LOCAL)
        except NoPower as error:
            reasons[name] = str(error)
    return found, reasons


def choose(wanted: str = "", root: Path = _ROOT, meter: Meter | None = None) -> tuple[Source, Rail]:
    """What to measure energy with.

    Args:
        wanted: SOURCE or SOURCE/RAIL; empty: what the device's user said, or the best that there is.
        root: `/`, or a copied tree.
        meter: what the device's user said.

    Raises:
        NoPower: with the reason of each source that was tried.
    """
    name, _, rail = wanted.partition("/")
    said = meter or Meter()
    if not name:
        name, rail = said.source, said.rail
    if name:
        source = find(name, root, said)
        return source, _rail(source, rail or (said.rail if name == said.source else ""))
    found, reasons = look(root, said)
    if not found:
        raise NoPower("no power sensor: " + "; ".join(reasons.values()))
    source = next(iter(found.values()))
    return source, source.rails[0]


def _rail(source: Source, wanted: str) -> Rail:
    if not wanted:
        return source.rails[0]
    found = next((r for r in source.rails if r.name == wanted), None)
    if found is None:
        raise NoPower(f"{source.name}: no rail {wanted!r}; it has {', '.join(r.name for r in source.rails)}")
    return found

"""What the farm counts for its metrics page: the newest telemetry of each device, and what went on since it started."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edgefarm.metrics import DEVICE_METRICS, DIRECTIONS
from edgefarm.model import Family, Series, Telemetry

PERIOD_S = 15.0
UP = "edgefarm_device_up"
_MOST_SERIES, _MOST_CHARACTERS = 512, 200  # of one device; of one label: a device must not fill anyone's database


@dataclass
class Report:
    """What one device told in its present session. `families`: by name; `heard_unix_ms`: when the last of it came."""

    families: dict[str, Family] = field(default_factory=dict)
    heard_unix_ms: int = 0


class Relay:
    """The newest telemetry of each device, in memory only. Safe from any thread.

    Args:
        period_s: how often devices are asked to report; 0: they are not.
        wall: UTC milliseconds.
    """

    def __init__(self, period_s: float, wall: Callable[[], int]) -> None:
        self._period_ns = round(period_s * 1e9)
        self._wall = wall
        self._lock = threading.Lock()
        self._reports: dict[str, Report] = {}
        self._sessions = 0
        self._moved = dict.fromkeys(DIRECTIONS, 0)

    def begin(self, device: str) -> int:
        """A new session: what the last one told counts no more. Returns the nanoseconds between its reports, 0 for none."""
        with self._lock:
            self._reports[device] = Report()
            self._sessions += 1
            return self._period_ns

    def take(self, device: str, telemetry: Telemetry) -> None:
        """Keeps what a device sent, as far as it is in the table and within the limits."""
        with self._lock:
            report = self._reports.setdefault(device, Report())
            report.heard_unix_ms = self._wall()
            for family in {f.name: f for f in telemetry.families if f.name in DEVICE_METRICS}.values():
                report.families.pop(family.name, None)
                held = sum(len(f.series) for f in report.families.values())
                if kept := _checked(family, _MOST_SERIES - held):
                    report.families[family.name] = Family(family.name, kept)

    def report(self, device: str) -> Report:
        """What the device's present session told."""
        with self._lock:
            known = self._reports.get(device, Report())
            return Report(dict(known.families), known.heard_unix_ms)

    def add_transfer(self, direction: str, count: int) -> None:
        """`count` bytes moved to (fetch) or from (push) devices and users."""
        with self._lock:
            self._moved[direction] += count

    def counted(self) -> tuple[int, Mapping[str, int]]:
        """(sessions that began, bytes that moved by direction) since the start."""
        with self._lock:
            return self._sessions, dict(self._moved)


def _checked(family: Family, most: int) -> tuple[Series, ...]:
    """The first series, with exactly the labels of the table, each set of them once; whether a device is up is not for it to say."""
    metric = DEVICE_METRICS.get(family.name)
    if metric is None or family.name == UP:
        return ()
    known = {tuple(s.labels.get(label, "")[:_MOST_CHARACTERS] for label in metric.labels): s.value for s in family.series[:most]}
    return tuple(Series(dict(zip(metric.labels, values)), value) for values, value in known.items())

"""Waits until a device is cool enough to begin a launch, so that each begins alike and has room before the device slows down."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from agent.sensors import Reading, collect
from agent.sensors.files import number, text

ROOM_CELSIUS = 15.0  # between a start and the first throttling: more than a launch of some seconds heats a small board
THROTTLES_AT_CELSIUS = 80.0  # where no trip point says it: a Raspberry Pi begins there, others later
WAIT_S = 120.0
_POSSIBLE = (20.0, 200.0)  # of a trip point; drivers fill those that they don't use with absurd values
_LOOK_S = 1.0
_CANCEL_S = 0.05
_PLATEAU_S, _PLATEAU_CELSIUS = 30.0, 0.5  # it is as cool as it gets here
_PLATEAU_KNOWN_S, _AGAIN_CELSIUS = 600.0, 1.0
_UNKNOWN = "no thermal zone and no hwmon temperature of a processor: launches begin without waiting for the device to cool"
_CHIP = re.compile(
    r"cpu|soc|gpu|core|cluster|pkg|package|k10temp|zenpower|coretemp|tctl|tdie|^tj|bigc|little|npu|ddr|^bcm|^x86",
    re.IGNORECASE,
)
_OTHER = re.compile(r"batt|charger|nvme|wifi|iwl|phy|ssd|drivetemp|pmic|ambient|skin|usb|modem|xo-therm", re.IGNORECASE)


@dataclass(frozen=True)
class Start:
    """How a launch began.

    Attributes:
        state: `cool`: at or below the limit; `hot`: above, and waiting longer was of no use; `unknown`: no temperature can be read.
        zone: the hottest of those that matter.
        celsius: its temperature, None if unknown.
        limit_celsius: what was waited for.
        waited_s: how long.
        detail: why the wait ended above the limit, or why nothing can be read.
    """

    state: str
    zone: str
    celsius: float | None
    limit_celsius: float | None
    waited_s: float
    detail: str = ""

    def settings(self) -> dict[str, str]:
        """As conditions record it."""
        if self.celsius is None:
            return {"start": self.state, "start_detail": self.detail}
        found = {
            "start": self.state, "start_temperature_celsius": f"{self.celsius:.1f}", "start_zone": self.zone,
            "start_limit_celsius": f"{self.limit_celsius:g}", "start_waited_s": f"{self.waited_s:.1f}",
        }  # fmt: skip
        return {**found, "start_detail": self.detail} if self.detail else found


class Gate:
    """The start of all launches of one agent: it remembers how cool the device gets here.

    Args:
        below_celsius: the limit for the hottest relevant zone; None: 15 degrees below the first trip point at which the device slows down.
        most_s: the longest wait, 0: none. It also ends when the device has not become 0.5 degrees cooler for 30 s; for the next ten
            minutes launches then begin within a degree of that.
        clock: seconds, monotonic.
        sleep: waits for seconds.
    """

    def __init__(
        self,
        below_celsius: float | None = None,
        most_s: float = WAIT_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._below, self._most_s, self._clock, self._sleep = below_celsius, most_s, clock, sleep
        self._plateau, self._plateau_until = -math.inf, -math.inf

    def wait(self, root: Path, cancelled: Callable[[], bool]) -> Start | None:
        """Waits until the device below `root` is cool enough; None once `cancelled()` is true, which is looked at every 50 ms."""
        limit = default_limit(root) if self._below is None else self._below
        began = since = self._clock()
        coolest = math.inf
        while not cancelled():
            now = self._clock()
            hottest = hottest_zone(root)
            if hottest is None:
                return Start("unknown", "", None, None, now - began, _UNKNOWN)
            zone, celsius = hottest
            if celsius <= limit:
                return Start("cool", zone, celsius, limit, now - began)
            if celsius <= coolest - _PLATEAU_CELSIUS:
                coolest, since = celsius, now
            if reason := self._no_use(celsius, now, began, since):
                return Start("hot", zone, celsius, limit, now - began, reason)
            self._pause(min(_LOOK_S, began + self._most_s - now), cancelled)
        return None

    def _no_use(self, celsius: float, now: float, began: float, since: float) -> str:
        """Why it is of no use to wait on; '' if it may be."""
        if now < self._plateau_until and celsius <= self._plateau + _AGAIN_CELSIUS:
            return "it got no cooler some minutes ago"
        if now - since >= _PLATEAU_S:
            self._plateau, self._plateau_until = celsius, now + _PLATEAU_KNOWN_S
            return f"no cooler for {_PLATEAU_S:g} s"
        return f"still above the limit after {self._most_s:g} s" if now - began >= self._most_s else ""

    def _pause(self, seconds: float, cancelled: Callable[[], bool]) -> None:
        end = self._clock() + seconds
        while (left := end - self._clock()) > 0 and not cancelled():
            self._sleep(min(_CANCEL_S, left))


def hottest_zone(root: Path) -> tuple[str, float] | None:
    """Name and temperature of the hottest sensor that is about a chip that computes; of all but batteries and disks where none is."""
    found = [(o.source, o.value) for o in collect(root, ["temperature"]) if isinstance(o, Reading)]
    chips = [pair for pair in found if _CHIP.search(pair[0]) and not _OTHER.search(pair[0])]
    others = [pair for pair in found if not _OTHER.search(pair[0])]
    return max(chips or others, key=lambda pair: pair[1], default=None)


def default_limit(root: Path) -> float:
    """15 degrees below the lowest passive trip point of a chip's zone (where the kernel begins to slow it down), or below 80."""
    return min(_trips(root), default=THROTTLES_AT_CELSIUS) - ROOM_CELSIUS


def _trips(root: Path) -> Iterable[float]:
    for zone in (root / "sys/class/thermal").glob("thermal_zone*"):
        name = text(zone / "type") or ""
        for kind in zone.glob("trip_point_*_type"):
            if text(kind) != "passive" or not _CHIP.search(name) or _OTHER.search(name):
                continue
            milli = number(kind.with_name(kind.name.removesuffix("_type") + "_temp"))
            if milli is not None and _POSSIBLE[0] < milli / 1000 < _POSSIBLE[1]:
                yield milli / 1000

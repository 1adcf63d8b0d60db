"""Fake power sensors: a tree that a thread keeps up to date from a known model of what a process's CPU time costs."""

from __future__ import annotations

import bisect
import threading
import time
from pathlib import Path

import psutil

IDLE_WATTS, BUSY_WATTS = 2.0, 5.0  # of the board; of one core that computes, on top
WRAPS_AT = 7.0
_MILLIVOLTS = 5000
_UPDATE_S = 0.03


class FakeMonitor:
    """A board that takes 2 W, and 5 W more for each core that the children of this process keep busy.

    An INA3221 shows it as `VDD_IN`, and RAPL's counter of the package, which wraps after `WRAPS_AT` joules.

    Attributes:
        log: (monotonic nanoseconds, CPU nanoseconds of the children so far) at each update.
    """

    def __init__(self, root: Path) -> None:
        self.log: list[tuple[int, int]] = []
        self._chip = root / "sys/class/hwmon/hwmon0"
        self._chip.mkdir(parents=True)
        for name, content in {
            "name": "ina3221", "in1_label": "VDD_IN", "in1_input": _MILLIVOLTS, "in2_label": "NC",
            "update_interval": round(_UPDATE_S * 1000),
        }.items():  # fmt: skip
            (self._chip / name).write_text(f"{content}\n")
        self._zone = root / "sys/class/powercap/intel-rapl:0"
        self._zone.mkdir(parents=True)
        (self._zone / "name").write_text("package-0\n")
        (self._zone / "max_energy_range_uj").write_text(f"{round(WRAPS_AT * 1e6)}\n")
        self._cpu: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._write(IDLE_WATTS, 0.0)

    def __enter__(self) -> FakeMonitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def cpu_ns(self, begin_ns: int, end_ns: int) -> int:
        """CPU time of the children between two moments."""
        inside = [cpu for at, cpu in self.log if begin_ns <= at <= end_ns]
        return inside[-1] - inside[0]

    def watts(self, begin_ns: int, end_ns: int) -> float:
        """Mean power between two moments of the past."""
        return IDLE_WATTS + BUSY_WATTS * (self._until(end_ns) - self._until(begin_ns)) / (end_ns - begin_ns)

    def _until(self, moment: int) -> float:
        log = self.log[:]
        index = bisect.bisect_left(log, (moment, 0))
        if index in (0, len(log)):
            return float(log[min(index, len(log) - 1)][1])
        (a, before), (b, after) = log[index - 1 : index + 1]
        return before + (after - before) * (moment - a) / (b - a)

    def _run(self) -> None:
        self.log.append((time.monotonic_ns(), self._children_ns()))
        while not self._stop.wait(_UPDATE_S):
            before, now = self.log[-1], (time.monotonic_ns(), self._children_ns())
            busy = BUSY_WATTS * (now[1] - self.log[0][1]) + IDLE_WATTS * (now[0] - self.log[0][0])
            self._write(IDLE_WATTS + BUSY_WATTS * (now[1] - before[1]) / (now[0] - before[0]), busy / 1e9)
            self.log.append(now)

    def _children_ns(self) -> int:
        """Of all that there ever were: what a child had used when it was last seen stays."""
        for child in psutil.Process().children(recursive=True):
            try:
                tasks = Path(f"/proc/{child.pid}/task").glob("*/schedstat")
                self._cpu[child.pid] = max(self._cpu.get(child.pid, 0), sum(int(t.read_text().split()[0]) for t in tasks))
            except (OSError, ValueError):  # it has just ended
                continue
        return sum(self._cpu.values())

    def _write(self, watts: float, joules: float) -> None:
        _replace(self._chip / "curr1_input", round(watts * 1e6 / _MILLIVOLTS))
        _replace(self._zone / "energy_uj", round(joules % WRAPS_AT * 1e6))


def _replace(path: Path, value: int) -> None:
    """At once: a driver never shows half a number."""
    fresh = path.with_suffix(".new")
    fresh.write_text(f"{value}\n")
    fresh.rename(path)

"""What surrounds a measurement: sensors sampled while it runs, and the CPU time of others."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

from agent import sensors
from agent.sensors import Absent, Observation, Reading, Setting
from agent.sensors.cpu import cpu_times
from edgefarm.model import Conditions, Trace

SAMPLE_NS = 200_000_000


class Watch:
    """Follows the device from its making to `conditions()`; `tick` is called often and samples every 200 ms.

    Attributes:
        settings: what else is to be recorded, e.g. versions.
    """

    def __init__(self, root: Path) -> None:
        self.settings: dict[str, str] = {"python": platform.python_version(), "affinity": _affinity()}
        self._root = root
        self._traces: dict[tuple[str, str], Trace] = {}
        self._first_counts: dict[str, float] = {}
        self._last_counts: dict[str, float] = {}
        self._throttled: set[str] = set()
        self._unavailable: dict[str, str] = {}
        # Sensors that give no number here, or only words, are asked once: the device must be quiet while it measures.
        self._sampled = [name for name, found in sensors.collect_by_sensor(root).items() if self._take(found)]
        self._runner: psutil.Process | None = None
        self._runners_cpu = self._runner_cpu = 0.0
        self._started, self._own_cpu, self._cpu = time.monotonic(), _own_cpu(), cpu_times(root)
        self._due_ns = time.monotonic_ns() + SAMPLE_NS

    def follow(self, pid: int) -> None:
        """A runner of ours began: its CPU time is not that of others."""
        self._runner, self._runner_cpu = None, 0.0
        with contextlib.suppress(psutil.Error):  # it died at once, and whoever started it has noticed: its first request will fail
            self._runner = psutil.Process(pid)

    def leave(self) -> None:
        """The runner that is followed is about to end, or has ended."""
        self._read_runner()
        self._runners_cpu += self._runner_cpu
        self._runner = None

    def tick(self) -> None:
        """Samples, if it is time."""
        now = time.monotonic_ns()
        if now >= self._due_ns:
            self._due_ns = now + SAMPLE_NS
            self._read_runner()
            self._take(sensors.collect(self._root, self._sampled))

    def unavailable(self, quantity: str, reason: str) -> None:
        """Records what could not be read."""
        self._unavailable[quantity] = reason

    def conditions(self) -> Conditions:
        """Everything since the beginning."""
        self._take(sensors.collect(self._root, self._sampled))
        others, steal = self._cpu_shares()
        grown = {source: count - self._first_counts[source] for source, count in self._last_counts.items()}
        events = {f"{source}: {count:g} thermal events" for source, count in grown.items() if count > 0}
        traces = tuple(self._traces[key] for key in sorted(self._traces))
        return Conditions(traces, others, steal, tuple(sorted(self._throttled | events)), self.settings, self._unavailable)

    def _take(self, observations: Iterable[Observation]) -> bool:
        numbers = False
        for seen in observations:
            if isinstance(seen, Absent):
                self._unavailable[seen.quantity] = seen.reason
            elif isinstance(seen, Setting):
                self.settings[seen.quantity] = seen.value
            else:
                numbers = self._take_number(seen) or numbers
        return numbers

    def _take_number(self, seen: Reading) -> bool:
        if seen.quantity == "throttled":
            if seen.value:
                self._throttled.add(seen.source)
        elif seen.quantity == "throttle_events_total":
            self._first_counts.setdefault(seen.source, seen.value)
            self._last_counts[seen.source] = seen.value
        elif seen.quantity.endswith(("_total", "_total_bytes")):
            return False
        else:
            self._extend(seen)
        return True

    def _extend(self, seen: Reading) -> None:
        key, value = (seen.quantity, seen.source), seen.value
        old = self._traces.get(key)
        if old is None:
            self._traces[key] = Trace(*key, 1, value, value, value, value)
        else:
            self._traces[key] = Trace(*key, old.n + 1, old.first, min(old.low, value), max(old.high, value), value)

    def _read_runner(self) -> None:
        if self._runner is not None:
            try:
                times = self._runner.cpu_times()
            except psutil.Error:  # it died: the last value stands
                return
            self._runner_cpu = max(self._runner_cpu, times.user + times.system)

    def _cpu_shares(self) -> tuple[float | None, float | None]:
        now = cpu_times(self._root)
        if now is None or self._cpu is None:
            self._unavailable["others_cpu"] = self._unavailable["steal"] = "no /proc/stat"
            return None, None
        wall = max(time.monotonic() - self._started, 1e-3)
        busy, steal = now.busy - self._cpu.busy, now.steal - self._cpu.steal
        ours = self._runners_cpu + _own_cpu() - self._own_cpu
        whole = busy + steal + now.idle - self._cpu.idle
        return max(0.0, (busy - ours) / wall), (min(1.0, max(0.0, steal / whole)) if whole > 0 else 0.0)


def _own_cpu() -> float:
    times = os.times()
    return times.user + times.system


def _affinity() -> str:
    return ",".join(map(str, sorted(os.sched_getaffinity(0))))

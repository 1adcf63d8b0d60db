"""What surrounds a measurement: sensors sampled while it runs, and the CPU time of others."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable
from pathlib import Path

from agent import sensors
from agent.bench.affinity import Cores
from agent.bench.competition import Competition
from agent.sensors import Absent, Observation, Reading, Setting
from edgefarm.model import Conditions, Trace

SAMPLE_NS = 200_000_000
_SAMPLED = frozenset({"temperature", "frequency", "throttling"})  # what may change within a launch and then explains its numbers
_BUSY = 0.8  # of a window, in which a runner wanted a CPU: then its frequency is that of the measurement, not of a rest
_SMOOTHED = 3  # samples whose median is a frequency: one alone may have met the moment at which it changes


class Watch:
    """Follows the device from its making to `conditions()`; `tick` is called often and samples every 200 ms.

    Attributes:
        settings: what else is to be recorded, e.g. versions.
    """

    def __init__(self, root: Path, cores: Cores | None = None) -> None:
        self._cores = cores or Cores.allowed()
        self.settings: dict[str, str] = {"python": platform.python_version(), "affinity": str(self._cores)}
        self._root = root
        self._traces: dict[tuple[str, str], Trace] = {}
        self._counts: dict[tuple[str, str], float] = {}
        self._events: dict[str, float] = {}
        self._throttled: set[str] = set()
        self._unavailable: dict[str, str] = {}
        self._ratios: list[float] = []
        # The device must be quiet while it measures: sensors that give no number here, or only words, are asked once, most others
        # again at the end.
        found = sensors.collect_by_sensor(root)
        self._told = [name for name, seen in found.items() if self._take(seen)]
        self._sampled = [name for name in self._told if name in _SAMPLED]
        self._competition = Competition(root)
        self._due_ns = time.monotonic_ns() + SAMPLE_NS

    def follow(self, pid: int) -> None:
        """A runner of ours began: its CPU time is not that of others."""
        self._competition.follow(pid)

    def leave(self) -> None:
        """The runner that is followed is about to end, or has ended."""
        if numbers := self._competition.cores():
            had = Cores(numbers, self._cores.choice, self._cores.pinned)
            self.settings["affinity"] = str(had)
            if numbers != self._cores.numbers:
                self._unavailable["affinity"] = f"cores {self._cores} were asked for; the runner had {had}"
        self._competition.leave()

    def tick(self) -> None:
        """Samples, if it is time."""
        self._competition.look()
        now = time.monotonic_ns()
        if now >= self._due_ns:
            self._due_ns = now + SAMPLE_NS
            self._sample()

    def unavailable(self, quantity: str, reason: str) -> None:
        """Records what could not be read."""
        self._unavailable[quantity] = reason

    def conditions(self) -> Conditions:
        """Everything since the beginning."""
        self._sample()
        self._take(sensors.collect(self._root, [name for name in self._told if name not in _SAMPLED]))
        shares = self._competition.shares()
        for trace in shares.traces:
            self._traces[trace.quantity, trace.source] = trace
        events = {f"{source}: {count:g} events" for source, count in self._events.items() if count > 0}
        traces = tuple(self._traces[key] for key in sorted(self._traces))
        return Conditions(
            traces, shares.others_cpu, shares.steal, tuple(sorted(self._throttled | events)), self.settings,
            {**self._unavailable, **shares.unavailable}, shares.others_cpu_peak, shares.waited,
        )  # fmt: skip

    def _sample(self) -> None:
        wanted = self._competition.window()
        seen = sensors.collect(self._root, self._sampled)
        self._take(seen)
        if wanted >= _BUSY:
            self._take_frequency(seen)

    def _take(self, observations: Iterable[Observation]) -> bool:
        numbers = False
        for seen in observations:
            if isinstance(seen, Absent):
                # Two sensors may look for one quantity: it is absent if neither gives it.
                self._unavailable.setdefault(seen.quantity, seen.reason)
            elif isinstance(seen, Setting):
                self.settings[seen.quantity] = seen.value
            else:
                numbers = self._take_number(seen) or numbers
        return numbers

    def _take_number(self, seen: Reading) -> bool:
        if seen.quantity == "throttled":
            self._unavailable.pop("throttled", None)
            if seen.value:
                self._throttled.add(seen.source)
        elif seen.quantity in ("throttle_events_total", "throttled_before"):
            before = self._counts.setdefault((seen.quantity, seen.source), seen.value)
            self._events[seen.source] = self._events.get(seen.source, 0.0) + max(0.0, seen.value - before)
            self._counts[seen.quantity, seen.source] = seen.value
        elif seen.quantity.endswith(("_total", "_total_bytes")):
            return False
        elif seen.quantity == "frequency_max_hertz":  # it never changes; see `busy_frequency_ratio`
            return True
        else:
            self._extend(seen)
        return True

    def _take_frequency(self, observations: Iterable[Observation]) -> None:
        """How near its highest frequency the fastest of the cores was on which a runner was busy: another may be resting."""
        values = {(o.quantity, o.source): o.value for o in observations if isinstance(o, Reading) and o.quantity.startswith("frequency")}
        cores = {f"cpu{n}" for n in self._cores.numbers}
        highest = {core: values.get(("frequency_max_hertz", core)) or values.get(("frequency_limit_hertz", core)) for core in cores}
        ratios = [values["frequency_hertz", c] / top for c, top in highest.items() if top and ("frequency_hertz", c) in values]
        if ratios:
            self._ratios = [*self._ratios, max(ratios)][-_SMOOTHED:]
            if len(self._ratios) == _SMOOTHED:
                self._extend(Reading("busy_frequency_ratio", "", sorted(self._ratios)[_SMOOTHED // 2]))

    def _extend(self, seen: Reading) -> None:
        key, value = (seen.quantity, seen.source), seen.value
        old = self._traces.get(key)
        if old is None:
            self._traces[key] = Trace(*key, 1, value, value, value, value)
        else:
            self._traces[key] = Trace(*key, old.n + 1, old.first, min(old.low, value), max(old.high, value), value)

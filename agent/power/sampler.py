"""Reads one rail again and again, in a thread of its own, while a device is measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from agent.power import Rail, Source
from edgefarm.energy.signal import Reading, Signal

_STOP_S = 10.0


class Sampler:
    """Readings from its beginning until the end of the `with` block.

    Args:
        source: what to ask, every `poll_ns`. Asking costs the same while the model runs and while nothing does, so it is subtracted
            with the idle power.
        rail: one of its rails.
        now: our clock, in nanoseconds.
    """

    def __init__(self, source: Source, rail: Rail, now: Callable[[], int] = time.monotonic_ns) -> None:
        self._source, self._rail, self._now = source, rail, now
        self._readings: list[Reading] = []
        self._missed, self._reason = 0, ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(_STOP_S)

    @property
    def missed(self) -> str:
        """How many readings failed, and the last reason; empty: none."""
        return f"{self._missed} readings failed: {self._reason}" if self._missed else ""

    def signal(self, shift_ns: int = 0) -> Signal:
        """What was read so far. `shift_ns`: how much the meter is behind our clock."""
        readings = [Reading(r.at_ns - shift_ns, r.value, r.stamp) for r in list(self._readings)]
        return Signal(readings, self._rail.kind, period_ns=self._rail.period_ns, wraps_at=self._rail.wraps_at)

    def _run(self) -> None:
        due = self._now()
        while not self._stop.wait(max(0, due - self._now()) / 1e9):
            asked = self._now()
            try:
                sample = self._source.read(self._rail.name)
            except (OSError, ValueError) as error:
                self._missed, self._reason = self._missed + 1, str(error)
            else:
                self._readings.append(Reading((asked + self._now()) // 2, sample.value, sample.stamp))
            due = max(due + self._source.poll_ns, self._now())

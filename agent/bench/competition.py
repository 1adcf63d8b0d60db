"""Who else used the CPUs while a runner measured, and how long it had to wait for one.

Of the runner's main thread the kernel counts, in nanoseconds, how long it ran and how long it wanted to and waited
(/proc/PID/schedstat, https://docs.kernel.org/scheduler/sched-stats.html). That says what the load of others says only on a small
machine: whether it was in the way.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from agent.sensors.cpu import CpuTimes, cpu_times
from edgefarm.model import Trace

_PROC = Path("/proc")
_LEAST_WINDOW_S = 0.1  # the kernel counts most CPU times in ticks of 4 to 10 ms
_LEAST_WANTED_NS = 20_000_000


@dataclass(frozen=True)
class Shares:
    """The fields of `Conditions` of the same names, and traces of the windows: `waiting_ratio`, `runner_stopped`."""

    others_cpu: float | None
    others_cpu_peak: float | None
    steal: float | None
    waited: float | None
    traces: tuple[Trace, ...] = ()
    unavailable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Moment:
    seconds: float
    ours: float
    cpu: CpuTimes | None
    ran_ns: int
    waited_ns: int


class Competition:
    """Counts from its making on; windows are counted while a runner is followed.

    Args:
        root: where `/proc/stat` is read; a runner is looked up in the real /proc.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._runner: psutil.Process | None = None
        self._runners_cpu = self._runner_cpu = 0.0
        self._runners_ns = self._runner_ns = (0, 0)  # ran, waited
        self._told = self._followed = False
        self._stopped = 0
        self._looks = 0
        self._peak: float | None = None
        self._waiting: list[float] = []
        self._own_cpu = _own_cpu()
        self._began = self._window = self._now()

    def follow(self, pid: int) -> None:
        """A runner of ours began; what its start took of others (systemd, the disk) is not counted in a window."""
        self._runner, self._runner_cpu, self._runner_ns = None, 0.0, (0, 0)
        with contextlib.suppress(psutil.Error):  # it died at once, and whoever started it has noticed: its first request will fail
            self._runner = psutil.Process(pid)
        self._followed = True
        self._read()
        self._window = self._now()

    def leave(self) -> None:
        """The runner that is followed is about to end, or has ended."""
        if self._runner is not None:
            self.window()
        self._runners_cpu += self._runner_cpu
        self._runners_ns = self._runners_ns[0] + self._runner_ns[0], self._runners_ns[1] + self._runner_ns[1]
        self._runner, self._runner_cpu, self._runner_ns = None, 0.0, (0, 0)

    def look(self) -> None:
        """Cheap, and called every 50 ms: does the runner stand still because somebody stopped it?"""
        if self._runner is not None and (state := _state(self._runner.pid)):
            self._looks += 1
            self._stopped += state in "tT"

    def cores(self) -> tuple[int, ...]:
        """Those that the followed runner's main thread may use; empty if it is gone."""
        with contextlib.suppress(OSError):
            return tuple(sorted(os.sched_getaffinity(self._runner.pid))) if self._runner is not None else ()
        return ()

    def window(self) -> float:
        """Ends a window if it is long enough to say something; returns the share of it in which the runner wanted a CPU, else 0.0."""
        self._read()
        if self._runner is None:
            return 0.0
        now, then = self._now(), self._window
        if (wall := now.seconds - then.seconds) < _LEAST_WINDOW_S:
            return 0.0
        self._window = now
        if now.cpu is not None and then.cpu is not None:
            others = max(0.0, (now.cpu.busy - then.cpu.busy - (now.ours - then.ours)) / wall)
            self._peak = max(self._peak or 0.0, others)
        ran, waited = now.ran_ns - then.ran_ns, now.waited_ns - then.waited_ns
        if ran + waited >= _LEAST_WANTED_NS:
            self._waiting.append(waited / (ran + waited))
        return (ran + waited) / 1e9 / wall

    def shares(self) -> Shares:
        """Everything since the beginning."""
        now, absent = self._now(), {}
        others, steal = _between(self._began, now)
        if others is None:
            absent = dict.fromkeys(("others_cpu", "others_cpu_peak", "steal"), "no /proc/stat")
        ran, waited = now.ran_ns, now.waited_ns
        told = self._told and ran + waited > 0
        if not told:
            absent["waited"] = "the kernel counts no waiting (/proc/PID/schedstat)" if self._followed else "no runner was started"
        return Shares(others, self._peak, steal, waited / (ran + waited) if told else None, self._traces(), absent)

    def _traces(self) -> tuple[Trace, ...]:
        traces = []
        if seen := self._waiting:
            traces.append(Trace("waiting_ratio", "", len(seen), seen[0], min(seen), max(seen), seen[-1]))
        if self._stopped:
            traces.append(Trace("runner_stopped", "", self._looks, 0.0, 0.0, 1.0, 0.0))
        return tuple(traces)

    def _now(self) -> _Moment:
        ours = self._runners_cpu + self._runner_cpu + _own_cpu() - self._own_cpu
        ran, waited = (before + now for before, now in zip(self._runners_ns, self._runner_ns))
        return _Moment(time.monotonic(), ours, cpu_times(self._root), ran, waited)

    def _read(self) -> None:
        if self._runner is None:
            return
        with contextlib.suppress(psutil.Error):  # it died: the last value stands
            times = self._runner.cpu_times()
            self._runner_cpu = max(self._runner_cpu, times.user + times.system)
        with contextlib.suppress(OSError, ValueError):
            ran, waited = map(int, (_PROC / str(self._runner.pid) / "schedstat").read_bytes().split()[:2])
            self._told = True
            self._runner_ns = max(self._runner_ns[0], ran), max(self._runner_ns[1], waited)


def _between(then: _Moment, now: _Moment) -> tuple[float | None, float | None]:
    """Cores that others kept busy, and the share that the hypervisor took."""
    if then.cpu is None or now.cpu is None:
        return None, None
    busy, steal = now.cpu.busy - then.cpu.busy, now.cpu.steal - then.cpu.steal
    whole = busy + steal + now.cpu.idle - then.cpu.idle
    others = (busy - (now.ours - then.ours)) / max(now.seconds - then.seconds, 1e-3)
    return max(0.0, others), (min(1.0, max(0.0, steal / whole)) if whole > 0 else 0.0)


def _state(pid: int) -> str:
    """Of a process, one letter (proc(5)); '' once it is gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _own_cpu() -> float:
    times = os.times()
    return times.user + times.system

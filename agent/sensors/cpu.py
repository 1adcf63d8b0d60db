"""CPU time by use (/proc/stat, https://docs.kernel.org/filesystems/proc.html) and load (/proc/loadavg)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from agent.sensors import Absent, Observation, Reading
from agent.sensors.files import text


@dataclass(frozen=True)
class CpuTimes:
    """Seconds since boot, summed over all cores. `steal` is what the hypervisor took; it is part of neither `busy` nor `idle`."""

    busy: float
    idle: float
    steal: float


def cpu_times(root: Path) -> CpuTimes | None:
    """All cores together, or None if the kernel does not tell."""
    content = text(root / "proc/stat")
    line = next((row for row in (content or "").splitlines() if row.startswith("cpu ")), None)
    if line is None:
        return None
    # user nice system idle iowait irq softirq steal; guest times are inside user and nice
    user, nice, system, idle, iowait, irq, softirq, steal = ([float(v) for v in line.split()[1:9]] + [0.0] * 8)[:8]
    tick = os.sysconf("SC_CLK_TCK")
    return CpuTimes((user + nice + system + irq + softirq) / tick, (idle + iowait) / tick, steal / tick)


def read(root: Path) -> list[Observation]:
    """`load_1m` (tasks), `cpu_busy_seconds_total`, `cpu_steal_seconds_total`."""
    found: list[Observation] = []
    load = text(root / "proc/loadavg")
    found.append(Reading("load_1m", "", float(load.split()[0])) if load else Absent("load_1m", "no /proc/loadavg"))
    times = cpu_times(root)
    if times is None:
        return [*found, Absent("cpu_busy_seconds_total", "no /proc/stat"), Absent("cpu_steal_seconds_total", "no /proc/stat")]
    return [*found, Reading("cpu_busy_seconds_total", "", times.busy), Reading("cpu_steal_seconds_total", "", times.steal)]

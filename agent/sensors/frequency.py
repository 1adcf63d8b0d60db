"""CPU frequencies (https://docs.kernel.org/admin-guide/pm/cpufreq.html)."""

from __future__ import annotations

from pathlib import Path

from agent.sensors import Absent, Observation, Reading
from agent.sensors.files import number, number_of

_QUANTITIES = {"frequency_hertz": ("scaling_cur_freq", "cpuinfo_cur_freq"), "frequency_limit_hertz": ("scaling_max_freq",)}


def read(root: Path) -> list[Observation]:
    """`frequency_hertz` now and `frequency_limit_hertz` allowed, by core."""
    cores = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq"), key=lambda p: number_of(p.parent.name))
    found: list[Observation] = []
    for quantity, files in _QUANTITIES.items():
        values = [(core.parent.name, next((v for f in files if (v := number(core / f)) is not None), None)) for core in cores]
        readings = [Reading(quantity, core, kilohertz * 1000) for core, kilohertz in values if kilohertz is not None]
        found += readings or [Absent(quantity, "no cpufreq in /sys/devices/system/cpu (a virtual machine, or no driver)")]
    return found

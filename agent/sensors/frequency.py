"""CPU frequencies (https://docs.kernel.org/admin-guide/pm/cpufreq.html)."""

from __future__ import annotations

import os
from pathlib import Path

from agent.sensors import Absent, Observation, Reading
from agent.sensors.files import matching, number, number_of

_NONE = "no cpufreq in /sys/devices/system/cpu (a virtual machine, or no driver)"
_QUANTITIES = {
    "frequency_hertz": ("scaling_cur_freq", "cpuinfo_cur_freq"),
    "frequency_limit_hertz": ("scaling_max_freq",),
    "frequency_max_hertz": ("cpuinfo_max_freq",),
}


def read(root: Path) -> list[Observation]:
    """`frequency_hertz` now, `frequency_limit_hertz` allowed and `frequency_max_hertz` possible, by core.

    Cores of one policy share their frequency, and its files, which are read once.
    """
    cores = sorted(matching(root, "sys/devices/system/cpu", "cpu[0-9]*/cpufreq"), key=lambda p: number_of(p.parent.name))
    policies = {core.parent.name: os.path.realpath(core) for core in cores}
    found: list[Observation] = []
    for quantity, files in _QUANTITIES.items():
        known = {policy: _first(Path(policy), files) for policy in set(policies.values())}
        values = [(cpu, known[policy]) for cpu, policy in policies.items()]
        readings = [Reading(quantity, cpu, kilohertz * 1000) for cpu, kilohertz in values if kilohertz is not None]
        found += readings or [Absent(quantity, f"the frequency driver has no {files[0]}" if cores else _NONE)]
    return found


def _first(policy: Path, files: tuple[str, ...]) -> float | None:
    return next((value for file in files if (value := number(policy / file)) is not None), None)

"""On which cores a runner measures: all, the big ones, the little ones, or a list.

Big and little differ by `cpu_capacity` (https://docs.kernel.org/arch/arm/cpu-capacity.html), on hybrid x86 by the PMUs `cpu_core` and
`cpu_atom` (https://docs.kernel.org/arch/x86/topology.html, perf's event sources), elsewhere by the highest frequency.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from agent.sensors.files import number, number_of, text
from edgefarm.errors import UserError

CHOICES = ("all", "big", "little")
_ALIKE = 0.8  # the least of a device's cores, against its greatest, that are still of one kind: favoured x86 cores are some % faster


@dataclass(frozen=True)
class Cores:
    """Numbers of the cores that a runner may use, and what was asked for; `pinned`: whether that is fewer than the agent itself may."""

    numbers: tuple[int, ...]
    choice: str = "all"
    pinned: bool = False

    @staticmethod
    def allowed() -> Cores:
        """Those that this process may use."""
        return Cores(tuple(sorted(os.sched_getaffinity(0))))

    def __str__(self) -> str:
        name = f" ({self.choice})" if self.choice in CHOICES and self.pinned else ""
        return f"{ranges(self.numbers)}{name}"


def choose(choice: str, root: Path = Path("/"), allowed: Collection[int] | None = None) -> Cores:
    """The cores for `[measure] cpus`.

    Args:
        choice: `all`, `big`, `little`, or a list such as `0-3,6`.
        root: `/`, or a copied tree.
        allowed: cores that this process may use; None: asks the kernel.

    Raises:
        UserError: a core of the list is not there or not allowed, or the device has one kind of core only and `little` was asked for.
    """
    permitted = frozenset(os.sched_getaffinity(0) if allowed is None else allowed)
    if choice == "all":
        return Cores(tuple(sorted(permitted)))
    if choice in CHOICES:
        wanted = _kinds(root, permitted)[choice]
        if not wanted:
            raise UserError(
                f"[measure] cpus = {choice!r}: all cores that the agent may use ({ranges(permitted)}) are of one kind; use 'all'"
            )
    else:
        wanted = numbers(choice)
        if missing := wanted - permitted:
            raise UserError(f"[measure] cpus = {choice!r}: no core {ranges(missing)} for the agent here; it may use {ranges(permitted)}")
    return Cores(tuple(sorted(wanted)), choice, wanted != permitted)


def numbers(text_: str) -> frozenset[int]:
    """The cores of a list such as `0-3,6` (cpuset(7), list format). Raises ValueError."""
    found: set[int] = set()
    for part in text_.replace(" ", "").split(","):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"{text_!r} is no list of cores such as '0-3,6'")
        found |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(found)


def ranges(cores: Collection[int]) -> str:
    """The list in its shortest form, e.g. `0-3,6`."""
    parts: list[list[int]] = []
    for core in sorted(cores):
        if parts and parts[-1][-1] == core - 1:
            parts[-1].append(core)
        else:
            parts.append([core])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def _kinds(root: Path, permitted: frozenset[int]) -> dict[str, frozenset[int]]:
    """Big and little cores; where all are alike, all are big."""
    hybrid = [text(root / f"sys/devices/{pmu}/cpus") for pmu in ("cpu_core", "cpu_atom")]
    if hybrid[0] and hybrid[1]:
        big, little = (numbers(cores) & permitted for cores in hybrid if cores)
        return {"big": big, "little": little} if big and little else {"big": permitted, "little": frozenset()}
    speeds = _speeds(root, permitted)
    low, high = min(speeds.values(), default=0.0), max(speeds.values(), default=0.0)
    if low >= _ALIKE * high:
        return {"big": permitted, "little": frozenset()}
    big = frozenset(core for core, speed in speeds.items() if speed >= (low + high) / 2)
    return {"big": big, "little": permitted - big}


def _speeds(root: Path, permitted: frozenset[int]) -> dict[int, float]:
    """By core, in any unit; empty where not every core tells."""
    for file in ("cpu_capacity", "cpufreq/cpuinfo_max_freq"):
        folders = {number_of(p.name): p for p in (root / "sys/devices/system/cpu").glob("cpu[0-9]*")}
        speeds = {core: number(folders[core] / file) for core in permitted if core in folders}
        known = {core: speed for core, speed in speeds.items() if speed}
        if len(known) == len(permitted):
            return known
    return {}

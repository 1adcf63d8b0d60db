"""Energy counters of Intel's and AMD's processors (RAPL) in powercap.

Sources: https://docs.kernel.org/power/powercap/powercap.html; Intel SDM vol. 3, 15.10 (counters update about every millisecond). Since
CVE-2020-8694 (PLATYPUS) `energy_uj` is readable by root only. `psys`, where it exists, is the whole platform; else packages are
added, with `dram` beside them, which is no part of a package; `core` and `uncore` are.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from agent.power import Meter, NoPower, Rail
from agent.power.sums import Summed
from agent.sensors.files import number, text
from edgefarm.energy.signal import Kind

_INCLUDES = {
    "package": "the processor: cores, caches, its graphics and memory controller; not the memory, nor the board",
    "core": "the cores, part of the package",
    "uncore": "graphics in the processor, part of the package",
    "dram": "the memory modules; not part of the package",
    "psys": "the whole platform, as its board measures it",
}
_POLL_NS = 20_000_000
_PERIOD_NS = 1_000_000
_MEND = ": only root may read it since CVE-2020-8694; give the agent's user the right, e.g. by a udev rule"


def find(root: Path, meter: Meter) -> Summed:
    """All domains. Raises NoPower: none, or not for this user."""
    zones = sorted((root / "sys/class/powercap").glob("*-rapl:*"))  # intel-rapl also on AMD; -mmio repeats the package
    rails: list[Rail] = []
    reads: dict[str, Callable[[], float]] = {}
    denied = ""
    for zone in (z for z in zones if "mmio" not in z.name):
        name = _name(zone)
        try:
            (zone / "energy_uj").read_bytes()
        except OSError as error:
            if error.errno != errno.ENOENT:  # the control type itself has no counter
                denied = f"{zone.name}/energy_uj: {error.strerror}{_MEND if isinstance(error, PermissionError) else ''}"
            continue
        wraps_at = (number(zone / "max_energy_range_uj") or 0) / 1e6
        kind = next((k for k in _INCLUDES if name.startswith(k)), "")
        rails.append(Rail(name, Kind.COUNTER, _INCLUDES.get(kind, f"RAPL's domain {name}"), "", _PERIOD_NS, wraps_at))
        reads[name] = _joules(zone / "energy_uj")
    if denied and not rails:
        raise NoPower(f"rapl: {denied}")
    if not rails:
        raise NoPower("rapl: no energy counter in /sys/class/powercap")
    rails.sort(key=lambda r: (not r.name.startswith("psys"), not r.name.startswith("package")))
    return Summed("rapl", rails, reads, poll_ns=_POLL_NS)


def _name(zone: Path) -> str:
    """`package-0`; a domain in a package with its number: `core-0`, as two packages have two."""
    name = text(zone / "name") or zone.name
    parts = zone.name.split(":")
    return f"{name}-{parts[1]}" if len(parts) > 2 else name


def _joules(path: Path) -> Callable[[], float]:
    return lambda: int(path.read_bytes()) / 1e6

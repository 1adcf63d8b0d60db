"""Memory (/proc/meminfo)."""

from __future__ import annotations

from pathlib import Path

from agent.sensors import Absent, Observation, Reading
from agent.sensors.files import text

_FIELDS = {"memory_total_bytes": "MemTotal", "memory_available_bytes": "MemAvailable", "swap_free_bytes": "SwapFree"}


def read(root: Path) -> list[Observation]:
    """`memory_total_bytes`, `memory_available_bytes`, `swap_free_bytes`."""
    content = text(root / "proc/meminfo")
    if content is None:
        return [Absent(quantity, "no /proc/meminfo") for quantity in _FIELDS]
    rows = dict(line.split(":", 1) for line in content.splitlines() if ":" in line)
    return [
        Reading(quantity, "", float(rows[name].split()[0]) * 1024) if name in rows else Absent(quantity, f"no {name} in /proc/meminfo")
        for quantity, name in _FIELDS.items()
    ]

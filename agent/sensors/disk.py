"""Free space of the file system that holds `root`."""

from __future__ import annotations

import os
from pathlib import Path

from agent.sensors import Observation, Reading


def read(root: Path) -> list[Observation]:
    """`disk_free_bytes` (what an ordinary user may still write) and `disk_total_bytes`. Raises OSError."""
    figures = os.statvfs(root)
    free, total = figures.f_bavail * figures.f_frsize, figures.f_blocks * figures.f_frsize
    return [Reading("disk_free_bytes", "/", float(free)), Reading("disk_total_bytes", "/", float(total))]

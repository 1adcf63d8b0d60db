"""Memory of this process, as the kernel counts it (https://docs.kernel.org/filesystems/proc.html).

The process reads itself: in a unit it belongs to another user than the agent, who may not look. Of the resident size the kernel keeps the
peak (VmHWM); of the proportional and the private size it does not, so those are read at moments that matter, and the caller takes the
largest. Since Linux 6.2 counters of resident pages are per CPU and may lag by some pages, so what a walk over the pages finds counts
where it is more.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_PROCESS = Path("/proc/self")
_LIBRARY = ".so"


def footprint(root: Path = _PROCESS) -> dict[str, int]:
    """`peak_rss_bytes`, `pss_bytes` and `private_bytes` (clean and dirty). Raises OSError or KeyError where the kernel does not tell."""
    peak = _fields((root / "status").read_text())["VmHWM"]
    try:
        now = _fields((root / "smaps_rollup").read_text())
    except FileNotFoundError:  # Linux before 4.14
        text = (root / "smaps").read_text()
        now = {name: sum(_lines(text, name)) for name in ("Rss", "Pss", "Private_Clean", "Private_Dirty")}
    return {
        "peak_rss_bytes": max(peak, now["Rss"]), "pss_bytes": now["Pss"],
        "private_bytes": now["Private_Clean"] + now["Private_Dirty"],
    }  # fmt: skip


def mapped_bytes(model: Path, root: Path = _PROCESS) -> int:
    """Resident bytes of mapped files that lie with `model`, weights beside or below it included: pages of the page cache, not copies."""
    folders = {f"{folder}/" for folder in (model.absolute().parent, model.resolve().parent)}
    return sum(
        size
        for path, size in _mappings((root / "smaps").read_text())
        if any(path.startswith(folder) for folder in folders) and _LIBRARY not in path.rpartition("/")[2]
    )


def _mappings(text: str) -> Iterator[tuple[str, int]]:
    """(path, resident bytes) of each mapping that has a path."""
    path = ""
    for line in text.splitlines():
        if line[:1].isupper():
            if path and line.startswith("Rss:"):
                yield path, int(line.split()[1]) * 1024
        else:  # range, permissions, offset, device, inode, path
            path = [*line.split(maxsplit=5), ""][5]


def _fields(text: str) -> dict[str, int]:
    rows = (line.split() for line in text.splitlines())
    return {row[0][:-1]: int(row[1]) * 1024 for row in rows if len(row) == 3 and row[2] == "kB"}


def _lines(text: str, name: str) -> list[int]:
    return [int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(name + ":")]

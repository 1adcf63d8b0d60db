"""Memory of this process, as the kernel counts it (https://docs.kernel.org/filesystems/proc.html)."""

from __future__ import annotations

from pathlib import Path


def footprint(root: Path = Path("/proc/self")) -> dict[str, int]:
    """`peak_rss_bytes` (VmHWM) and `pss_bytes`. Raises OSError or KeyError where the kernel does not tell."""
    status = _fields((root / "status").read_text())
    try:
        pss = _fields((root / "smaps_rollup").read_text())["Pss"]
    except FileNotFoundError:  # Linux before 4.14
        pss = sum(_lines((root / "smaps").read_text(), "Pss"))
    return {"peak_rss_bytes": status["VmHWM"], "pss_bytes": pss}


def _fields(text: str) -> dict[str, int]:
    rows = (line.split() for line in text.splitlines())
    return {row[0][:-1]: int(row[1]) * 1024 for row in rows if len(row) == 3 and row[2] == "kB"}


def _lines(text: str, name: str) -> list[int]:
    return [int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith(name + ":")]

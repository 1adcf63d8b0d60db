"""Small files of /sys and /proc."""

from __future__ import annotations

from pathlib import Path


def text(path: Path) -> str | None:
    """Content without surrounding space; None if it can't be read (drivers answer EIO, EAGAIN, ENODATA for an absent part)."""
    try:
        return path.read_text(errors="replace").strip("\0 \n\t")
    except OSError:
        return None


def number(path: Path) -> float | None:
    """Content as a number; None if it is none."""
    content = text(path)
    try:
        return None if content is None else float(content)
    except ValueError:
        return None


def number_of(name: str) -> int:
    """The number that ends a name such as `cpu10`, for sorting; -1 if there is none."""
    digits = name[len(name.rstrip("0123456789")) :]
    return int(digits) if digits else -1

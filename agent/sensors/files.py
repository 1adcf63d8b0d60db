"""Small files of /sys and /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path

_CHUNK_BYTES = 1 << 14
_KNOWN_S = 10.0
_MATCHES: dict[tuple[Path, str, str], tuple[float, tuple[Path, ...]]] = {}
_FIRMWARE_REASONS = ("under-voltage", "frequency capped", "throttled by firmware", "soft temperature limit")


def text(path: Path) -> str | None:
    """Content without surrounding space; None if it can't be read (drivers answer EIO, EAGAIN, ENODATA for an absent part)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # a third of what an object of the standard library costs
    except OSError:
        return None
    try:
        content = b""
        while chunk := os.read(descriptor, _CHUNK_BYTES):
            content += chunk
        return content.decode(errors="replace").strip("\0 \n\t")
    except OSError:
        return None
    finally:
        os.close(descriptor)


def matching(root: Path, folder: str, pattern: str) -> tuple[Path, ...]:
    """What of a folder below `root` matches, in the order of the numbers that end its names; looked for at most every ten seconds.

    Looking costs ten times as much as reading what was found, and what a board is made of rarely changes.
    """
    now, key = time.monotonic(), (root, folder, pattern)
    known = _MATCHES.get(key)
    if known is None or now >= known[0]:
        found = tuple(sorted((root / folder).glob(pattern), key=lambda path: (number_of(path.name), path.name)))
        _MATCHES[key] = known = now + _KNOWN_S, found
    return known[1]


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


def firmware_flags(bits: int) -> tuple[dict[str, bool], dict[str, bool]]:
    """A Raspberry Pi's `get_throttled`, by reason: what is so now (bits 0 to 3), and what has occurred before (bits 16 to 19)."""
    now, before = ({reason: bool(bits >> first + n & 1) for n, reason in enumerate(_FIRMWARE_REASONS)} for first in (0, 16))
    return now, before

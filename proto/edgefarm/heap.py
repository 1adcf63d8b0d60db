"""Keeping the supervisor small and quick: what glibc's allocator would do by default. With another C library this does nothing."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_LIBRARY = ctypes.CDLL(None)


def tune() -> None:
    """Call it before the first thread starts; again does no harm.

    Few heaps, since most threads here only wait. And chunks of a transfer stay on the heap: by default each would be mapped, zeroed and
    unmapped by the kernel, which costs more than moving its bytes.
    """
    mallopt = getattr(_LIBRARY, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)
        mallopt(_M_MMAP_THRESHOLD, 4 * 2**20)
        mallopt(_M_TRIM_THRESHOLD, 8 * 2**20)


def give_back() -> None:
    """Returns free memory to the system, after something that needed more than idling does."""
    trim = getattr(_LIBRARY, "malloc_trim", None)
    if trim is not None:
        trim(0)

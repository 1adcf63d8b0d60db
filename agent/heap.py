"""Keeping the supervisor small: what glibc's allocator would hold on to. With another C library both functions do nothing."""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8  # malloc.h
_LIBRARY = ctypes.CDLL(None)


def few_arenas() -> None:
    """Lets threads share heaps, since most threads here only wait. Call it before the first one starts."""
    mallopt = getattr(_LIBRARY, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)


def give_back() -> None:
    """Returns free memory to the system, after something that needed more than idling does."""
    trim = getattr(_LIBRARY, "malloc_trim", None)
    if trim is not None:
        trim(0)

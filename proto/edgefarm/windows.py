"""Parts of the day in which a device may measure, `22:00-05:00` by its own clock and time zone. Pure, but for `local_second`."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

DAY_S = 86_400
_TEXT = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")
_CLOCKS_ARE_SET_MS = 1_735_689_600_000  # 2025-01-01: an earlier time is that of a board that starts without a clock


@dataclass(frozen=True)
class Window:
    """From `begin_s` until before `end_s`, in seconds since local midnight; over midnight where the end is the smaller one."""

    begin_s: int
    end_s: int

    def holds(self, local_s: int) -> bool:
        """Whether a time of the day lies inside."""
        if self.begin_s < self.end_s:
            return self.begin_s <= local_s < self.end_s
        return local_s >= self.begin_s or local_s < self.end_s

    def opens_in_s(self, local_s: int) -> int:
        """Seconds until it opens; 0 while it is open. In a night in which the clocks change it is an hour off until they have."""
        return 0 if self.holds(local_s) else (self.begin_s - local_s) % DAY_S


def parse(text: str) -> Window:
    """Reads `HH:MM-HH:MM`; the end may be 24:00. Raises ValueError that says what is wrong."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise ValueError(f"'{text}' is no part of the day such as 22:00-05:00")
    begin_h, begin_m, end_h, end_m = map(int, found.groups())
    begin_s, end_s = begin_h * 3600 + begin_m * 60, end_h * 3600 + end_m * 60
    if end_s > DAY_S:
        raise ValueError(f"'{text}': a day ends at 24:00")
    if begin_s == end_s:
        raise ValueError(f"'{text}' is empty: it ends when it begins; for the whole day leave it out")
    return Window(begin_s, end_s)


def is_open(text: str, local_s: int | None) -> bool:
    """Whether a time of the day lies inside a window; one that is not known, or a window that can't be read, never does."""
    try:
        return local_s is not None and parse(text).holds(local_s)
    except ValueError:
        return False


def local_second(unix_ms: int) -> int | None:
    """The time of this machine's day in seconds since midnight; None at a time that no clock that was ever set can show.

    The time zone is looked at each time, so that summer time, and a device that was moved, need no restart.
    """
    if unix_ms < _CLOCKS_ARE_SET_MS:
        return None
    time.tzset()
    local = time.localtime(unix_ms / 1000)
    return local.tm_hour * 3600 + local.tm_min * 60 + min(local.tm_sec, 59)

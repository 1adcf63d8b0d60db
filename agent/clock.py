"""The device's wall clock, for a device that may have none: never behind the latest time that it has heard of."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edgefarm.digest import atomic_write

_LOG = logging.getLogger(__name__)


def _utc_ms() -> int:
    return time.time_ns() // 1_000_000


class Clock:
    """UTC milliseconds with a floor that is kept in a file. Safe from any thread.

    Args:
        path: of the floor.
        system: the machine's clock, UTC milliseconds.
        monotonic: seconds.
    """

    def __init__(self, path: Path, *, system: Callable[[], int] = _utc_ms, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path, self._system, self._monotonic = path, system, monotonic
        self._lock = threading.Lock()
        try:
            self._floor = int(path.read_text())
        except (OSError, ValueError):  # none yet, or damaged: the controller's next word makes another
            self._floor = 0
        self._since = monotonic()

    def unix_ms(self) -> int:
        """The time: the machine's, or the floor's plus what has passed since, if that is later."""
        with self._lock:
            return max(self._system(), self._floor + int((self._monotonic() - self._since) * 1000))

    def heard(self, unix_ms: int) -> None:
        """Notes a time from somebody who knows it; one that has passed already changes nothing."""
        if unix_ms > self.unix_ms():
            with self._lock:
                self._floor, self._since = unix_ms, self._monotonic()

    def keep(self) -> None:
        """Writes the time down, so that it is the floor of the next start."""
        try:
            atomic_write(self._path, b"%d\n" % self.unix_ms())
        except OSError as error:
            _LOG.warning("%s: %s: after a restart this device may not know how late it is", self._path, error.strerror)

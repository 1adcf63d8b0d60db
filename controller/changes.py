"""`Change`: the farm's one lock, and those who wait for something to change under it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgefarm.errors import StorageError


class Change(threading.Condition):
    """A lock (reentrant) to be held while anything of the farm is read or changed. Who waits in a thread, waits on it."""

    def __init__(self) -> None:
        super().__init__(threading.RLock())
        self._watchers: frozenset[Callable[[], None]] = frozenset()
        self._watching = threading.Lock()  # of `_watchers`; never held while waiting for anything else
        self._failed: StorageError | None = None

    @contextmanager
    def making(self) -> Iterator[None]:
        """Holds the lock, then wakes all who wait for a change."""
        with self:
            try:
                yield
            finally:
                self.tell()

    def tell(self) -> None:
        """Wakes all who wait for a change. Callers hold the lock."""
        self.notify_all()
        for wake in self._watchers:
            wake()

    @contextmanager
    def watched(self, wake: Callable[[], None]) -> Iterator[None]:
        """Calls `wake`, which must not block, at every change: for those that can't wait in a thread."""
        with self._watching:
            self._watchers |= {wake}
        try:
            yield
        finally:
            with self._watching:
                self._watchers -= {wake}

    def fail(self, error: StorageError) -> None:
        """Gives the next one who waits or looks this error. Callers hold the lock."""
        self._failed = error

    def until(self, reached: Callable[[], object], timeout_s: float) -> None:
        """Waits until `reached()` or the time is over. Callers hold the lock. Raises, once, what `fail` was told."""
        self.wait_for(lambda: self._failed or reached(), timeout_s)
        self.raise_failed()

    def raise_failed(self) -> None:
        """Raises, once, what `fail` was told. Callers hold the lock."""
        failed, self._failed = self._failed, None
        if failed is not None:
            raise failed

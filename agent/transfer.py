"""Moving bytes between the controller and the cache: resumed where they broke, verified, never while something is measured."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

from agent.cache import Cache
from agent.direct import DirectFile
from agent.metrics import Counters
from edgefarm import hostlock
from edgefarm.digest import DigestWriter
from edgefarm.errors import DigestMismatch, EdgefarmError, ProtocolError, Unreachable
from edgefarm.model import CHUNK_BYTES

_AHEAD = 2  # chunks received while one is hashed and written
_LARGE_BYTES = 8 * 2**20  # from here on a thread and buffers of its own are worth it
_POLL_S = 0.2
_PAUSE_S = 0.5
_END = object()


class Cancelled(Exception):
    """The transfer was given up because nobody wants its result any more."""


class TimedOut(EdgefarmError):
    """A transfer did not end within its limit."""

    code = "transfer-timeout"


class Incoming(Protocol):
    """A running fetch."""

    def __iter__(self) -> Iterator[tuple[bytes | memoryview, int]]:
        """(chunk, total); total is 0 except in the first one."""
        ...

    def cancel(self) -> None:
        """Ends it."""
        ...


class Remote(Protocol):
    """The controller's artifacts, as `agent.link.Artifacts` gives them."""

    def stat(self, digest: str, timeout_s: float) -> tuple[bool, int]:
        """(whole, bytes)."""
        ...

    def fetch(self, digest: str, offset: int, timeout_s: float) -> Incoming:
        """The bytes from `offset` on."""
        ...

    def push(self, digest: str, total: int, offset: int, chunks: Iterator[bytes], timeout_s: float) -> tuple[bool, int]:
        """Sends chunks that start at `offset`."""
        ...


class Transfers:
    """Fetches into, and pushes out of, the cache.

    Args:
        remote: the controller's side.
        cache: the device's side.
        attached: set while a session is there; a broken transfer waits for it.
        lock_path: the host's measure lock, which transfers share, so that none runs while something is measured.
    """

    def __init__(self, remote: Remote, cache: Cache, attached: threading.Event, counters: Counters, lock_path: Path | None = None) -> None:
        self._remote, self._cache, self.attached = remote, cache, attached
        self._counters, self._lock_path = counters, lock_path

    def fetch(self, digest: str, size: int | None, limit_s: float, cancelled: Callable[[], bool]) -> Path:
        """The verified local file with these bytes.

        Raises:
            TimedOut: `limit_s` passed (waiting for others' measurements does not count).
            Cancelled: `cancelled()` became true.
            NotFound, Denied, QuotaExceeded, DigestMismatch: the controller's or the cache's refusal.
            OSError: the disk is full or fails.
        """
        if (path := self._cache.find(digest, size)) is not None:
            return path
        clock = _Clock(limit_s, f"transfer of {digest[:19]}…")
        mismatches = 0
        while True:
            with hostlock.hold(exclusive=False, path=self._lock_path, cancelled=cancelled) as held:
                if not held:
                    raise Cancelled
                try:
                    with clock, self._cache.writer(digest) as writer:
                        # Another thread may have fetched it while this one waited for the writer's place.
                        return self._cache.find(digest, size) or self._receive(writer, clock, cancelled)
                except Unreachable:
                    pass
                except DigestMismatch:
                    mismatches += 1
                    if mismatches > 1:
                        raise
            self._wait_attached(clock, cancelled)

    def push(self, digest: str, limit_s: float, cancelled: Callable[[], bool]) -> None:
        """Sends bytes that the cache holds, unless the controller has them.

        Raises:
            TimedOut, Cancelled, NotFound, Denied, QuotaExceeded: as `fetch`.
            Unreachable: the session is gone; the caller tries again after the next attach.
        """
        path = self._cache.find(digest)
        if path is None:
            raise DigestMismatch(f"{digest} was damaged on this device before it could be sent")
        clock = _Clock(limit_s, f"transfer of {digest[:19]}…")
        total = path.stat().st_size
        with hostlock.hold(exclusive=False, path=self._lock_path, cancelled=cancelled) as held:
            if not held:
                raise Cancelled
            with clock:
                complete, offset = self._remote.stat(digest, clock.left())
                for _ in range(2):  # once more from where the controller says it is, if it disagrees
                    if complete:
                        return
                    start = min(offset, total)
                    try:
                        complete, offset = self._remote.push(digest, total, start, self._outgoing(path, start, cancelled), clock.left())
                    except DigestMismatch:
                        if self._cache.verify(digest) is None:
                            raise
                        offset = 0  # what had arrived before was damaged there, and is dropped
                    if cancelled():
                        raise Cancelled
                if not complete:
                    raise Unreachable(f"{digest}: the controller has {offset} of {total} bytes")

    def _receive(self, writer: DigestWriter, clock: _Clock, cancelled: Callable[[], bool]) -> Path:
        incoming = self._remote.fetch(writer.digest, writer.offset, clock.left())
        chunks = _Ahead(incoming)
        try:
            expected = None
            for data, total in chunks.iterate(cancelled):
                if expected is None:
                    expected = self._begin(writer, total)
                if writer.offset + len(data) > expected:
                    writer.restart()
                    raise ProtocolError(f"{writer.digest}: more than the {expected} bytes that were announced")
                writer.write(data)
                self._counters.add_transfer("fetch", len(data))
            if expected is not None and writer.offset < expected:
                raise Unreachable(f"{writer.digest}: the stream ended at {writer.offset} of {expected} bytes")
            return self._cache.commit(writer)
        finally:
            incoming.cancel()
            chunks.drain()

    def _begin(self, writer: DigestWriter, total: int) -> int:
        """Makes room for what the first chunk announced."""
        if writer.offset > total:
            writer.restart()
            raise Unreachable("a longer partial file than the artifact: begun anew")
        self._cache.reserve(writer.digest, total)
        if total - writer.offset >= _LARGE_BYTES:
            writer.through(DirectFile)
        return total

    def _outgoing(self, path: Path, start: int, cancelled: Callable[[], bool]) -> Iterator[bytes]:
        # Runs in a thread of the transport, which may outlive the call: it has a descriptor of its own and raises nothing.
        with path.open("rb", buffering=0) as stream:
            stream.seek(start)
            while not cancelled() and (data := stream.read(CHUNK_BYTES)):
                self._counters.add_transfer("push", len(data))
                yield data

    def _wait_attached(self, clock: _Clock, cancelled: Callable[[], bool]) -> None:
        with clock:
            time.sleep(min(_PAUSE_S, clock.left()))  # the session may still be there: don't spin on a failing call
            while not self.attached.wait(min(_POLL_S, clock.left())):
                if cancelled():
                    raise Cancelled


class _Clock:
    """Counts only the time inside its `with` blocks against a limit."""

    def __init__(self, limit_s: float, what: str) -> None:
        self._limit_s, self._what = limit_s, what
        self._spent = 0.0
        self._since: float | None = None

    def __enter__(self) -> _Clock:
        self._since = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self._since is not None:
            self._spent += time.monotonic() - self._since
        self._since = None

    def left(self) -> float:
        """Seconds left. Raises TimedOut if there are none."""
        running = 0.0 if self._since is None else time.monotonic() - self._since
        left = self._limit_s - self._spent - running
        if left <= 0:
            raise TimedOut(f"{self._what} took longer than {self._limit_s:g} s")
        return left


class _Ahead:
    """Receives in a thread of its own while the caller hashes and writes, a bounded number of chunks ahead."""

    def __init__(self, incoming: Iterable[tuple[bytes | memoryview, int]]) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(_AHEAD)
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(incoming,), name="fetch", daemon=True)
        self._thread.start()

    def _read(self, incoming: Iterable[tuple[bytes | memoryview, int]]) -> None:
        end: Any = _END
        try:
            for chunk in incoming:
                self._put(chunk)
                if self._given_up.is_set():
                    return
        except EdgefarmError as error:
            end = error
        except Exception as error:  # a channel that was closed under it; whatever it is, the other thread must not wait for ever
            end = Unreachable(str(error))
        self._put(end)

    def _put(self, item: Any) -> None:
        while not self._given_up.is_set():
            try:
                return self._queue.put(item, timeout=_POLL_S)
            except queue.Full:
                continue

    def iterate(self, cancelled: Callable[[], bool]) -> Iterator[tuple[bytes | memoryview, int]]:
        """What arrives, in order. Raises the receiver's error, or Cancelled."""
        while True:
            item = None
            with contextlib.suppress(queue.Empty):
                item = self._queue.get(timeout=_POLL_S)
            if cancelled():
                raise Cancelled
            if item is _END:
                return
            if isinstance(item, EdgefarmError):
                raise item
            if item is not None:
                yield item

    def drain(self) -> None:
        """Lets the thread end."""
        self._given_up.set()
        self._thread.join()

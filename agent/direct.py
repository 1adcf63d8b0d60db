"""Writing a large file past the page cache, from a thread of its own.

A plain write copies every byte into the page cache, which the kernel writes out later: on a small board that takes a core from the
transfer and evicts the model that is serving. `O_DIRECT` hands whole blocks to the disk. It wants addresses, offsets and lengths in whole
blocks (open(2)); the end of the file, and file systems that refuse it (tmpfs before Linux 6.6, some FUSE), are written plainly.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import queue
import threading
from pathlib import Path

_BLOCK = 4096  # no smaller than the logical block of any disk in use
_BUFFER = 2**20
_BUFFERS = 3  # one being filled, one being written, one waiting
_DIRECT = getattr(os, "O_DIRECT", 0)


class DirectFile:
    """Appends to `path` from `offset` on, where the file ends. Not safe for two threads.

    What `write` took is in the file after `sync` or `close`; a process killed before loses at most what the buffers hold.
    """

    def __init__(self, path: Path, offset: int) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._aim(offset)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._free: queue.SimpleQueue[mmap.mmap] = queue.SimpleQueue()
        for _ in range(_BUFFERS - 1):
            self._free.put(mmap.mmap(-1, _BUFFER))
        self._full: queue.SimpleQueue[mmap.mmap | None] = queue.SimpleQueue()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="disk", daemon=True)
        self._thread.start()

    def _aim(self, offset: int) -> None:
        """Goes to the last whole block before `offset`; the rest of the file is written again with what follows."""
        self._at = offset - offset % _BLOCK
        self._buffer = mmap.mmap(-1, _BUFFER)  # anonymous maps begin on a page
        self._filled = os.preadv(self._descriptor, [memoryview(self._buffer)[: offset % _BLOCK]], self._at) if offset % _BLOCK else 0
        self._set_direct(True)

    def write(self, chunk: memoryview) -> None:
        """Takes a copy of `chunk`. Raises the OSError of this or an earlier write."""
        while chunk:
            count = min(_BUFFER - self._filled, len(chunk))
            self._buffer[self._filled : self._filled + count] = chunk[:count]
            self._filled += count
            chunk = chunk[count:]
            if self._filled == _BUFFER:
                self._full.put(self._buffer)
                self._buffer, self._filled = self._free.get(), 0
            if self._error is not None:
                raise self._error

    def sync(self) -> None:
        """Writes what is left, and waits until the disk has all of it. Nothing can be written afterwards."""
        self._end()
        if self._error is not None:
            raise self._error
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Writes what is left, without waiting for the disk; what can't be written is lost, to be fetched again."""
        self._end()
        os.close(self._descriptor)

    def _end(self) -> None:
        if not self._thread.is_alive():
            return
        self._full.put(None)
        self._thread.join()
        self._set_direct(False)
        if self._error is None and self._filled:
            try:
                self._write_all(memoryview(self._buffer)[: self._filled])
            except OSError as error:
                self._error = error

    def _run(self) -> None:
        while (buffer := self._full.get()) is not None:
            if self._error is None:
                try:
                    self._write_all(memoryview(buffer))
                except OSError as error:
                    self._error = error
            self._free.put(buffer)

    def _write_all(self, view: memoryview) -> None:
        while view:
            try:
                count = os.pwrite(self._descriptor, view, self._at)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._set_direct(False):
                    raise
                continue
            self._at += count
            view = view[count:]

    def _set_direct(self, wanted: bool) -> bool:
        """Returns whether that changed anything."""
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        if bool(flags & _DIRECT) is wanted:
            return False
        with contextlib.suppress(OSError):  # refused: written plainly
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags ^ _DIRECT)
            return True
        return False

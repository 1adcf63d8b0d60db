"""Writing to the disk while more arrives, so that the sync at the end finds little left to do."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_STEP_BYTES = 8 * 2**20
_WRITE = 2  # SYNC_FILE_RANGE_WRITE: start, and do not wait
_START = getattr(ctypes.CDLL(None, use_errno=True), "sync_file_range", None)
if _START is not None:
    _START.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


class Writeback:
    """Starts writing a growing file, some MiB at a time. Only a hint: errors are those of the final sync. Use it as a context manager."""

    def __init__(self, path: Path, offset: int) -> None:
        self._path, self._done = path, offset
        self._descriptor = -1

    def __enter__(self) -> Writeback:
        self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def reached(self, offset: int) -> None:
        """The file holds `offset` bytes now."""
        if _START is not None and offset - self._done >= _STEP_BYTES:
            _START(self._descriptor, self._done, offset - self._done, _WRITE)
            self._done = offset

"""The measure lock of a host: nothing else of ours runs while one of its devices measures.

Measuring takes the lock alone; optimisation passes share it with each other. It is a `flock`, so a killed process gives it back.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_POLL_S = 0.01


_SHARED = Path("/run/lock")
_NAME = "edgefarm-measure.lock"


def default_path() -> Path:
    """One file per machine.

    A file that is there already, made at boot or at installation, is taken whoever owns it: on some systems only root may make files in
    /run/lock, and a service's temporary folder is its own. Else one is made, in a folder that every user may write to.
    """
    shared = _SHARED / _NAME
    usable = os.access(shared, os.R_OK) or os.access(_SHARED, os.W_OK)
    return shared if usable else Path(tempfile.gettempdir()) / _NAME


@contextlib.contextmanager
def hold(*, exclusive: bool, path: Path | None = None, cancelled: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Waits for the lock and holds it inside the block; yields False, without the lock, once `cancelled()` is true."""
    descriptor = _open(path or default_path())
    try:
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        yield _wait(descriptor, kind, cancelled)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)  # enough to lock it
    except FileNotFoundError:
        # Only here: in a folder that all may write to, the kernel lets nobody create over another user's file (fs.protected_regular).
        descriptor = os.open(path, flags | os.O_CREAT, 0o666)
    with contextlib.suppress(OSError):  # another user's file: its mode is already right
        os.fchmod(descriptor, 0o666)
    return descriptor


def _wait(descriptor: int, kind: int, cancelled: Callable[[], bool]) -> bool:
    while not cancelled():
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                raise
            time.sleep(_POLL_S)
        else:
            return True
    return False

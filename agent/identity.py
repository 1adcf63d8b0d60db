"""Who this agent is: an id that outlives its process, an instance that does not, and the lock on its state folder."""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from pathlib import Path

from edgefarm.digest import atomic_write
from edgefarm.errors import Busy, StorageError, UserError

_LOCK_WAIT_S = 5.0
_POLL_S = 0.02


def device_id(state: Path) -> str:
    """The device's stable id, made at the first call and kept in `state`.

    Raises:
        StorageError: the folder can't be written to.
        UserError: the id file was damaged by somebody; a new id would make it a new device, so that is the user's choice.
    """
    path = state / "device.json"
    try:
        return str(uuid.UUID(json.loads(path.read_text())["id"]))
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a device identity; remove the file to register as a new device") from error
    fresh = str(uuid.uuid4())
    try:
        atomic_write(path, json.dumps({"id": fresh}).encode())
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}: the agent needs a writable state folder") from error
    return fresh


def new_instance() -> str:
    """An id of this process, so that the controller can tell a reconnect from a restart."""
    return uuid.uuid4().hex


def open_state(state: Path) -> Path:
    """Makes the state folder. Raises StorageError if that is impossible."""
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{state}: {error.strerror}: the agent needs a writable state folder") from error
    return state.resolve()


def become_owner(state: Path) -> None:
    """Lets root act as the owner of a state folder: files that root leaves there the agent could not read any more.

    Does nothing for other users, and where there is no such folder. For the rest of this process.
    """
    try:
        owner = state.stat()
    except OSError:
        return
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)


class FolderLock:
    """A `flock` that one process holds; the kernel gives it back when the process dies, however it does.

    A second holder waits a little: after a kill, the one before may still be on its way out.
    """

    def __init__(self, path: Path, what: str, wait_s: float = _LOCK_WAIT_S) -> None:
        self._path, self._what, self._wait_s = path, what, wait_s
        self._descriptor = -1

    def __enter__(self) -> FolderLock:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror}") from error
        deadline = time.monotonic() + self._wait_s
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return self
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(self._descriptor)
                    raise Busy(f"{self._path.parent}: {self._what}") from None
                time.sleep(_POLL_S)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

"""Hosted mode: the command itself holds the farm and starts an agent process for each of its local devices.

    <state>/driver.lock           held by the one command that drives this state
    <state>/store.db, artifacts/  the farm
    <state>/devices/<name>/       the agent's own state, and agent.log

An agent holds the read end of a pipe whose write end only this process has: it stops when this process ends, however that happens.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from controller.artifacts import ArtifactStore
from controller.control import Control
from controller.farm import Farm
from controller.local_agents import LocalAgents, LocalDevice
from controller.server import RuntimeFolder, Server
from controller.store import SqlStore
from edgefarm.errors import Busy, DeviceLost, StorageError, UserError

__all__ = ["Hosted", "LocalDevice", "driver_lock", "driver_of"]

START_TIMEOUT_S = 120.0
_LOOK_S, _PAUSE_S = 0.2, 0.01
_LOCK, _STORE, _ARTIFACTS, _SOCKET_PLACE = "driver.lock", "store.db", "artifacts", "runtime-folder"


class Hosted:
    """A farm with its local devices, inside a `with` block; `control` is what a driver needs.

    Args:
        state: the folder of this campaign's state; made if absent.
        devices: what to start; none: the farm only (to look at its state).
        command: starts an agent; default: the agent installed beside this interpreter.

    Raises on entry:
        Busy: another command drives this state.
        StorageError: the state can't be written.
        UserError: no device gets ready, because an agent refuses what it was told (an unknown runtime, a port in use).
        DeviceLost: no device gets ready; with the ends of their logs.

    Where some do, the others are `lost` in `control.devices()`, with the reason and the end of their log.
    """

    def __init__(
        self, state: Path, devices: Sequence[LocalDevice], *, start_timeout_s: float = START_TIMEOUT_S, command: Sequence[str] = ()
    ) -> None:
        self._state, self._devices, self._command = state.absolute(), tuple(devices), tuple(command)
        self._start_timeout_s = start_timeout_s
        self._held = contextlib.ExitStack()
        self._farm: Farm | None = None

    @property
    def control(self) -> Control:
        """The farm, as a driver sees it."""
        return self.farm

    @property
    def farm(self) -> Farm:
        """The farm."""
        if self._farm is None:
            raise RuntimeError("hosted mode is only there inside its `with` block")
        return self._farm

    def __enter__(self) -> Hosted:
        with contextlib.ExitStack() as held:
            held.enter_context(driver_lock(self._state))
            store = SqlStore(self._state / _STORE)
            held.callback(store.close)
            farm = Farm(store, ArtifactStore(self._state / _ARTIFACTS))
            if self._devices:
                self._start_devices(farm, held)
            self._farm, self._held = farm, held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._farm = None
        self._held.close()

    def _start_devices(self, farm: Farm, held: contextlib.ExitStack) -> None:
        folder = RuntimeFolder()
        held.callback(folder.close)
        _replace_runtime_folder(self._state, folder.path)
        server = Server(farm, folder.address)
        held.callback(server.stop)
        agents = LocalAgents(farm, server.start(), self._state / "devices", self._devices, self._command)
        held.callback(agents.stop)
        agents.start()
        names = {d.name for d in self._devices}
        missing = farm.wait_for_devices(names, self._start_timeout_s)
        for name in missing:
            if name not in agents.given_up():
                agents.give_up(name, f"it did not get ready within {self._start_timeout_s:g} s")
        if len(missing) == len(names):
            reasons = "\n".join(f"device {name!r}: {reason}" for name, reason in agents.given_up().items())
            raise (UserError if agents.refused() else DeviceLost)(reasons)


@contextlib.contextmanager
def driver_lock(state: Path) -> Iterator[None]:
    """Holds a state folder for this process; the kernel gives it back when the process ends. Raises Busy, StorageError."""
    path = state / _LOCK
    try:
        state.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}: make it writable, or choose another place with --state") from error
    try:
        _lock(descriptor, state)
        yield
    finally:
        os.close(descriptor)


def driver_of(state: Path) -> str:
    """The process that drives a state folder (`unknown` where that can't be told), empty if none does. Raises StorageError."""
    path = state / _LOCK
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}: make it readable, or choose another place with --state") from error
    try:
        return "" if _taken(descriptor, fcntl.LOCK_SH) else _holder(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, state: Path) -> None:
    try:
        deadline = time.monotonic() + _LOOK_S
        while not _taken(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > deadline:  # not one who only looks
                raise Busy(f"{state}: driven by another command already (process {_holder(descriptor)}): wait for it, or stop it")
            time.sleep(_PAUSE_S)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        raise StorageError(f"{state / _LOCK}: {error.strerror}: free some space, or choose another place with --state") from error


def _taken(descriptor: int, mode: int) -> bool:
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"


def _replace_runtime_folder(state: Path, folder: Path) -> None:
    """Notes where the socket is; removes the folder that a killed command left behind."""
    note = state / _SOCKET_PLACE
    with contextlib.suppress(OSError):
        old = Path(note.read_text().strip())
        if old != folder and old.name.startswith(folder.name[: len("edgefarm-")]) and old.stat().st_uid == os.getuid():
            shutil.rmtree(old, ignore_errors=True)
    try:
        note.write_text(f"{folder}\n")
    except OSError as error:
        raise StorageError(f"{note}: {error.strerror}: make it writable, or choose another place with --state") from error

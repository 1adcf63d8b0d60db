"""Starts passes by forking a process that has their libraries loaded (`optimizer.fork_server`): an import costs as much as a small pass."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

from optimizer.process import LOG, Child, environment, spawn

_NUMBER_BYTES = 32
_END_S = 10.0


class Forks:
    """A fork server for as long as the context lasts; it is started when the first pass is.

    Args:
        folder: where it runs and writes its log.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._starting = threading.Lock()
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._server is None or self._control is None:
            return
        self._control.close()
        try:
            self._server.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()

    def start(self, work: Path) -> Child:
        """Starts the pass of the folder `work`: forked, or spawned where no server runs."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, (work / LOG).open("wb") as log:
            try:
                socket.send_fds(self._asked(), [os.fsencode(work)], [theirs.fileno(), log.fileno()])
            except OSError:
                ours.close()
                return spawn(work)
        return _Forked(ours, work)

    def _asked(self) -> socket.socket:
        with self._starting:
            if self._control is None:
                self._control, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                with its, (self._folder / "fork_server.log").open("wb") as log:
                    self._server = subprocess.Popen(
                        [sys.executable, "-m", "optimizer.fork_server", str(its.fileno())],
                        cwd=self._folder,
                        env=environment(),
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        pass_fds=(its.fileno(),),
                        start_new_session=True,
                    )
            return self._control


class _Forked:
    """A pass that the server was asked for; it is the server's child, so the server tells its exit code."""

    def __init__(self, connection: socket.socket, work: Path) -> None:
        self._connection, self._work = connection, work
        self._pid: int | None = None
        self._code: int | None = None
        self._spawned: Child | None = None

    def wait(self, timeout: float) -> int | None:
        if self._spawned is not None:
            return self._spawned.wait(timeout)
        said = self._hear(timeout)
        if said == b"" and self._pid is None:  # it ended, or may not fork
            self._spawned = spawn(self._work)
        elif said is not None:
            self._note(said)
        return self._code

    def end(self) -> int:
        if self._spawned is not None:
            code = self._spawned.end()
        else:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_WR)
            while self._code is None:
                self._note(self._hear(_END_S) or b"")
            code = self._code
        self._connection.close()
        return code

    def _hear(self, timeout: float) -> bytes | None:
        """What the server says: a number, nothing (b"") if it is gone; None if it is silent."""
        self._connection.settimeout(timeout)
        try:
            return self._connection.recv(_NUMBER_BYTES)
        except TimeoutError:
            return None
        except ConnectionError:
            return b""

    def _note(self, said: bytes) -> None:
        if not said:  # the server was killed; what it forked may be left
            if self._pid is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._pid, signal.SIGKILL)
            self._code = -signal.SIGKILL
        elif self._pid is None:
            self._pid = int(said)
        else:
            self._code = int(said)

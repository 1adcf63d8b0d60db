"""Forks once per pass, its libraries loaded: `python -m optimizer.fork_server DESCRIPTOR`, started by `optimizer.forked`.

Over the socket DESCRIPTOR come folders of passes, each with two descriptors: a connection and a log. The connection hears the pass's
process id, then its exit code; when its other end is closed the pass is ended. The server ends, and all passes with it, when the
other end of DESCRIPTOR is closed. It opens no session and starts no thread: a fork has one thread only, and finds the locks of the
others as they were.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import sys
from pathlib import Path

from optimizer import pass_process
from optimizer.process import REQUEST

_PATH_BYTES = 4096


class ForkServer:
    """The passes that run. `control`: where new ones come from."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._running: dict[int, socket.socket] = {}
        self._stopped: set[int] = set()
        self._waking, self._woken = socket.socketpair()

    def serve(self) -> bool:
        """Serves until nobody is there to ask. Returns twice as a fork does: True in the process of each pass, False in the server's."""
        self._waking.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # without a handler there is no waking
        signal.set_wakeup_fd(self._waking.fileno())
        while True:
            watched = {connection: pid for pid, connection in self._running.items() if pid not in self._stopped}
            ready, _, _ = select.select([self._control, self._woken, *watched], [], [])
            for connection in ready:
                if connection in watched:
                    self._stop(watched[connection])
            if self._woken in ready:
                self._woken.recv(_PATH_BYTES)
                self._reap()
            if self._control in ready:
                folder, descriptors, _, _ = socket.recv_fds(self._control, _PATH_BYTES, 2)
                if not folder:
                    for pid in self._running:
                        self._stop(pid)
                    return False
                if self._fork(os.fsdecode(folder), *descriptors):
                    return True

    def _fork(self, folder: str, channel: int, log: int) -> bool:
        """True in the process of the pass. With several threads nothing is forked; whoever asked sees his connection closed."""
        connection = socket.socket(fileno=channel)
        gone = bool(select.select([connection], [], [], 0)[0])
        pid = None if gone or _threads() > 1 else os.fork()
        if pid == 0:
            self._become_pass(folder, connection, log)
            return True
        os.close(log)
        if pid is None:
            connection.close()
            return False
        self._running[pid] = connection
        _tell(connection, pid)
        return False

    def _become_pass(self, folder: str, connection: socket.socket, log: int) -> None:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(connection.fileno(), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        for other in (connection, self._control, self._waking, self._woken, *self._running.values()):
            other.close()
        os.chdir(folder)

    def _stop(self, pid: int) -> None:
        """Ends a pass with what it has started; it may not lead its own session yet."""
        self._stopped.add(pid)
        os.kill(pid, signal.SIGKILL)
        _kill_group(pid)

    def _reap(self) -> None:
        for pid, connection in list(self._running.items()):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            _kill_group(pid)  # before it is reaped: until then the number is its own
            _, status = os.waitpid(pid, 0)
            _tell(connection, os.waitstatus_to_exitcode(status))
            connection.close()
            del self._running[pid]
            self._stopped.discard(pid)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _tell(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        connection.send(str(number).encode())


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def _load_libraries() -> None:
    """What most passes need, and no more than is safe to fork: these start no thread before a session is opened."""
    with contextlib.suppress(ImportError):
        import onnxruntime.quantization  # noqa: F401


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    _load_libraries()
    if ForkServer(socket.socket(fileno=int(sys.argv[1]))).serve():
        pass_process.main(REQUEST)

"""What systemd does for `edge-runner.socket`: a socket, and for every connection a process of its own with it as descriptor 3.

It neither changes the user nor confines anything: what the units do is tested with the real one (tests/e2e/test_units.py).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path


class FakeServiceManager:
    """Use it as a context manager; `command` is what a connection gets instead of the warden."""

    def __init__(self, folder: Path, command: tuple[str, ...] = ("-m", "agent.runner.warden")) -> None:
        self.path = folder / "runner.sock"
        self.units: list[subprocess.Popen[bytes]] = []
        self._folder, self._command = folder, command
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> FakeServiceManager:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for unit in self.units:
            unit.kill()
            unit.wait()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.units.append(self._start(connection.fileno()))

    def _start(self, connection: int) -> subprocess.Popen[bytes]:
        """With the connection as descriptor 3, which `pass_fds` alone cannot choose: a shell moves it there."""
        own = self._folder / f"unit-{len(self.units)}"
        own.mkdir()
        moved = ["/bin/sh", "-c", 'exec 3<&0 0</dev/null "$@"', "sh", sys.executable, *self._command]
        return subprocess.Popen(moved, stdin=connection, cwd=own, env={**os.environ, "PYTHONSAFEPATH": "1"})

"""Real servers for tests, on a private socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from controller.connection import Connection
from controller.farm import Farm
from controller.server import RuntimeFolder, Server


@contextmanager
def served(farm: Farm, patience_s: float = 20.0) -> Iterator[Connection]:
    """A connection to `farm`, served as a hosted controller serves it."""
    folder = RuntimeFolder()
    server = Server(farm, folder.address)
    connection = Connection(server.start(), patience_s=patience_s)
    try:
        yield connection
    finally:
        connection.close()
        server.stop()
        folder.close()


class FakeLink:
    """A private socket that leads to another one, and breaks when told."""

    def __init__(self, folder: Path, target: str) -> None:
        self.path, self._target = folder / "link.sock", target.removeprefix("unix:")
        self.address = f"unix:{self.path}"
        self.carried = 0  # bytes, both ways
        self.break_after: list[int] = []  # bytes of one connection, after which it breaks, once each
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._break(self._open)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            try:
                far.connect(self._target)
            except OSError:
                near.close()
                far.close()
                continue
            self._open += [near, far]
            limit = self.break_after.pop(0) if self.break_after else None
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(*pair, limit), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, limit: int | None) -> None:
        passed = 0
        try:
            while (data := source.recv(65536)) and (limit is None or passed < limit):
                sink.sendall(data)
                passed += len(data)
                self.carried += len(data)
        except OSError:
            pass
        self._break([source, sink])

    def _break(self, sockets: list[socket.socket]) -> None:
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

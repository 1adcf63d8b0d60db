"""A TCP line to a port, that holds what it carries at a moment that the test chooses."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

_BLOCK = 16 * 1024


class Hold:
    """One connection that is to stop.

    Args:
        when: asked for each block before it passes on: whether it goes up (to the target), and how many bytes of its connection went that
            way, it included, since the hold was set.

    Attributes:
        reached: set once it has stopped.
    """

    def __init__(self, when: Callable[[bool, int], bool]) -> None:
        self.when, self.reached, self.over = when, threading.Event(), threading.Event()


class FakeLine:
    """Leads from `address` to `target`, which may be set later, and may go and come back. Use it as a context manager."""

    def __init__(self) -> None:
        self.target = ""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._hold: Hold | None = None
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> FakeLine:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        _break(self._listener)
        self._listener.close()
        self._threads.pop(0).join(20)
        _break(*self._open)
        for thread in self._threads:
            thread.join(20)
        for one in self._open:
            one.close()

    def hold(self, when: Callable[[bool, int], bool]) -> Hold:
        """Stops the first connection for which `when` says so, until `cut`; all others go on."""
        self._hold = Hold(when)
        return self._hold

    def cut(self) -> None:
        """Breaks the connection that was held, and loses what it carried; nothing is held from now on."""
        held, self._hold = self._hold, None
        if held is not None:
            held.over.set()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            host, _, port = self.target.rpartition(":")
            try:
                far = socket.create_connection((host, int(port)))
            except (OSError, ValueError):
                near.close()
                continue
            self._open += [near, far]
            for source, sink, up in ((near, far, True), (far, near, False)):
                carrying = threading.Thread(target=self._carry, args=(source, sink, up), daemon=True)
                self._threads.append(carrying)
                carrying.start()

    def _carry(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        passed, known = 0, None
        with suppress(OSError):
            while block := source.recv(_BLOCK):
                if (hold := self._hold) is not known:
                    passed, known = 0, hold
                passed += len(block)
                if hold is not None and not hold.reached.is_set() and hold.when(up, passed):
                    hold.reached.set()
                    hold.over.wait()
                    break
                sink.sendall(block)
        _break(source, sink)


def _break(*sockets: socket.socket) -> None:
    for one in sockets:
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)

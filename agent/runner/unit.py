"""A runner in a systemd unit of its own: another user, no network, limits that the kernel keeps. The supervisor's side.

The agent connects to the socket of `edge-runner.socket`; systemd starts `agent.runner.warden` for the connection. What is asked of the
runner, and how it is timed, is the same as for a child of the agent; only its files are handed over, see `agent.runner.handed`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from agent.runner import handed
from agent.runner.frames import encode
from agent.runner.limits import ProcessLimits
from edgefarm.errors import ProtocolError, Unreachable

_START_S = 30.0
_END_S = 10.0
_LINE_BYTES = 1 << 16


class Unit:
    """One running unit.

    Args:
        path: where systemd listens.
        limits: what the runner limits itself to, within the unit's own limits.
        environment: its variables, on top of those of the unit.

    Attributes:
        pid: of the runner.
        channel: for requests and answers.
        output: what it prints.
        isolation: what surrounds it, seen from within.
        oom_killed: whether the kernel killed for want of memory in the unit; known when it has ended.

    Raises:
        Unreachable: nobody listens there, or no runner came.
    """

    def __init__(self, path: Path, limits: ProcessLimits, environment: Mapping[str, str]) -> None:
        self._place = f"runner socket {path}"
        self._connection = self._connect(path)
        self._heard = b""
        self._ended: dict[str, Any] | None = None
        self._handed: set[str] = set()
        self.channel, theirs = socket.socketpair()
        reader, writer = os.pipe()
        self.output: BinaryIO = os.fdopen(reader, "rb", buffering=0)
        settings = json.dumps({"limits": asdict(limits), "environment": dict(environment)}).encode()
        try:
            self.pid, self._folder, self.isolation = self._begin(settings, theirs.fileno(), writer)
        except BaseException:
            for opened in (self._connection, self.channel, self.output):
                opened.close()
            raise
        finally:
            theirs.close()
            os.close(writer)

    @property
    def oom_killed(self) -> bool:
        """See the class."""
        return bool(self._ended and self._ended["oom"])

    def hand_over(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Sends the files of a request; returns it with the paths at which the runner finds them. Raises OSError for one of ours."""
        moved = handed.within(self._folder, request)
        files = [(there, here, "r") for there, here in moved.read.items() if there not in self._handed]
        files += [(there, here, "w") for there, here in moved.written.items()]
        for start in range(0, len(files), handed.MOST):
            self._send_files(files[start : start + handed.MOST])
        return moved.header

    def shown(self, text: str) -> str:
        """A text of the runner's with this device's paths instead of those that it was given."""
        return text.replace(f"{self._folder}/", "/")

    def has_ended(self) -> bool:
        """Whether the runner is gone."""
        if self._ended is None:
            with contextlib.suppress(OSError):
                self._ended = self._line(0.0)
        return self._ended is not None

    def end(self) -> int:
        """Ends the runner and its unit; returns its exit status, negative for a signal."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)
            self._ended = self._ended or self._line(_END_S)
        self._connection.close()
        return int(self._ended["status"]) if self._ended else -signal.SIGKILL

    def _begin(self, settings: bytes, channel: int, output: int) -> tuple[int, str, dict[str, str]]:
        try:
            socket.send_fds(self._connection, [settings], [channel, output])
            began = self._line(_START_S)
        except OSError as error:
            raise self._failed(error.strerror or str(error)) from error
        if began is None or "pid" not in began:
            raise self._failed(f"no runner started within {_START_S:g} s" if began is None else "its unit ended at once")
        return int(began["pid"]), str(began["folder"]), dict(began["isolation"])

    def _connect(self, path: Path) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.connect(str(path))
        except OSError as error:
            connection.close()
            if isinstance(error, PermissionError):
                raise Unreachable(f"{self._place}: only root and the agent's user may start runners there") from error
            raise self._failed(error.strerror or str(error)) from error
        return connection

    def _failed(self, why: str) -> Unreachable:
        return Unreachable(f"{self._place}: {why}; see `systemctl status edge-runner.socket` and `journalctl -u 'edge-runner@*'`")

    def _send_files(self, files: list[tuple[str, Path, str]]) -> None:
        with contextlib.ExitStack() as opened:
            descriptors = []
            for _, here, how in files:
                descriptors.append(handed.open_for_runner(here, write=how == "w"))
                opened.callback(os.close, descriptors[-1])
            frame = encode({"files": [(there, how) for there, _, how in files]})
            # Small, and the runner is waiting for it: one that does not read loses it, and its request ends by its time-out. One that is
            # dead is found when its answer is awaited, with its reason.
            with contextlib.suppress(OSError):
                socket.send_fds(self.channel, [frame], descriptors, socket.MSG_DONTWAIT)
        self._handed |= {there for there, _, how in files if how == "r"}

    def _line(self, timeout_s: float) -> dict[str, Any] | None:
        """The next line of the warden; None if none came in time. Raises OSError, ProtocolError."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        while b"\n" not in self._heard:
            if not poll.poll(timeout_s * 1e3):
                return None
            chunk = self._connection.recv(_LINE_BYTES)
            if not chunk or len(self._heard) > _LINE_BYTES:
                return {"status": -signal.SIGKILL, "oom": False}  # the warden is gone, and with it the unit
            self._heard += chunk
        line, _, self._heard = self._heard.partition(b"\n")
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise ProtocolError(f"{self._place}: not a runner's warden: {error}") from error


def isolation(path: Path) -> dict[str, str]:
    """What surrounds a runner that systemd starts for `path`, in words, seen from within. Raises Unreachable."""
    unit = Unit(path, ProcessLimits(0), {})
    unit.end()
    unit.channel.close()
    unit.output.close()
    return unit.isolation

"""Agent processes of hosted mode: started with a secret, started again when they die, stopped at the end."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from controller.farm import Farm
from edgefarm.errors import StorageError, UserError

_LOG = logging.getLogger(__name__)
_MOST_STARTS, _WITHIN_S = 5, 60.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_STOP_S = 5.0
_LOG_BYTES = 4 * 2**20
_TAIL_LINES, _TAIL_BYTES = 8, 4096
_USER_ERROR = UserError.exit_code


@dataclass(frozen=True)
class LocalDevice:
    """A device that the command starts itself.

    Attributes:
        runtimes: those that the agent may use; empty: all that are installed.
        threads: the most that a trial may use; 0: the agent's default.
        metrics: HOST:PORT of the agent's metrics page, or empty.
    """

    name: str
    runtimes: tuple[str, ...] = ()
    threads: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    metrics: str = ""


class LocalAgents:
    """All agents of one command.

    Args:
        address: where they find the controller.
        folder: holds one folder per device, the agent's state with its log.
        command: starts an agent (another one in tests).
    """

    def __init__(self, farm: Farm, address: str, folder: Path, devices: Sequence[LocalDevice], command: Sequence[str] = ()) -> None:
        base = tuple(command) or (sys.executable, "-m", "agent.cli")
        self._agents = [_Agent(farm, address, folder / d.name, d, base) for d in devices]

    def start(self) -> None:
        """Starts them all. Raises StorageError where a device's folder can't be written."""
        for agent in self._agents:
            agent.start()

    def given_up(self) -> dict[str, str]:
        """Devices whose agent is not started again, with the reason and the end of their log."""
        return {a.device.name: a.given_up for a in self._agents if a.given_up}

    def refused(self) -> set[str]:
        """Those of `given_up` whose agent said that what it was told is wrong, or taken by another process."""
        return {a.device.name for a in self._agents if a.refused}

    def give_up(self, device: str, reason: str) -> None:
        """Ends a device's agent for good; the farm is told why, with the end of its log."""
        for agent in self._agents:
            if agent.device.name == device:
                agent.ask_to_stop()
                agent.give_up(reason)

    def stop(self) -> None:
        """Stops them all: asks first, kills what is left after some seconds."""
        for agent in self._agents:
            agent.ask_to_stop()
        deadline = time.monotonic() + _STOP_S
        for agent in self._agents:
            agent.finish(max(0.0, deadline - time.monotonic()))


class _Agent:
    def __init__(self, farm: Farm, address: str, folder: Path, device: LocalDevice, base: tuple[str, ...]) -> None:
        self.device, self.given_up, self.refused = device, "", False
        self._farm, self._address, self._folder, self._base = farm, address, folder, base
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._log_began = 0  # where that of this command begins
        self._thread = threading.Thread(target=self._supervise, name=f"agent-{device.name}", daemon=True)

    @property
    def _log(self) -> Path:
        return self._folder / "agent.log"

    def start(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._log.exists() and self._log.stat().st_size > _LOG_BYTES:
                self._log.replace(self._log.with_suffix(".log.1"))
            self._log_began = self._log.stat().st_size if self._log.exists() else 0
        except OSError as error:
            raise StorageError(f"{error.filename}: {error.strerror}: make it writable, or choose another place with --state") from error
        self._thread.start()

    def ask_to_stop(self) -> None:
        with self._lock:
            self._stopping.set()
            if self._process is not None:
                self._process.terminate()

    def finish(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
        self._thread.join()

    def _log_tail(self) -> str:
        """The last lines that the log got since `start`, on lines of their own; empty if there are none."""
        try:
            with self._log.open("rb") as log:
                log.seek(max(self._log_began, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
                lines = log.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
        except OSError:
            return ""
        return "".join(f"\n  {line}" for line in lines)

    def _supervise(self) -> None:
        starts: deque[float] = deque(maxlen=_MOST_STARTS + 1)
        pause = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            starts.append(time.monotonic())
            try:
                code = self._run()
            except OSError as error:
                return self.give_up(f"its agent can't be started: {error}")
            if self._stopping.is_set():
                return
            _LOG.warning("device %s: its agent ended with %d", self.device.name, code)
            if code == _USER_ERROR:
                self.refused = True
                return self.give_up("its agent refused to start")
            if len(starts) > _MOST_STARTS and starts[-1] - starts[0] < _WITHIN_S:
                return self.give_up(f"its agent died {len(starts)} times within {_WITHIN_S:g} s")
            pause = _FIRST_PAUSE_S if time.monotonic() - starts[-1] > _WITHIN_S else min(2 * pause, _LONGEST_PAUSE_S)
            self._stopping.wait(pause)

    def give_up(self, reason: str) -> None:
        self.given_up = reason + self._log_tail()
        _LOG.warning("device %s is given up: %s", self.device.name, self.given_up)
        self._farm.mark_lost(self.device.name, self.given_up)

    def _run(self) -> int:
        """One life of the agent; returns its exit code, negative for a signal."""
        reading, writing = os.pipe()
        try:
            with self._lock, self._log.open("ab") as log:
                if self._stopping.is_set():
                    return 0
                # A working folder of ours: `-m` looks for modules there first, and the user's may hold an `agent`.
                self._process = process = subprocess.Popen(
                    self._command(reading), cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    pass_fds=(reading,), start_new_session=True,
                )  # fmt: skip
            os.close(reading)
            reading = -1
            with contextlib.suppress(BrokenPipeError):  # it died at once; its exit code tells
                os.write(writing, self._farm.doorkeeper.invite(self.device.name).encode() + b"\n")
            return process.wait()
        finally:
            os.close(writing)
            if reading >= 0:
                os.close(reading)

    def _command(self, secret_descriptor: int) -> list[str]:
        device = self.device
        command = [*self._base, "run", "--controller", self._address, "--name", device.name, "--state", str(self._folder)]
        command += ["--secret-fd", str(secret_descriptor)]
        if device.runtimes:
            command += ["--runtimes", ",".join(device.runtimes)]
        if device.threads:
            command += ["--threads", str(device.threads)]
        for key, value in sorted(device.labels.items()):
            command += ["--label", f"{key}={value}"]
        if device.metrics:
            command += ["--metrics", device.metrics]
        return command

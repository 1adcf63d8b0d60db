"""The supervisor's side of a runner: starts it, asks it, watches it, and says why it died. Imports neither numpy nor a runtime."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import site
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.runner import limits as limiting
from agent.runner import replies
from agent.runner.frames import Decoder, Frame, encode
from agent.runner.spawned import Spawned
from agent.runner.unit import Unit
from edgefarm.errors import ProtocolError
from edgefarm.model import Failure, FailureKind, Limits, Stage

_TAIL_BYTES = 16 * 1024
_RECEIVE_BYTES = 1 << 18
_DRAINS = 64  # reads of its output in one go: who writes without end must not keep the supervisor
_EXIT_WAIT_S = 0.5
_PASSED_ON = ("LANG", "LC_ALL", "TZ")
_SEARCHED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")


class RunnerFailed(Exception):
    """A request failed; `failure` says how. The runner may live on (`RunnerProcess.alive`)."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


class Cancelled(Exception):
    """The caller's `cancelled` became true; the runner was killed."""


@dataclass(frozen=True)
class Reply:
    """What a request gave."""

    body: dict[str, Any]
    payload: bytes = b""


class RunnerProcess:
    """A fresh runner process. Use it as a context manager, in the thread that makes it: it is killed when that thread ends.

    Args:
        limits: `memory_bytes` (0: most of what is available) is enforced here; the time-outs are passed to `call`.
        scratch: an existing folder, in which it gets a new one.
        files: what it may read besides libraries and that folder: files, and folders with all in them.
        environment: variables on top of the few that are passed on.
        cancelled: looked at every 50 ms while a request runs.
        on_tick: called as often, e.g. to sample sensors.
        unit_socket: where systemd starts runners in units of their own; None: a child of this process.
        cpus: cores that it may use; empty: all that this process may.
        command: what to run instead of the runner, for tests.

    Attributes:
        folder: its working, home and temporary directory, and the only one that it may write to: of its own, so that it finds nothing
            there that a model before it has left. It stays; who removes `scratch` removes it.

    Raises:
        Unreachable: systemd starts none.
    """

    def __init__(
        self,
        limits: Limits,
        scratch: Path,
        *,
        files: Sequence[Path] = (),
        environment: Mapping[str, str] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        on_tick: Callable[[], None] = lambda: None,
        unit_socket: Path | None = None,
        cpus: tuple[int, ...] = (),
        command: tuple[str, ...] = ("-m", "agent.runner.child"),
    ) -> None:
        self._memory_bytes = limiting.effective_memory(limits.memory_bytes)
        self._writable_bytes = limiting.writable(scratch)
        self._cancelled, self._on_tick = cancelled, on_tick
        self._decoder, self._tail = Decoder(), bytearray()
        self._oom_kills = limiting.kernel_oom_kills()
        self._returncode: int | None = None
        self.folder = Path(tempfile.mkdtemp(dir=scratch, prefix="runs-"))
        own, variables = limiting.ProcessLimits(self._memory_bytes, cpus=cpus), _environment(self.folder, environment or {})
        self._started: Spawned | Unit
        if unit_socket is None:
            self._started = Spawned(self.folder, files, own, variables, command)
        else:
            self._started = Unit(unit_socket, own, variables)
        self.pid, self._channel = self._started.pid, self._started.channel
        self._errors = self._started.output.fileno()
        os.set_blocking(self._errors, False)
        self._poll = select.poll()
        self._poll.register(self._channel, select.POLLIN)
        self._poll.register(self._errors, select.POLLIN)
        self._errors_open = True

    def __enter__(self) -> RunnerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def alive(self) -> bool:
        """Whether more can be asked."""
        return self._returncode is None

    @property
    def tail(self) -> str:
        """The last that it wrote to stdout and stderr."""
        return replies.clean(self._tail.decode(errors="replace"))

    def call(self, request: Mapping[str, Any], timeout_ns: int, stage: Stage, payload: bytes = b"") -> Reply:
        """Asks, and waits for the answer.

        Raises:
            RunnerFailed: the runner says so, died (CRASH with the signal's name, OOM), or did not answer in time (TIMEOUT).
            Cancelled: `cancelled` became true.
        """
        end = time.monotonic_ns() + timeout_ns
        unsent = memoryview(encode(self._started.hand_over(request), payload))
        watch, ended = 0, False
        while True:
            unsent = self._send(unsent)
            try:
                if (frame := self._decoder.next()) is not None:
                    return self._reply(request, frame, stage)
            except ProtocolError as error:
                self.kill()
                raise RunnerFailed(Failure(FailureKind.CRASH, f"the runner spoke nonsense: {error}", stage)) from error
            now = time.monotonic_ns()
            if now >= watch:
                watch = now + limiting.WATCH_NS
                self._watch(now, end, timeout_ns, stage)
                ended = self._started.has_ended()
            heard = self._receive(0 if ended else max(1, min(watch, end) - now), stage)
            if ended and not heard:  # and yet the socket is open: somebody else holds it
                raise RunnerFailed(self._post_mortem(stage))

    def kill(self) -> None:
        """Ends the runner and whatever it started; safe to call again."""
        if self._returncode is not None:
            return
        self._returncode = self._started.end()
        self._drain()
        self._channel.close()
        self._started.output.close()

    def _send(self, unsent: memoryview) -> memoryview:
        """Sends what the socket takes, and returns the rest: who does not read must not keep the supervisor."""
        if unsent:
            try:
                unsent = unsent[self._channel.send(unsent, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                pass
            except OSError:  # a dead runner: found when its answer is awaited, with its reason
                unsent = unsent[:0]
            self._poll.modify(self._channel, select.POLLIN | (select.POLLOUT if unsent else 0))
        return unsent

    def _receive(self, wait_ns: int, stage: Stage) -> bool:
        """Takes what has arrived; whether there was an answer's part in it."""
        heard = False
        for descriptor, event in self._poll.poll(wait_ns / 1e6):
            if descriptor == self._errors:
                self._drain()
            elif event == select.POLLOUT:
                continue
            elif chunk := self._read_channel():
                self._decoder.feed(chunk)
                heard = True
            else:
                raise RunnerFailed(self._post_mortem(stage))
        return heard

    def _read_channel(self) -> bytes:
        try:
            return self._channel.recv(_RECEIVE_BYTES)
        except OSError:
            return b""

    def _reply(self, request: Mapping[str, Any], frame: Frame, stage: Stage) -> Reply:
        body = replies.checked(request, frame, stage)
        if isinstance(body, Failure):
            raise RunnerFailed(replace(body, detail=self._started.shown(body.detail)))
        return Reply(body, frame.payload)

    def _drain(self) -> None:
        for _ in range(_DRAINS if self._errors_open else 0):
            try:
                chunk = os.read(self._errors, _TAIL_BYTES)
            except BlockingIOError:
                return
            self._tail = (self._tail + chunk)[-_TAIL_BYTES:]
            if not chunk:
                self._errors_open = False
                self._poll.unregister(self._errors)
                return

    def _watch(self, now: int, end: int, timeout_ns: int, stage: Stage) -> None:
        if self._cancelled():
            self.kill()
            raise Cancelled
        if now >= end:
            self.kill()
            raise RunnerFailed(Failure(FailureKind.TIMEOUT, f"{stage.value}: no answer within {timeout_ns / 1e9:g} s", stage))
        if excess := self._excess():
            self.kill()
            kind, what = excess
            raise RunnerFailed(Failure(kind, f"{stage.value}: {what}", stage))
        self._on_tick()

    def _excess(self) -> tuple[FailureKind, str] | None:
        """Which limit it is above. One that a full disk set says nothing of the model: it is asked again once there is room."""
        used = limiting.usage(self.pid)
        if used.resident_bytes > self._memory_bytes:
            return FailureKind.OOM, f"used {used.resident_bytes >> 20} MiB, the limit is {self._memory_bytes >> 20} MiB"
        if used.tasks > limiting.MORE_TASKS:
            return FailureKind.OOM, f"started {used.tasks} threads, the limit is {limiting.MORE_TASKS}"
        if used.written_bytes <= self._writable_bytes:
            return None
        if self._writable_bytes < min(limiting.CRAMPED_BYTES, limiting.WRITTEN_BYTES):
            left = f"a runner may write {self._writable_bytes >> 10} KiB, half of what is left"
            return FailureKind.TRANSFER, f"No space left on device: {left}; free some space on the device"
        written = f"wrote {used.written_bytes >> 20} MiB to files and output"
        return FailureKind.OOM, f"{written}, the limit is {self._writable_bytes >> 20} MiB"

    def _post_mortem(self, stage: Stage) -> Failure:
        """Why nothing more will come."""
        end = time.monotonic() + _EXIT_WAIT_S
        while not (ended := self._started.has_ended()) and time.monotonic() < end:
            time.sleep(0.005)
        self.kill()
        assert self._returncode is not None
        if not ended:
            return Failure(FailureKind.CRASH, f"{stage.value}: the runner closed its connection and went on{_last_words(self.tail)}", stage)
        oom_killed = self._started.oom_killed or limiting.kernel_oom_kills() > self._oom_kills
        return explain_exit(self._returncode, self.tail, stage, oom_killed)


def explain_exit(returncode: int, tail: str, stage: Stage, oom_killed: bool) -> Failure:
    """The failure that an exit status (negative: a signal) and the last output of a runner amount to."""
    said = _last_words(tail)
    if returncode == -signal.SIGKILL and oom_killed:
        return Failure(FailureKind.OOM, f"{stage.value}: the kernel killed the runner for want of memory{said}", stage)
    how = f"exited with status {returncode}"
    if returncode < 0:
        how = f"was killed by signal {-returncode}"
        with contextlib.suppress(ValueError):
            how = f"was killed by {signal.Signals(-returncode).name}"
    kind = FailureKind.OOM if "bad_alloc" in tail or "MemoryError" in tail else FailureKind.CRASH
    return Failure(kind, f"{stage.value}: the runner {how}{said}", stage)


def _last_words(tail: str) -> str:
    return f"; it said:\n{tail.strip()[-4000:]}" if tail.strip() else ""


def _environment(folder: Path, more: Mapping[str, str]) -> dict[str, str]:
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    # An empty or relative entry would be the runner's own folder.
    searched = {name: list(filter(None, os.environ.get(name, "").split(os.pathsep))) for name in _SEARCHED}
    paths = {name: os.pathsep.join(map(os.path.abspath, entries)) for name, entries in searched.items() if entries}
    own = {
        "HOME": str(folder), "TMPDIR": str(folder), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUSERBASE": site.getuserbase(), "ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1",
    }  # fmt: skip
    return {**passed, **paths, **own, **more}

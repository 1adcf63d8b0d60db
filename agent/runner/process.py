"""The supervisor's side of a runner: starts it, asks it, watches it, and says why it died. Imports neither numpy nor a runtime."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent.runner import limits as limiting
from agent.runner.frames import Decoder, Frame, encode
from edgefarm.errors import ProtocolError
from edgefarm.model import Failure, FailureKind, Limits, Stage

_TAIL_BYTES = 16 * 1024
_RECEIVE_BYTES = 1 << 18
_EXIT_WAIT_S = 2.0
_PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")


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
    """A fresh runner process in a session of its own. Use it as a context manager, in the thread that makes it.

    The kernel kills it when that thread ends.

    Args:
        limits: `memory_bytes` (0: most of what is available) is enforced here; the time-outs are passed to `call`.
        scratch: an existing folder: its working, home and temporary directory.
        environment: variables on top of the few that are passed on.
        cancelled: looked at every 50 ms while a request runs.
        on_tick: called as often, e.g. to sample sensors.
        command: what to run instead of the runner, for tests.
    """

    def __init__(
        self,
        limits: Limits,
        scratch: Path,
        *,
        environment: Mapping[str, str] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        on_tick: Callable[[], None] = lambda: None,
        command: tuple[str, ...] = ("-m", "agent.runner.child"),
    ) -> None:
        self._memory_bytes = limiting.effective_memory(limits.memory_bytes)
        self._cancelled, self._on_tick = cancelled, on_tick
        self._decoder, self._tail = Decoder(), bytearray()
        self._oom_kills = limiting.kernel_oom_kills()
        self._returncode: int | None = None
        self._process, self._channel = self._spawn(scratch, environment or {}, command)
        self.pid = self._process.pid
        assert self._process.stdout is not None
        self._errors = self._process.stdout.fileno()
        os.set_blocking(self._errors, False)
        self._poll = select.poll()
        self._poll.register(self._channel, select.POLLIN)
        self._poll.register(self._errors, select.POLLIN)
        self._errors_open = True

    def _spawn(
        self, scratch: Path, environment: Mapping[str, str], command: tuple[str, ...]
    ) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        own = limiting.ProcessLimits(self._memory_bytes)
        settings = json.dumps({"socket": theirs.fileno(), "parent": os.getpid(), "limits": asdict(own)})
        try:
            # No preexec_fn: it would fork with gRPC's threads. The child limits itself instead.
            process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", *command, settings],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0, cwd=scratch,
                env=_environment(scratch, environment), pass_fds=(theirs.fileno(),), start_new_session=True,
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return process, ours

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
        return self._tail.decode(errors="replace")

    def call(self, request: Mapping[str, Any], timeout_ns: int, stage: Stage, payload: bytes = b"") -> Reply:
        """Asks, and waits for the answer.

        Raises:
            RunnerFailed: the runner says so, died (CRASH with the signal's name, OOM), or did not answer in time (TIMEOUT).
            Cancelled: `cancelled` became true.
        """
        end = time.monotonic_ns() + timeout_ns
        with contextlib.suppress(OSError):  # a dead runner: found below, with its reason
            self._channel.sendall(encode(request, payload))
        watch = 0
        while True:
            try:
                frame = self._decoder.next()
            except ProtocolError as error:
                self.kill()
                raise RunnerFailed(Failure(FailureKind.CRASH, f"the runner spoke nonsense: {error}", stage)) from error
            if frame is not None:
                return _reply(frame, stage)
            now = time.monotonic_ns()
            if now >= watch:
                watch = now + limiting.WATCH_NS
                self._watch(now, end, timeout_ns, stage)
            self._receive(max(1, min(watch, end) - now), stage)

    def kill(self) -> None:
        """Ends the runner and whatever it started; safe to call again."""
        if self._returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):  # before it is reaped: the group's number can't be anyone else's yet
            os.killpg(self.pid, signal.SIGKILL)
        self._returncode = self._process.wait()
        self._drain()
        self._channel.close()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _receive(self, wait_ns: int, stage: Stage) -> None:
        for descriptor, _ in self._poll.poll(wait_ns / 1e6):
            if descriptor == self._errors:
                self._drain()
            elif chunk := self._read_channel():
                self._decoder.feed(chunk)
            else:
                raise RunnerFailed(self._post_mortem(stage))

    def _read_channel(self) -> bytes:
        try:
            return self._channel.recv(_RECEIVE_BYTES)
        except OSError:
            return b""

    def _drain(self) -> None:
        while self._errors_open:
            try:
                chunk = os.read(self._errors, _TAIL_BYTES)
            except BlockingIOError:
                return
            if not chunk:
                self._errors_open = False
                self._poll.unregister(self._errors)
            self._tail = (self._tail + chunk)[-_TAIL_BYTES:]

    def _watch(self, now: int, end: int, timeout_ns: int, stage: Stage) -> None:
        if self._cancelled():
            self.kill()
            raise Cancelled
        if now >= end:
            self.kill()
            raise RunnerFailed(Failure(FailureKind.TIMEOUT, f"{stage.value}: no answer within {timeout_ns / 1e9:g} s", stage))
        resident = limiting.resident_bytes(self.pid)
        if resident > self._memory_bytes:
            self.kill()
            detail = f"{stage.value}: used {resident >> 20} MiB, the limit is {self._memory_bytes >> 20} MiB"
            raise RunnerFailed(Failure(FailureKind.OOM, detail, stage))
        self._on_tick()

    def _post_mortem(self, stage: Stage) -> Failure:
        """Why the socket ended."""
        end = time.monotonic() + _EXIT_WAIT_S
        while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None and time.monotonic() < end:
            time.sleep(0.005)
        self.kill()
        assert self._returncode is not None
        return explain_exit(self._returncode, self.tail, stage, limiting.kernel_oom_kills() > self._oom_kills)


def explain_exit(returncode: int, tail: str, stage: Stage, oom_killed: bool) -> Failure:
    """The failure that an exit status (negative: a signal) and the last output of a runner amount to."""
    said = f"; it said:\n{tail.strip()[-4000:]}" if tail.strip() else ""
    if returncode == -signal.SIGKILL and oom_killed:
        return Failure(FailureKind.OOM, f"{stage.value}: the kernel killed the runner for want of memory{said}", stage)
    how = f"exited with status {returncode}"
    if returncode < 0:
        with contextlib.suppress(ValueError):
            how = f"was killed by {signal.Signals(-returncode).name}"
    kind = FailureKind.OOM if "bad_alloc" in tail or "MemoryError" in tail else FailureKind.CRASH
    return Failure(kind, f"{stage.value}: the runner {how}{said}", stage)


def _reply(frame: Frame, stage: Stage) -> Reply:
    failure = frame.header.get("failure")
    if failure is None:
        return Reply(frame.header["ok"], frame.payload)
    raise RunnerFailed(Failure(FailureKind(failure["kind"]), failure["detail"], stage))


def _environment(scratch: Path, more: Mapping[str, str]) -> dict[str, str]:
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    own = {
        "HOME": str(scratch), "TMPDIR": str(scratch), "PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1",
        "ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1",
    }  # fmt: skip
    return {**passed, **own, **more}

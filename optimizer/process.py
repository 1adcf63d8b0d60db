"""Starts and watches the process of one pass; whatever becomes of it, a reply comes back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from edgefarm.digest import atomic_write, canonical_json
from edgefarm.model import FailureKind, Scalar
from optimizer import threads
from optimizer.toolchains.child import command as toolchain_command

PHASE = "phase"
PROGRESS = "progress"
REQUEST = "request.json"
REPLY = "reply.json"
LOG = "log"
_POLL_S = 0.02
_MODULE = "optimizer.pass_process"


@dataclass(frozen=True)
class PassRequest:
    """What one pass process is to do; JSON-able and picklable, so that any executor can carry it.

    Attributes:
        pass_path: `module:Class`, as in the table of passes.
        source: main file of the parent.
        io: how the samples' tensors map to the parent's, as JSON; empty = they are the same.
        calibration, probe: packs of samples, empty = none.
        work_dir: an empty folder of its own; the output will be in `out/`.
        lock: the host's measure lock, empty = none.
        cancel: a file whose appearance ends the pass.
        timeout_s: for pass and checks, waiting for the lock apart.
        given: the user's other files, main file by digest.
        train: a file of samples with targets, empty = none.
        origin: main file of the model as the user gave it, empty = not told.
        checkpoints: a folder that outlives the process, empty = none.
        interpreter: the Python of a toolchain, empty = the command's own.
    """

    pass_path: str
    parameters: Mapping[str, Scalar]
    source: str
    calibration: str
    probe: str
    work_dir: str
    lock: str
    cancel: str
    timeout_s: float
    seed: int = 0
    io: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, str] = field(default_factory=dict)
    train: str = ""
    origin: str = ""
    checkpoints: str = ""
    interpreter: str = ""


@dataclass(frozen=True)
class PassReply:
    """How a pass ended.

    Attributes:
        outcome: changed, unchanged, failed, cancelled, or storage (the disk is full or read-only).
        kind: a FailureKind's value, for failed.
        transient: another try may end otherwise, so it is not cached.
        format: of the output.
        io: how the parent's tensors map to the output's, as JSON; empty = they are the same.
        plain: only the format was changed, no precision.
        form: of the output (`optimizer.form`); empty = not told.
        drift: of the output from its parent (`optimizer.drift`); None = not compared.
    """

    outcome: str
    kind: str = ""
    detail: str = ""
    seconds: float = 0.0
    transient: bool = False
    format: str = ""
    io: Mapping[str, Any] = field(default_factory=dict)
    plain: bool = False
    form: str = ""
    drift: float | None = None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def took(self, seconds: float) -> PassReply:
        """The reply with its duration."""
        return replace(self, seconds=round(seconds, 3))


class Child(Protocol):
    """A process that runs the pass of one folder, in a session of its own."""

    def wait(self, timeout: float) -> int | None:
        """Waits at most `timeout` seconds. Returns the exit code, a signal as its negative number; None while the pass runs."""
        ...

    def end(self) -> int:
        """Ends the whole session (a pass may have started programs) and reaps it. Returns the exit code."""
        ...


def run_pass(request: PassRequest, start: Callable[[Path], Child] | None = None) -> PassReply:
    """Runs one pass in a process of its own and waits for it. Never raises for what the pass does.

    Args:
        start: starts the process for a folder that holds REQUEST; by default, and where the request names an interpreter, a new one.
    """
    work = Path(request.work_dir)
    work.mkdir(parents=True)
    atomic_write(work / REQUEST, canonical_json(asdict(request)))
    (work / PHASE).write_text("wait")
    started = time.monotonic()
    child = spawn(work, request.interpreter) if request.interpreter or start is None else start(work)
    try:
        stopped = _watch(child, request)
    finally:
        code = child.end()
    reply = stopped or _read(work, code)
    return reply if reply.seconds else reply.took(time.monotonic() - started)


def spawn(work: Path, interpreter: str = "") -> Child:
    """Starts the pass of the folder `work` in a new interpreter: that of a toolchain, or the command's."""
    command = toolchain_command(interpreter, _MODULE, REQUEST) if interpreter else [sys.executable, "-m", _MODULE, REQUEST]
    with (work / LOG).open("wb") as log:
        return _Spawned(
            subprocess.Popen(
                command,
                cwd=work,
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        )


def environment() -> dict[str, str]:
    """Sets of strings in libraries keep their order, so equal input gives equal bytes; no library reports home."""
    return {**os.environ, **threads.ENVIRONMENT, "PYTHONHASHSEED": "0", "ORT_DISABLE_TELEMETRY": "1", "PYTHONDONTWRITEBYTECODE": "1"}


@dataclass(frozen=True)
class _Spawned:
    process: subprocess.Popen[bytes]

    def wait(self, timeout: float) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)
        return self.process.returncode

    def end(self) -> int:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()
        return code


def _watch(child: Child, request: PassRequest) -> PassReply | None:
    """Waits for the end; a reply if the pass had to be stopped."""
    phase = Path(request.work_dir) / PHASE
    running_since: float | None = None
    while True:
        if child.wait(_POLL_S) is not None:
            return None
        if Path(request.cancel).exists():
            return PassReply("cancelled", transient=True)
        now = time.monotonic()
        if running_since is None:
            running_since = now if phase.read_text() not in ("wait", "") else None
        elif now - running_since > request.timeout_s:
            doing = "checking its output" if phase.read_text() == "check" else "running"
            detail = f"the pass was stopped after {request.timeout_s:g} s ({doing})"
            return PassReply("failed", FailureKind.TIMEOUT.value, detail, request.timeout_s)


def _read(work: Path, returncode: int) -> PassReply:
    """The child's own reply, whole or absent; a crash after it was written does not matter."""
    try:
        return PassReply(**json.loads((work / REPLY).read_text()))
    except FileNotFoundError:
        pass
    phase = "checking its output" if (work / PHASE).read_text() == "check" else "running"
    tail = (work / LOG).read_text(errors="replace").strip().splitlines()[-3:]
    said = f"; it said: {' | '.join(tail)[-300:]}" if tail else ""
    if returncode == -signal.SIGKILL:
        return PassReply("failed", FailureKind.OOM.value, f"killed while {phase}, most likely for lack of memory{said}", transient=True)
    how = f"signal {-returncode} ({signal.Signals(-returncode).name})" if returncode < 0 else f"exit code {returncode}"
    return PassReply("failed", FailureKind.CRASH.value, f"the process of the pass ended with {how} while {phase}{said}", transient=True)

"""Starts and watches the process of one pass; whatever becomes of it, a reply comes back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from edgefarm.digest import atomic_write, canonical_json
from edgefarm.model import FailureKind, Scalar

PHASE = "phase"
REPLY = "reply.json"
_LOG = "log"
_POLL_S = 0.02


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
    """

    outcome: str
    kind: str = ""
    detail: str = ""
    seconds: float = 0.0
    transient: bool = False
    format: str = ""
    io: Mapping[str, Any] = field(default_factory=dict)
    plain: bool = False

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def took(self, seconds: float) -> PassReply:
        """The reply with its duration."""
        return replace(self, seconds=round(seconds, 3))


def run_pass(request: PassRequest) -> PassReply:
    """Runs one pass in a process of its own and waits for it. Never raises for what the pass does."""
    work = Path(request.work_dir)
    work.mkdir(parents=True)
    atomic_write(work / "request.json", canonical_json(asdict(request)))
    (work / PHASE).write_text("wait")
    started = time.monotonic()
    with (work / _LOG).open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "optimizer.pass_process", "request.json"],
            cwd=work,
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            stopped = _watch(child, request)
        finally:
            _end(child)
    reply = stopped or _read(work, child.returncode)
    return reply if reply.seconds else reply.took(time.monotonic() - started)


def _environment() -> dict[str, str]:
    """Sets of strings in libraries keep their order, so equal input gives equal bytes; no library reports home."""
    return {**os.environ, "PYTHONHASHSEED": "0", "ORT_DISABLE_TELEMETRY": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _watch(child: subprocess.Popen[bytes], request: PassRequest) -> PassReply | None:
    """Waits for the end; a reply if the pass had to be stopped."""
    phase = Path(request.work_dir) / PHASE
    running_since: float | None = None
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_POLL_S)
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


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends the child's whole session (a pass may have started programs) and reaps it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    if child.stdin is not None:
        child.stdin.close()


def _read(work: Path, returncode: int) -> PassReply:
    """The child's own reply, whole or absent; a crash after it was written does not matter."""
    try:
        return PassReply(**json.loads((work / REPLY).read_text()))
    except FileNotFoundError:
        pass
    phase = "checking its output" if (work / PHASE).read_text() == "check" else "running"
    tail = (work / _LOG).read_text(errors="replace").strip().splitlines()[-3:]
    said = f"; it said: {' | '.join(tail)[-300:]}" if tail else ""
    if returncode == -signal.SIGKILL:
        return PassReply("failed", FailureKind.OOM.value, f"killed while {phase}, most likely for lack of memory{said}", transient=True)
    how = f"signal {-returncode} ({signal.Signals(-returncode).name})" if returncode < 0 else f"exit code {returncode}"
    return PassReply("failed", FailureKind.CRASH.value, f"the process of the pass ended with {how} while {phase}{said}", transient=True)

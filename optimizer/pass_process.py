"""The process of one pass: `python -m optimizer.pass_process REQUEST.json`, started by `optimizer.process`.

It waits for the host's measure lock, runs the pass, checks the output, writes `reply.json` and ends. What it prints goes to a log.
It ends at once when its parent does: the parent holds the other end of its standard input.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sys
import threading
import time
import traceback
from pathlib import Path

from edgefarm import hostlock
from edgefarm.digest import atomic_write, canonical_json
from edgefarm.errors import UserError
from edgefarm.model import FailureKind
from optimizer import checks, threads
from optimizer.dataset import Dataset
from optimizer.form import form
from optimizer.io_maps import as_json, feeds, from_json
from optimizer.passes import Changed, Context, Pass, PassFailure, load_path
from optimizer.process import PHASE, PROGRESS, REPLY, PassReply, PassRequest
from optimizer.source import FORMATS, inspect_model

_TELL_EVERY_S = 0.5
_OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "Failed to allocate memory", "cannot allocate memory")


def main(argument: str) -> None:
    """Runs the request in the file `argument`."""
    threading.Thread(target=die_with_parent, daemon=True).start()
    _be_first_out_of_memory()
    request = PassRequest(**json.loads(Path(argument).read_text()))
    work = Path(request.work_dir)
    lock = hostlock.hold(exclusive=False, path=Path(request.lock)) if request.lock else contextlib.nullcontext()
    with lock:
        reply = _reply(request, work)
    atomic_write(work / REPLY, canonical_json(reply.as_json()))


def _reply(request: PassRequest, work: Path) -> PassReply:
    started = time.perf_counter()
    used = load_path(request.pass_path)
    try:
        changed, written, drift = _run(request, used, work)
        outcome = PassReply(
            "changed", detail=changed.detail, format=FORMATS[written.suffix].name, io=as_json(changed.io) or {}, plain=changed.plain,
            form=form(written), drift=drift,
        )  # fmt: skip
    except checks.Unchanged as error:
        outcome = PassReply("unchanged", detail=str(error))
    except PassFailure as error:
        outcome = PassReply("failed", error.kind.value, error.detail)
    except MemoryError:
        outcome = PassReply("failed", FailureKind.OOM.value, "the pass ran out of memory")
    except OSError as error:
        traceback.print_exc()
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        outcome = PassReply("storage", detail=str(error), transient=True) if full else _crashed(error)
    except Exception as error:  # a pass may raise whatever its libraries raise: that is a result, with its place
        traceback.print_exc()
        outcome = _crashed(error)
    return outcome.took(time.perf_counter() - started)


def _run(request: PassRequest, used: Pass, work: Path) -> tuple[Changed, Path, float | None]:
    """What the pass says, the main file that it wrote, and how far its outputs are from the parent's."""
    _settle_onnxruntime()
    (work / PHASE).write_text("pass")
    out, scratch = work / "out", work / "scratch"
    out.mkdir()
    scratch.mkdir()
    source = Path(request.source)
    calibration, probe = (_samples(file, source, request) for file in (request.calibration, request.probe))
    parameters = used.parameters.model_validate(request.parameters)
    context = Context(
        work_dir=scratch,
        seed=request.seed,
        probe=probe,
        given={digest: Path(file) for digest, file in request.given.items()},
        train=_training(request, source),
        origin=Path(request.origin) if request.origin else None,
        checkpoints=Path(request.checkpoints) if request.checkpoints else None,
        tell=_Teller(work / PROGRESS),
    )
    changed = used.run(source, out, parameters, calibration, context)
    written = [p for p in out.iterdir() if p.suffix in FORMATS]
    if len(written) != 1:
        raise PassFailure(FailureKind.CRASH, f"the pass wrote {len(written)} models instead of one")
    (work / PHASE).write_text("check")
    try:
        drift = checks.check(source, written[0], used, probe, changed.io)
    except checks.Unchanged as error:
        raise checks.Unchanged(f"{error} ({changed.detail})") from error
    return changed, written[0], drift


def _samples(file: str, parent: Path, request: PassRequest) -> Dataset | None:
    """Samples as the parent takes them."""
    return feeds(Dataset.open_inputs(Path(file)), from_json(request.io), inspect_model(parent).inputs) if file else None


def _training(request: PassRequest, parent: Path) -> Dataset | None:
    """Samples as the parent takes them, with their targets."""
    if not request.train:
        return None
    whole = Dataset.open(Path(request.train))
    return Dataset(feeds(Dataset(whole.inputs), from_json(request.io), inspect_model(parent).inputs).inputs, whole.targets, whole.batch)


class _Teller:
    """Writes the last line of progress where the pipeline reads it, a few times a second at most."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._told = 0.0

    def __call__(self, line: str) -> None:
        now = time.monotonic()
        if now - self._told >= _TELL_EVERY_S:
            self._told = now
            with contextlib.suppress(OSError):  # a full disk is told by what needs the space
                atomic_write(self._path, line.encode())


def _crashed(error: Exception) -> PassReply:
    text = str(error).strip()
    if any(mark in text for mark in _OUT_OF_MEMORY):
        return PassReply("failed", FailureKind.OOM.value, f"the pass ran out of memory: {text[:300]}")
    if isinstance(error, UserError):  # it says what is wrong and what to do
        return PassReply("failed", FailureKind.LOAD.value, text)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    return PassReply("failed", FailureKind.CRASH.value, f"{type(error).__name__}: {text[:500]} ({place})")


def _settle_onnxruntime() -> None:
    """Some wheels report home; the environment variable and the call together keep all of them quiet. Sessions get one thread."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    with contextlib.suppress(ImportError):
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        threads.limit_sessions(onnxruntime)


def die_with_parent() -> None:
    """Ends this process once nobody holds the other end of its standard input."""
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os._exit(3)


def _be_first_out_of_memory() -> None:
    """Where memory runs out the kernel is to end this process, not the command or an agent."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("700")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main(sys.argv[1])

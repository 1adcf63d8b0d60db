"""A measurement under way, and the few steps that all measurements share."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent.bench.conditions import Watch
from agent.bench.governor import governed
from agent.bench.site import Measured, Site
from agent.runner import scratch
from agent.runner.process import Cancelled, RunnerFailed, RunnerProcess
from edgefarm import hostlock
from edgefarm.model import Candidate, Failure, FailureKind, Limits, Options, Outcome, Stage

_SLACK = 3  # a device that throttles, a first sample that is a small one
_LONGEST = 12


class ContenderFailed(Exception):
    """A failure that one contender caused."""

    def __init__(self, key: str, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.key, self.failure = key, failure


class Session:
    """A measurement under way: the lock is held, conditions are being watched."""

    def __init__(self, site: Site, limits: Limits, files: Sequence[Path], folder: Path, watch: Watch, asked_ns: int) -> None:
        self.site, self.limits, self.folder, self.watch = site, limits, folder, watch
        self._files = files
        self._began_ns = time.monotonic_ns()
        self._waited_ns = self._began_ns - asked_ns
        self.blobs: dict[str, Path] = {}

    @contextlib.contextmanager
    def runner(self) -> Iterator[RunnerProcess]:
        """A fresh runner, watched."""
        cores = self.site.surroundings.cores
        process = RunnerProcess(
            self.limits, self.folder, files=self._files, environment=self.site.environment, cancelled=self.site.cancelled,
            on_tick=self.watch.tick, unit_socket=self.site.unit_socket, cpus=cores.numbers if cores and cores.pinned else (),
        )  # fmt: skip
        with process:
            self.watch.follow(process.pid)
            try:
                yield process
            finally:
                self.watch.leave()

    def load(self, runner: RunnerProcess, key: str, candidate: Candidate, path: Path, *, rest: bool = False) -> dict[str, Any]:
        """Imports the runtime, then loads the model under `key`. Raises RunnerFailed.

        `rest`: its threads are to sleep soon after an inference, for others run in turn with it.
        """
        options = options_for(candidate, self.site)
        version = runner.call({"do": "import", "runtime": candidate.runtime}, self.limits.load_ns, Stage.LOAD).body["version"]
        self.watch.settings[candidate.runtime] = version
        request = {
            "do": "load", "key": key, "path": str(path.absolute()), "runtime": candidate.runtime, "options": options,
            "io": io_as_json(candidate), "rest": rest,
        }  # fmt: skip
        loaded = runner.call(request, self.limits.load_ns, Stage.LOAD).body
        self.watch.settings.update({name: str(value) for name, value in loaded["resting"].items()})
        return loaded

    def run_limit_ns(self, inferences: int, first_ns: int) -> int:
        """How long so many inferences may take of which the first took `first_ns`: `run_ns`, or what they need, at most twelve times that.

        A limit is for what hangs, not for what is slow: a large model on a small board, a processor that is emulated.
        """
        return min(max(self.limits.run_ns, _SLACK * inferences * first_ns), _LONGEST * self.limits.run_ns)

    def keep(self, role: str, path: Path) -> None:
        """Moves a result to the scratch folder, where it outlives this measurement. Raises RunnerFailed if the runner left none.

        What lies there was written beside a model: a link would give away another file of this device.
        """
        if not scratch.is_own_file(path):
            raise RunnerFailed(Failure(FailureKind.CRASH, f"the runner left no file of its {role}", Stage.RUN))
        descriptor, name = tempfile.mkstemp(dir=self.site.scratch, prefix=f"{role}-", suffix=path.suffix)
        os.close(descriptor)
        self.blobs[role] = path.rename(name)

    def finish(self, outcome: Outcome) -> Measured:
        """The outcome with everything around it."""
        return Measured(outcome, self.watch.conditions(), self.blobs, time.monotonic_ns() - self._began_ns, self._waited_ns)


@contextlib.contextmanager
def session(site: Site, limits: Limits, models: Iterable[Path], inputs: Iterable[Path], *, cool: bool = True) -> Iterator[Session]:
    """Waits for the host's lock, and for the device to be cool, and begins. Raises Cancelled.

    Args:
        site: where.
        limits: of each runner.
        models: main files; what else lies in their folders belongs to them.
        inputs: files, which with the models are all that a runner may read besides libraries.
        cool: whether time is measured, so that temperature and governor matter.
    """
    folders = {folder: None for model in models for folder in (model.absolute().parent, model.resolve().parent)}
    files = [*folders, *(path.absolute() for path in inputs)]
    asked_ns = time.monotonic_ns()
    with (
        hostlock.hold(exclusive=True, path=site.lock, cancelled=site.cancelled) as held,
        scratch.folder(site.scratch, "runner-") as folder,
    ):
        if not held:
            raise Cancelled
        with _watched(site, cool=cool) as watch:
            yield Session(site, limits, files, folder, watch, asked_ns)


@contextlib.contextmanager
def _watched(site: Site, *, cool: bool) -> Iterator[Watch]:
    """A watch over a device that is as its administrator wants it. The lock is held meanwhile: another's launch would heat it again."""
    around, root = site.surroundings, site.sensors_root
    if not cool:
        yield Watch(root, around.cores)
        return
    start = around.gate.wait(root, site.cancelled)
    if start is None:
        raise Cancelled
    refused: dict[str, str] = {}
    with governed(root, around.governor, around.governor_file, refused.__setitem__):
        watch = Watch(root, around.cores)
        watch.settings.update(start.settings())
        for quantity, reason in refused.items():
            watch.unavailable(quantity, reason)
        if start.state == "unknown":
            watch.unavailable("start_temperature_celsius", start.detail)
        yield watch


def options_for(candidate: Candidate, site: Site) -> Options:
    """The candidate's options with the device's threads where it names none. Raises RunnerFailed above the device's limit."""
    threads = candidate.options.get("threads", site.threads)
    if isinstance(threads, int) and threads > site.threads:
        detail = f"option 'threads' is {threads}, this device's limit is {site.threads}"
        raise RunnerFailed(Failure(FailureKind.LOAD, detail, Stage.LOAD))
    return {**candidate.options, "threads": threads}


def io_as_json(candidate: Candidate) -> dict[str, Any] | None:
    """The io mapping as a request carries it."""
    if candidate.io is None:
        return None
    return {side: [dict(vars(m)) for m in getattr(candidate.io, side)] for side in ("inputs", "outputs")}


def without_path(failure: Failure, path: Path, name: str) -> Failure:
    """The failure with a file's path on this device replaced by the name that the user knows."""
    return replace(failure, detail=failure.detail.replace(str(path.absolute()), name))

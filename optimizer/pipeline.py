"""Runs plans: each pass once, in its own process, through the cache; every output checked; equal bytes are one variant."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Union

from edgefarm import hostlock
from edgefarm.errors import StorageError
from edgefarm.model import Artifact, Failure, FailureKind, Io, Scalar, Stage
from optimizer import toolchains
from optimizer.cache import Cache, Entry, Key
from optimizer.checks import VERSION as CHECKS_VERSION
from optimizer.dataset import Dataset
from optimizer.forked import Forks
from optimizer.io_maps import as_json, chain, from_json
from optimizer.lineage import LineageStep
from optimizer.passes import PASSES, Pass, load_pass, missing_tools, remedy
from optimizer.process import PROGRESS, PassReply, PassRequest, run_pass
from optimizer.recipe import Plan, Step, parameters_in_full
from optimizer.source import Source

_POLL_S = 0.1


@dataclass(frozen=True)
class Event:
    """Progress. `kind`: started, working (with what the pass tells), changed, unchanged, failed, cancelled; `cached`: from the cache."""

    kind: str
    plan: str
    pass_name: str
    seconds: float = 0.0
    detail: str = ""
    cached: bool = False
    drift: float | None = None


@dataclass(frozen=True)
class Variant:
    """An artifact made from the model. `path` is the folder of its files; one lineage per plan that led to these bytes.

    `plain`: nothing but the format was changed, so it computes what the source computes. `form`: what decides how long it takes
    (`optimizer.form`); empty: not told.
    """

    name: str
    artifact: Artifact
    path: Path
    plans: tuple[Plan, ...]
    lineages: tuple[tuple[LineageStep, ...], ...]
    io: Io | None = None
    plain: bool = False
    form: str = ""

    @property
    def lineage(self) -> tuple[LineageStep, ...]:
        """The lineage of the first plan."""
        return self.lineages[0]

    @property
    def main_file(self) -> Path:
        """The file that a runtime opens."""
        return self.path / self.artifact.main_file


@dataclass(frozen=True)
class Failed:
    """A plan that gave no variant."""

    plan: Plan
    failure: Failure


@dataclass(frozen=True)
class Skipped:
    """A plan of normalisers that changed nothing."""

    plan: Plan
    reason: str


PlanOutcome = Union[Variant, Failed, Skipped]


class Pipeline:
    """Runs passes for one cache folder.

    Args:
        cache_dir: made if absent; may be shared by processes and runs.
        workers: passes at a time; 0 = as many as there are cores.
        executor: runs `run_pass(request)`, here (default: threads that each watch a process) or elsewhere on a shared disk.
        lock_path: the host's measure lock (default: the machine's).
        timeout_s: time for one pass with its checks.
        training_timeout_s: the same, for one that trains.
    """

    def __init__(
        self,
        cache_dir: Path,
        workers: int = 0,
        executor: Executor | None = None,
        lock_path: Path | None = None,
        timeout_s: float = 600.0,
        training_timeout_s: float = 4 * 3600.0,
        seed: int = 0,
    ) -> None:
        self.cache = Cache(cache_dir.absolute())
        self._workers = workers or os.cpu_count() or 1
        self._executor = executor
        self._lock = lock_path or hostlock.default_path()
        self._timeout_s = timeout_s
        self._training_timeout_s = training_timeout_s
        self._seed = seed

    def run(
        self,
        source: Source,
        plans: Sequence[Plan],
        calibration: Dataset | None = None,
        probe: Dataset | None = None,
        on_event: Callable[[Event], None] = lambda event: None,
        cancelled: Callable[[], bool] = lambda: False,
        retry: bool = False,
        others: Sequence[Source] = (),
        train: Dataset | None = None,
    ) -> list[PlanOutcome]:
        """Runs `plans` and returns what became of each, in their order; equal variants come once.

        `retry`: steps that failed before are run again instead of taking their failure from the cache. `others`: the user's other
        files, which steps name by their digest. `train`: samples with targets for passes that train.

        Once `cancelled()` is true what runs is stopped, and plans that have no end yet are missing from the result.

        Raises:
            StorageError: the cache's disk is full or read-only.
        """
        with ExitStack() as stack:
            work = stack.enter_context(self.cache.workspace())
            submit = self._submitting(stack, work)
            given = {other.artifact.digest: str(other.path.absolute()) for other in others}
            run = _Run(self, source, plans, _inputs_only(calibration), _inputs_only(probe), on_event, work, submit, retry, given, train)
            stack.callback(run.stop)  # before the executor waits for its threads
            run.finish(cancelled)
        return _merged(run.outcomes())

    def _submitting(self, stack: ExitStack, work: Path) -> Callable[[PassRequest], Future[PassReply]]:
        """What starts a pass; `stack` closes what that takes."""
        if (given := self._executor) is not None:
            return lambda request: given.submit(run_pass, request)
        forks = stack.enter_context(Forks(work))
        pool = stack.enter_context(ThreadPoolExecutor(self._workers, "pass"))
        return lambda request: pool.submit(run_pass, request, forks.start)


def _inputs_only(samples: Dataset | None) -> Dataset | None:
    return None if samples is None else Dataset(samples.inputs)


@dataclass
class _Course:
    """How far one plan is."""

    plan: Plan
    artifact: Artifact
    main: Path
    io: Io | None = None
    plain: bool = True
    form: str = ""
    at: int = 0
    lineage: tuple[LineageStep, ...] = ()
    passed_over: str = ""
    failure: Failure | None = None
    cancelled: bool = False

    @property
    def ended(self) -> bool:
        return self.at >= len(self.plan.steps) or self.failure is not None or self.cancelled


@dataclass
class _Run:
    """One call of `Pipeline.run`; plans that share a prefix share its steps."""

    pipeline: Pipeline
    source: Source
    plans: Sequence[Plan]
    calibration: Dataset | None
    probe: Dataset | None
    on_event: Callable[[Event], None]
    work: Path
    submit: Callable[[PassRequest], Future[PassReply]]
    retry: bool = False
    given: Mapping[str, str] = field(default_factory=dict)
    train: Dataset | None = None
    courses: list[_Course] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)
    running: dict[Future[PassReply], tuple[Key, _Course, PassRequest]] = field(default_factory=dict)
    told: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.courses = [_Course(plan, self.source.artifact, self.source.path.absolute()) for plan in self.plans]

    def finish(self, cancelled: Callable[[], bool]) -> None:
        """Advances all plans to their end."""
        while not cancelled():
            for course in self.courses:
                self._advance(course)
            if not self.running:
                return
            done, _ = wait(self.running, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            for future in done:
                self._take(future)
            self._pass_on()

    def stop(self) -> None:
        """Ends passes that still run."""
        (self.work / "cancel").touch()
        for future in self.running:
            future.cancel()

    def outcomes(self) -> list[PlanOutcome]:
        """What became of the plans that ended."""
        return [self._outcome(course) for course in self.courses if course.ended and not course.cancelled]

    def _outcome(self, course: _Course) -> PlanOutcome:
        if course.failure is not None:
            return Failed(course.plan, course.failure)
        if course.artifact.digest == self.source.artifact.digest:
            return Skipped(course.plan, course.passed_over or "nothing was changed")
        name = f"{course.plan.name}/{course.artifact.digest.split(':')[1][:4]}"
        made = (course.plan,), (course.lineage,), course.io, course.plain, course.form
        return Variant(name, course.artifact, course.main.parent, *made)

    def _advance(self, course: _Course) -> None:
        """Takes steps whose end is known, and starts the next one."""
        while not course.ended:
            step = course.plan.steps[course.at]
            used = load_pass(step.pass_name)
            if missing_tools(used):
                course.failure = Failure(FailureKind.LOAD, f"{used.name} needs: {remedy(used)}", Stage.OPTIMIZE)
                return
            key = self._key(course, step, used)
            if key.digest in self.entries:
                self._apply(course, key, used, self.entries[key.digest])
                continue
            if any(other.digest == key.digest for other, _, _ in self.running.values()):
                return
            entry = self.pipeline.cache.find(key, self._timeout_s(used, step.parameters))
            if entry is not None and not (self.retry and entry.reply.outcome == "failed"):
                self.entries[key.digest] = entry
                self._tell(course, key, entry.reply, cached=True)
                continue
            self._start(course, key, used)
            return

    def _key(self, course: _Course, step: Step, used: Pass) -> Key:
        return Key(
            pass_name=step.pass_name,
            version=used.version,
            checks=CHECKS_VERSION,
            parameters=parameters_in_full(step),
            parent=course.artifact.digest,
            calibration=self.calibration.digest if self.calibration and _calibrates(used, step.parameters) else "",
            probe=self.probe.digest if self.probe else "",
            tools=toolchains.versions(used.toolchain, used.tools) if used.toolchain else tool_versions(used.tools),
            seed=self.pipeline._seed,
            io=as_json(course.io) or {},
            train=f"{self.train.digest} {self.source.artifact.digest}" if self.train and _trains(used, step.parameters) else "",
        )

    def _start(self, course: _Course, key: Key, used: Pass) -> None:
        cache = self.pipeline.cache
        train = self.train if self.train and _trains(used, key.parameters) else None
        request = PassRequest(
            pass_path=PASSES[key.pass_name],
            parameters=key.parameters,
            source=str(course.main),
            calibration=str(cache.data(self.calibration)) if self.calibration and _calibrates(used, key.parameters) else "",
            probe=str(cache.data(self.probe)) if self.probe else "",
            work_dir=str(self.work / key.digest.split(":")[1][:16]),
            lock=str(self.pipeline._lock),
            cancel=str(self.work / "cancel"),
            timeout_s=self._timeout_s(used, key.parameters),
            seed=key.seed,
            io=key.io,
            given=self.given,
            train=str(cache.data(train, targets=True)) if train else "",
            origin=str(self.source.path.absolute()) if train else "",
            checkpoints=str(cache.checkpoints(key)) if train else "",
            interpreter=str(toolchains.interpreter(used.toolchain)) if used.toolchain else "",
        )
        self.on_event(Event("started", course.plan.name, key.pass_name))
        self.running[self.submit(request)] = (key, course, request)

    def _timeout_s(self, used: Pass, parameters: Mapping[str, Scalar]) -> float:
        return self.pipeline._training_timeout_s if _trains(used, parameters) else self.pipeline._timeout_s

    def _pass_on(self) -> None:
        """Tells what passes say of how far they are, once each."""
        for key, course, request in self.running.values():
            try:
                line = (Path(request.work_dir) / PROGRESS).read_text()
            except OSError:
                continue
            if line != self.told.get(request.work_dir):
                self.told[request.work_dir] = line
                self.on_event(Event("working", course.plan.name, key.pass_name, detail=line))

    def _take(self, future: Future[PassReply]) -> None:
        """Stores the end of a step."""
        key, course, request = self.running.pop(future)
        try:
            reply = future.result()
        except OSError as error:
            raise StorageError(f"{request.work_dir}: can't be written: {error.strerror}") from error
        if reply.outcome == "storage":
            raise StorageError(f"{self.pipeline.cache.folder}: {reply.detail}")
        out = Path(request.work_dir) / "out" if reply.outcome == "changed" else None
        entry = self.pipeline.cache.store(key, reply, out, request.timeout_s)
        self.entries[key.digest] = entry
        self._tell(course, key, reply, cached=False)

    def _tell(self, course: _Course, key: Key, reply: PassReply, *, cached: bool) -> None:
        self.on_event(Event(reply.outcome, course.plan.name, key.pass_name, reply.seconds, reply.detail, cached, reply.drift))

    def _apply(self, course: _Course, key: Key, used: Pass, entry: Entry) -> None:
        reply, last = entry.reply, course.at + 1 == len(course.plan.steps)
        if entry.artifact is not None:
            step = LineageStep(key.parent, key.pass_name, key.parameters, key.tools, reply.seconds, reply.detail, reply.drift)
            course.lineage = (*course.lineage, step)
            course.artifact = entry.artifact
            course.main = self.pipeline.cache.object_folder(entry.artifact) / entry.artifact.main_file
            course.io = chain(course.io, from_json(reply.io))
            course.plain = course.plain and reply.plain
            course.form = reply.form
        elif reply.outcome == "cancelled":
            course.cancelled = True
        elif used.must_change or (reply.outcome == "failed" and last):
            kind = FailureKind(reply.kind) if reply.outcome == "failed" else FailureKind.UNCHANGED
            course.failure = Failure(kind, f"{key.pass_name}: {reply.detail}", Stage.OPTIMIZE)
        else:  # a normaliser is a courtesy: the passes after it go on without
            course.passed_over = f"{key.pass_name}: {reply.detail}"
        course.at += 1


def _trains(used: Pass, parameters: Mapping[str, Scalar]) -> bool:
    return used.parameters.model_validate(dict(parameters)).needs_training


def _calibrates(used: Pass, parameters: Mapping[str, Scalar]) -> bool:
    return used.parameters.model_validate(dict(parameters)).needs_calibration


def _merged(outcomes: Sequence[PlanOutcome]) -> list[PlanOutcome]:
    """One variant per artifact, at the place of its first plan; names stay unique."""
    merged: list[PlanOutcome] = []
    places: dict[str, int] = {}
    for outcome in outcomes:
        if isinstance(outcome, Variant) and outcome.artifact.digest in places:
            place = places[outcome.artifact.digest]
            first = merged[place]
            assert isinstance(first, Variant)
            merged[place] = replace(first, plans=first.plans + outcome.plans, lineages=first.lineages + outcome.lineages)
            continue
        if isinstance(outcome, Variant):
            places[outcome.artifact.digest] = len(merged)
        merged.append(outcome)
    return _uniquely_named(merged)


def _uniquely_named(outcomes: Sequence[PlanOutcome]) -> list[PlanOutcome]:
    taken: set[str] = set()
    named: list[PlanOutcome] = []
    for outcome in outcomes:
        if isinstance(outcome, Variant):
            digits, length = outcome.artifact.digest.split(":")[1], 4
            while (name := f"{outcome.plans[0].name}/{digits[:length]}") in taken:
                length += 1
            taken.add(name)
            outcome = replace(outcome, name=name)
        named.append(outcome)
    return named


@lru_cache(maxsize=64)
def tool_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Installed versions, read from metadata: nothing is imported."""
    return {name: version(name) for name in names}

"""One launch: a fresh runner with all contenders in it, under the load of the scenario; or, where memory is short, one after the other."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from agent.bench import scenarios
from agent.bench.placement import fallback_failure
from agent.bench.session import ContenderFailed, Session, session, without_path
from agent.bench.site import Measured, Site
from agent.runner.process import RunnerFailed, RunnerProcess
from edgefarm.model import BatchResult, ContenderResult, Failure, FailureKind, LatencyResult, LatencyWork, Limits, Stage

MEMORY_FACTOR = 3  # resident bytes per byte of an artifact: the weights, their repacked copy, activations
MEMORY_BASE_BYTES = 64 * 2**20


def measure_latency(work: LatencyWork, launch: int, models: Mapping[str, Path], inputs: Path, limits: Limits, site: Site) -> Measured:
    """Measures one launch of a round.

    A contender that fails (does not load, crashes, runs out of memory or time) gets a failure in its result, and the launch is repeated
    without it. A contender with NaN or infinite outputs where the first contender has none is a NUMERIC failure.

    Args:
        work: the round.
        launch: which of its launches; with the seed, it decides every order.
        models: contender's key -> its main file.
        inputs: the tensor pack that `work.inputs` names.
        limits: time-outs (`load_ns` for each load, `run_ns` for the schedule) and memory of one runner.
        site: where.
    """
    with session(site, limits, models.values(), [inputs]) as measuring:
        if refused := scenarios.refusal(work.scenario):
            return measuring.finish(Failure(FailureKind.UNSPECIFIED, refused, Stage.RUN))
        launching = _Launch(measuring, work, launch, models, inputs)
        return measuring.finish(launching.measure())


@dataclass
class _Numbers:
    """What one contender showed, as the runner tells it."""

    load: dict[str, Any]
    first: dict[str, Any]
    summary: dict[str, Any]
    placement: Mapping[str, int]


class _Launch:
    def __init__(self, measuring: Session, work: LatencyWork, launch: int, models: Mapping[str, Path], inputs: Path) -> None:
        self._session, self._work, self._models = measuring, work, models
        self._inputs = str(inputs.absolute())
        self._candidates = {c.key: c.candidate for c in work.contenders}
        self._seed = f"{work.seed}/{launch}"
        self._order = random.Random(self._seed)
        self._placement_wanted = work.fail_on_fallback or not work.launches or launch == work.launches[0]
        self._numbers: dict[str, _Numbers] = {}
        self._failures: dict[str, Failure] = {}
        self._samples: dict[str, bytes] = {}

    def measure(self) -> LatencyResult:
        """Runs until every contender has numbers or a failure."""
        together = self._fit_together()
        while left := [key for key in self._candidates if key not in self._failures]:
            if not together or len(left) == 1:
                self._alternate(left)
                break
            if self._all_at_once(left):
                break
            # It crashed with several resident: whose fault it is shows when each runs alone.
            self._alternate(left)
            innocent = [key for key in left if key not in self._failures]
            if len(innocent) == len(left):
                together = False
                break
        self._judge_outputs()
        self._judge_placement()
        self._keep_samples()
        return LatencyResult(tuple(map(self._result, self._candidates)), together or len(self._numbers) < 2)

    def _fit_together(self) -> bool:
        artifacts = sum(c.artifact.bytes for c in self._candidates.values())
        needed = artifacts * MEMORY_FACTOR + MEMORY_BASE_BYTES + Path(self._inputs).stat().st_size
        return needed <= available_bytes(self._session.limits.memory_bytes) / 2

    def _all_at_once(self, keys: Sequence[str]) -> bool:
        """True when done or when a culprit was found and the rest was measured; False if the culprit is unclear."""
        self._forget()
        left = list(keys)
        while left:
            try:
                self._launch(left)
            except ContenderFailed as error:
                self._fail(error.key, error.failure)
                left.remove(error.key)
            except RunnerFailed:
                return False
            else:
                break
        return True

    def _alternate(self, keys: Sequence[str]) -> None:
        """One runner for each, in random order."""
        self._forget()
        shuffled = list(keys)
        self._order.shuffle(shuffled)
        for key in shuffled:
            try:
                self._launch([key])
            except ContenderFailed as error:
                self._fail(error.key, error.failure)

    def _forget(self) -> None:
        self._numbers.clear()
        self._samples.clear()

    def _launch(self, keys: Sequence[str]) -> None:
        """One fresh runner. Raises ContenderFailed, or RunnerFailed if it is unclear which contender was at fault."""
        loads, firsts = {}, {}
        order = list(keys)
        self._order.shuffle(order)
        with self._session.runner() as runner:
            for key in order:
                loads[key], firsts[key] = self._load(runner, key, rest=len(keys) > 1 and scenarios.takes_turns(self._work.scenario))
            try:
                reply = runner.call(self._schedule(keys), self._limit_ns(firsts), Stage.RUN)
            except RunnerFailed as error:
                if len(keys) > 1:
                    raise
                raise ContenderFailed(keys[0], error.failure) from error
            placements = {key: self._placement(runner, key) for key in keys}
        for key in keys:
            self._numbers[key] = _Numbers(loads[key], firsts[key], reply.body["contenders"][key], placements[key])
        self._samples[keys[0]] = reply.payload

    def _load(self, runner: RunnerProcess, key: str, *, rest: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            loaded = self._session.load(runner, key, self._candidates[key], self._models[key], rest=rest)
            first = {"do": "first", "key": key, "inputs": self._inputs}
            return loaded, runner.call(first, self._session.limits.run_ns, Stage.RUN).body
        except RunnerFailed as error:
            raise ContenderFailed(key, error.failure) from error

    def _schedule(self, keys: Sequence[str]) -> dict[str, Any]:
        return {"do": "launch", "keys": list(keys), "inputs": self._inputs, "plan": scenarios.plan(self._work, self._seed)}

    def _limit_ns(self, firsts: Mapping[str, Mapping[str, Any]]) -> int:
        """Of the whole schedule: what the models need, and what the scenario takes by the clock."""
        needed = self._session.run_limit_ns(scenarios.inferences(self._work), sum(f["first_inference_ns"] for f in firsts.values()))
        return needed + scenarios.idle_ns(self._work, len(firsts))

    def _placement(self, runner: RunnerProcess, key: str) -> dict[str, int]:
        """Where the nodes ran; once per order, when everything is timed. Without an answer it stays empty: the numbers stand."""
        if not self._placement_wanted or not runner.alive:
            return {}
        request = {"do": "placement", "key": key, "inputs": self._inputs}
        try:
            return dict(runner.call(request, self._session.limits.load_ns, Stage.RUN).body["placement"])
        except RunnerFailed as error:
            self._session.watch.unavailable(f"placement of {key}", error.failure.detail.splitlines()[0])
            return {}

    def _fail(self, key: str, failure: Failure) -> None:
        self._failures[key] = without_path(failure, self._models[key], self._candidates[key].artifact.main_file)

    def _judge_outputs(self) -> None:
        reference = next(iter(self._candidates))
        if reference in self._numbers and self._numbers[reference].first["not_finite"]:
            return  # the source itself gives such values: nothing can be held against the others
        for key, numbers in list(self._numbers.items()):
            if numbers.first["not_finite"]:
                detail = f"{numbers.first['not_finite']} output values are NaN or infinite with the first sample; the reference has none"
                self._failures[key] = Failure(FailureKind.NUMERIC, detail, Stage.RUN)
                del self._numbers[key]

    def _judge_placement(self) -> None:
        for key, numbers in list(self._numbers.items() if self._work.fail_on_fallback else ()):
            if failure := fallback_failure(numbers.load["provider"], numbers.placement):
                self._failures[key] = failure
                del self._numbers[key]

    def _result(self, key: str) -> ContenderResult:
        if key in self._failures:
            return ContenderResult(key, failure=self._failures[key])
        seen = self._numbers[key]
        batches = tuple(BatchResult(**row) for row in seen.summary["batches"])
        bursts = {name: tuple(seen.summary[name]) for name in ("burst_p50_ns", "burst_min_ns")}
        summary = {**seen.summary, **bursts, "batches": batches}
        result = ContenderResult(key, placement=seen.placement, chosen=seen.load["chosen"], provider=seen.load["provider"], **summary)
        return replace(result, load_ns=seen.load["load_ns"], first_inference_ns=seen.first["first_inference_ns"])

    def _keep_samples(self) -> None:
        archives = list(self._samples.values())
        if archives:
            path = self._session.folder / "samples.npz"
            path.write_bytes(archives[0] if len(archives) == 1 else _joined(archives))
            self._session.keep("samples", path)


def available_bytes(limit: int) -> int:
    """What a runner may take: what the device has left, at most its limit (0 = none)."""
    available = int(psutil.virtual_memory().available)
    return min(available, limit) if limit else available


def _joined(archives: Sequence[bytes]) -> bytes:
    """One npz with the members of all."""
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for archive in archives:
            with zipfile.ZipFile(io.BytesIO(archive)) as source:
                for member in source.infolist():
                    target.writestr(member, source.read(member))
    return buffer.getvalue()

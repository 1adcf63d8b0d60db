"""FakeWorld: devices whose true latencies, accuracies and failures are known, answering a planner's orders."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from controller.evidence import CONTROL, Entry, Evaluation, Evidence, Group, Score, Scores, fold
from controller.planner import next_step
from edgefarm.model import (
    AccuracyResult,
    AccuracyWork,
    Artifact,
    Attempt,
    Candidate,
    Contender,
    ContenderResult,
    EnergyResult,
    EnergyWork,
    Failure,
    FailureKind,
    FileEntry,
    LatencyResult,
    LatencyWork,
    MemoryResult,
    Order,
    OrderState,
    OrderStatus,
    Outcome,
    ProfileResult,
    ProfileWork,
    Reduction,
)
from edgefarm.statistics import Interval


@dataclass(frozen=True)
class Truth:
    """What a candidate really is."""

    name: str
    latency_ns: int
    accuracy: float = 0.9
    size: int = 1000
    memory: int = 10 * 2**20
    failure: FailureKind | None = None
    form: str = ""


def entry(truth: Truth, baseline: bool = False) -> Entry:
    digest = f"sha256:{truth.name:0>64.64}"
    artifact = Artifact(digest, truth.size, "onnx", (FileEntry("model.onnx", digest, truth.size),))
    return Entry(Candidate(artifact, "onnxruntime", {"threads": 1}), truth.name, baseline, form=truth.form)


def make_group(truths: Sequence[Truth], **changes: object) -> Group:
    """A group of one device whose first truth is the baseline."""
    known: dict[str, object] = {
        "run": "world@1",
        "model": "m",
        "device_class": "c1",
        "devices": ("d1",),
        "entries": tuple(entry(t, baseline=i == 0) for i, t in enumerate(truths)),
        "objective": "latency_p50",
        "constraints": {"accuracy_drop": 0.01},
        "inputs": "sha256:inputs",
        "evaluation": Evaluation(("sha256:selection",), Reduction(), ("sha256:evaluation",)),
        **changes,
    }
    return Group(**known)  # type: ignore[arg-type]


@dataclass
class FakeWorld:
    """Answers orders; `noise` is the relative spread between launches, `bursts` the bursts of a candidate of 1 ms."""

    truths: Sequence[Truth]
    noise: float = 0.01
    seed: int = 0
    bursts: tuple[float, ...] = ()
    orders: dict[str, OrderStatus] = field(default_factory=dict)
    answered: list[str] = field(default_factory=list)

    def truth(self, key: str) -> Truth:
        return self._by_key[key]

    @cached_property
    def _by_key(self) -> dict[str, Truth]:
        return {entry(t).key: t for t in self.truths}

    def answer(self, order: Order, device: str = "d1") -> None:
        self.answered.append(order.id)
        indices = order.work.launches if isinstance(order.work, LatencyWork) else (0,)
        attempts = tuple(Attempt(order.id, i, order.device or device, 1000, 10**9, self._outcome(order, i)) for i in indices)
        self.orders[order.id] = OrderStatus(order, OrderState.DONE, order.device or device, attempts)

    def _outcome(self, order: Order, index: int) -> Outcome:
        work = order.work
        if isinstance(work, LatencyWork):
            return LatencyResult(tuple(self._contender(c, order.id, index) for c in work.contenders))
        truth = self.truth(work.contender.key)
        if isinstance(work, EnergyWork):
            microjoules = truth.latency_ns / 1e3
            return EnergyResult(
                work.contender.key, microjoules, microjoules * 0.99, microjoules * 1.01, source="fake", idle_subtracted=True
            )
        if isinstance(work, ProfileWork):
            return ProfileResult(work.contender.key, source="fake")
        if truth.failure is not None:
            return Failure(truth.failure, "as told")
        if isinstance(work, AccuracyWork):
            return AccuracyResult(work.contender.key, f"outputs:{truth.name}", f"golden:{truth.name}", 100)
        return MemoryResult(work.contender.key, 2**25 + truth.memory, 2**24 + truth.memory, 2**25, 2**24)

    def _contender(self, contender: Contender, order: str, index: int) -> ContenderResult:
        """The control arm runs what its candidate does, and meets noise of its own."""
        result = self._result(contender.candidate.key, order, f"{index}/{contender.key}" if contender.key == CONTROL else str(index))
        return replace(result, key=contender.key)

    def _result(self, key: str, order: str, index: str) -> ContenderResult:
        truth = self.truth(key)
        if truth.failure is not None:
            return ContenderResult(key, failure=Failure(truth.failure, "as told"))
        rng = random.Random(f"{self.seed}/{order}/{index}/{key}")
        p50 = max(1, round(truth.latency_ns * rng.lognormvariate(0.0, self.noise)))
        bursts = tuple(round(b * truth.latency_ns / 1e6) for b in (self.bursts if truth.name != "source" else self.bursts[::-1]))
        p90, p99 = round(p50 * 1.1), round(p50 * 1.3)
        return ContenderResult(key, 400, float(p50), p50, p90, p99, 10**6, 10**6, 5, burst_p50_ns=bursts)

    def scores(self, group: Group, evidence: Evidence) -> dict[str, Scores]:
        base = self.truth(group.baseline.key).accuracy
        found = {}
        for key in evidence.accuracy:
            value = self.truth(key).accuracy
            score = Score(value, base, 100, base - value, Interval(value - base, value - base - 0.01, value - base + 0.01, 100))
            found[key] = Scores(score, score if key in evidence.evaluated else None, "top1", True)
        return found

    def evidence(self, group: Group) -> Evidence:
        known = fold(self.orders.values(), group.device_class, {})
        return fold(self.orders.values(), group.device_class, self.scores(group, known))

    def run(self, group: Group, on_step: Callable[[Evidence], None] = lambda e: None, limit: int = 200) -> Evidence:
        """Plays the loop to its end."""
        for _ in range(limit):
            evidence = self.evidence(group)
            on_step(evidence)
            step = next_step(group, evidence)
            if not step.orders:
                return evidence
            for order in step.orders:
                self.answer(order)
        raise AssertionError("the planner never ends")

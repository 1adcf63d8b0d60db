"""What a run knows: the candidates in play, and a fold over all attempts that were received. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from edgefarm.model import (
    AccuracyResult,
    AccuracyWork,
    Attempt,
    Candidate,
    Conditions,
    ContenderResult,
    EnergyResult,
    EnergyWork,
    Failure,
    FailureKind,
    LatencyResult,
    LatencyWork,
    MemoryResult,
    MemoryWork,
    OrderState,
    OrderStatus,
    ProfileResult,
    ProfileWork,
    Reduction,
    Scenario,
)
from edgefarm.statistics import Interval

SCREEN, COMPARE, CONFIRM = "screen", "compare", "confirm"
ACCURACY, EVALUATE, MEMORY, ENERGY, PROFILE = "accuracy", "evaluate", "memory", "energy", "profile"
CONTROL = "control"  # key of a second copy of the reference: what is measured between two copies of one file is noise
_ENDED = {OrderState.DONE, OrderState.CANCELLED, OrderState.QUARANTINED}


@dataclass(frozen=True)
class Entry:
    """A candidate in play; `variant` is the name that people read, `note` what they should know of it.

    `look`: number of the search's look that brought it. What was ordered in a look does not hang on what later ones bring. `form`: files
    of one form take the same kernels on the same sizes (`optimizer.form`); empty: not told.
    """

    candidate: Candidate
    variant: str
    baseline: bool = False
    note: str = ""
    look: int = 1
    form: str = ""

    @cached_property
    def key(self) -> str:
        """Key of the candidate."""
        return self.candidate.key

    @property
    def size_bytes(self) -> int:
        """Bytes of the artifact."""
        return self.candidate.artifact.bytes


@dataclass(frozen=True)
class Evaluation:
    """How accuracy is taken on a device, and what comes back.

    `selection`: shards of the samples that candidates are chosen by; `report`: of those that the chosen ones are reported on, empty where
    one set serves for both.
    """

    selection: tuple[str, ...]
    reduction: Reduction
    report: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """Devices of one class under the same limits. They share trials; `entries` starts with the baseline.

    `constraints`: those of the fleet file that are set; `accept`: verdicts that may choose a winner. `window`, `only_on`: as in Order.
    `power`: whether a device of the class has a power sensor. `fail_on_fallback`: nodes that ran elsewhere than asked for are a failure.
    """

    run: str
    model: str
    device_class: str
    devices: tuple[str, ...]
    entries: tuple[Entry, ...]
    objective: str
    constraints: Mapping[str, float]
    inputs: str
    evaluation: Evaluation
    confidence: float | None = None
    accept: tuple[str, ...] = ("stable",)
    budget_ns: int = 300 * 10**9
    scenario: Scenario = field(default_factory=Scenario)
    window: str = ""
    only_on: tuple[str, ...] = ()
    power: bool = False
    fail_on_fallback: bool = False

    @property
    def needs_energy(self) -> bool:
        """Whether nothing can be chosen without knowing energy."""
        return self.objective == "energy" or "energy_mj" in self.constraints

    @property
    def cannot_choose(self) -> bool:
        """Whether measuring is no use: energy decides, and no device of the class can tell it."""
        return self.needs_energy and not self.power

    @property
    def looks(self) -> range:
        """Numbers of the looks so far."""
        return range(1, max(e.look for e in self.entries) + 1)

    @property
    def baseline(self) -> Entry:
        """The source in its own runtime, or what stands in for it."""
        return self.entries[0]

    @property
    def id(self) -> str:
        """The class, or the class and the first device where one class has devices under different limits."""
        return f"{self.device_class}/{self.devices[0]}"


@dataclass(frozen=True)
class Score:
    """One candidate on one split. `difference`: candidate minus baseline on the same samples, signed so that above 0 is better.

    `difference` (95 %) is None where the metric gives no interval (`reason` says why); `drop` is its negated point estimate and
    `drop_high` the conservative end at the confidence that the user asked for, None if none was.
    """

    value: float
    baseline: float
    n: int
    drop: float
    difference: Interval | None = None
    drop_high: float | None = None
    resolvable_drop: float | None = None
    samples_needed: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Scores:
    """One candidate on the split that it is chosen by, and on the one that it is reported on.

    They are one object where one set serves for both; `evaluation` is None of a candidate that was not chosen, so nobody asked.
    """

    selection: Score
    evaluation: Score | None
    metric: str
    higher_is_better: bool
    same_data: bool = False


@dataclass(frozen=True)
class Launch:
    """One contender in one launch, next to the reference of the same launch."""

    order: str
    index: int
    device: str
    result: ContenderResult
    reference: ContenderResult
    conditions: Conditions
    at_unix_ms: int


@dataclass(frozen=True)
class Evidence:
    """All that is known of the candidates of one device class.

    `failures`: candidates that failed in a pass of their own, or twice in launches, or in all of them; one bad launch among good ones
    is no failure. `confirmed`, `unconfirmed`: by (device, key). `control`: launches of the comparison's control arm, which is no
    candidate.
    """

    screened: Mapping[str, Launch] = field(default_factory=dict)
    launches: Mapping[str, tuple[Launch, ...]] = field(default_factory=dict)
    confirmed: Mapping[tuple[str, str], tuple[Launch, ...]] = field(default_factory=dict)
    memory: Mapping[str, MemoryResult] = field(default_factory=dict)
    accuracy: Mapping[str, AccuracyResult] = field(default_factory=dict)
    evaluated: Mapping[str, AccuracyResult] = field(default_factory=dict)
    scores: Mapping[str, Scores] = field(default_factory=dict)
    failures: Mapping[str, Failure] = field(default_factory=dict)
    unconfirmed: Mapping[tuple[str, str], Failure] = field(default_factory=dict)
    ended: frozenset[str] = frozenset()
    spent_ns: int = 0
    energy: Mapping[str, EnergyResult] = field(default_factory=dict)
    profiles: Mapping[str, ProfileResult] = field(default_factory=dict)
    control: tuple[Launch, ...] = ()


def stage_of(order_id: str) -> str:
    """The stage of the loop that an order belongs to; ids are `RUN/STAGE/HASH`."""
    return order_id.split("/")[-2]


def fold(orders: Iterable[OrderStatus], device_class: str, scores: Mapping[str, Scores]) -> Evidence:
    """Evidence about one device class from the orders of a run, in any order of arrival."""
    gathered = _Gathered()
    for status in sorted(orders, key=lambda s: s.order.id):
        if status.order.device_class == device_class:
            gathered.add(status)
    return gathered.evidence(scores)


@dataclass
class _Gathered:
    screened: dict[str, Launch] = field(default_factory=dict)
    launches: dict[str, list[Launch]] = field(default_factory=dict)
    control: list[Launch] = field(default_factory=list)
    confirmed: dict[tuple[str, str], list[Launch]] = field(default_factory=dict)
    memory: dict[str, MemoryResult] = field(default_factory=dict)
    accuracy: dict[str, AccuracyResult] = field(default_factory=dict)
    evaluated: dict[str, AccuracyResult] = field(default_factory=dict)
    energy: dict[str, EnergyResult] = field(default_factory=dict)
    profiles: dict[str, ProfileResult] = field(default_factory=dict)
    failed_passes: dict[str, Failure] = field(default_factory=dict)
    failed_launches: dict[str, list[Failure]] = field(default_factory=dict)
    unconfirmed: dict[tuple[str, str], Failure] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    spent_ns: int = 0

    def add(self, status: OrderStatus) -> None:
        """Takes an order that has ended. Half a round decides nothing: what is wanted next must not hang on when one looks."""
        if status.state not in _ENDED:
            return
        self.ended.add(status.order.id)
        for attempt in sorted(status.attempts, key=lambda a: a.index):
            self.spent_ns += attempt.duration_ns
            outcome = attempt.outcome
            if isinstance(outcome, LatencyResult):
                self._add_latency(status, attempt, outcome)
            elif isinstance(outcome, MemoryResult):
                self.memory[outcome.key] = outcome
            elif isinstance(outcome, AccuracyResult):
                (self.evaluated if stage_of(status.order.id) == EVALUATE else self.accuracy)[outcome.key] = outcome
            elif isinstance(outcome, EnergyResult):
                self.energy[outcome.key] = outcome
            elif isinstance(outcome, ProfileResult):
                self.profiles[outcome.key] = outcome
            else:
                self._add_failure(status, attempt.device, outcome)

    def _add_latency(self, status: OrderStatus, attempt: Attempt, outcome: LatencyResult) -> None:
        work = status.order.work
        assert isinstance(work, LatencyWork)
        results = {r.key: r for r in outcome.contenders}
        reference = results.get(work.contenders[0].key)
        for result in outcome.contenders:
            if result.failure is not None:
                self._add_failed_launch(status, attempt.device, result.key, result.failure)
            elif reference is not None and reference.failure is None:
                launch = Launch(
                    attempt.order, attempt.index, attempt.device, result, reference, attempt.conditions, attempt.started_unix_ms
                )
                self._add_launch(stage_of(status.order.id), launch)

    def _add_launch(self, stage: str, launch: Launch) -> None:
        if launch.result.key == CONTROL:
            if stage == COMPARE:
                self.control.append(launch)
        elif stage == SCREEN:
            self.screened[launch.result.key] = launch
        elif stage == CONFIRM:
            self.confirmed.setdefault((launch.device, launch.result.key), []).append(launch)
        else:
            self.launches.setdefault(launch.result.key, []).append(launch)

    def _add_failed_launch(self, status: OrderStatus, device: str, key: str, failure: Failure) -> None:
        if key == CONTROL:
            return
        if stage_of(status.order.id) == CONFIRM:
            self.unconfirmed.setdefault((device or status.device, key), failure)
        else:
            self.failed_launches.setdefault(key, []).append(failure)

    def _add_failure(self, status: OrderStatus, device: str, failure: Failure) -> None:
        """A failure of a whole attempt is that of its candidate where there is but one besides the reference."""
        work = status.order.work
        if isinstance(work, EnergyWork | ProfileWork):
            return  # what a candidate needs, and where its time goes, is not known then: no reason to hold anything against it
        if isinstance(work, MemoryWork | AccuracyWork):
            self.failed_passes.setdefault(work.contender.key, failure)
        elif len(keys := [c.key for c in work.contenders if c.key != CONTROL]) <= 2:
            self._add_failed_launch(status, device, keys[-1], failure)

    def _failures(self) -> dict[str, Failure]:
        found = {key: f[0] for key, f in self.failed_launches.items() if len(f) > 1 or not self._ran(key) or _final(f[0])}
        return {**found, **self.failed_passes}

    def _ran(self, key: str) -> bool:
        return key in self.screened or key in self.launches

    def evidence(self, scores: Mapping[str, Scores]) -> Evidence:
        launches = {k: tuple(v) for k, v in self.launches.items()}
        confirmed = {k: tuple(v) for k, v in self.confirmed.items()}
        return Evidence(
            self.screened,
            launches,
            confirmed,
            self.memory,
            self.accuracy,
            self.evaluated,
            {k: s for k, s in scores.items() if k in self.accuracy},
            self._failures(),
            self.unconfirmed,
            frozenset(self.ended),
            self.spent_ns,
            self.energy,
            self.profiles,
            tuple(self.control),
        )


def _final(failure: Failure) -> bool:
    """Whether once is enough: an order is quarantined after its second loss."""
    return failure.kind is FailureKind.DEVICE_LOST

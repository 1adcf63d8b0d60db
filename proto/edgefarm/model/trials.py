"""Orders to measure, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Union

from edgefarm.model.candidates import Candidate

BENCH_VERSION = 1  # a change in how a number is taken makes new trials


class FailureKind(str, Enum):
    """Why a trial or a pass gave no result. A failure is a result too, never an exception between processes."""

    UNSPECIFIED = "unspecified"
    LOAD = "load"
    UNSUPPORTED_OP = "unsupported_op"
    IO_CHANGED = "io_changed"
    UNCHANGED = "unchanged"
    OOM = "oom"
    TIMEOUT = "timeout"
    CRASH = "crash"
    NUMERIC = "numeric"
    TRANSFER = "transfer"
    DEVICE_LOST = "device_lost"


class Stage(str, Enum):
    """Where a failure happened."""

    UNSPECIFIED = "unspecified"
    OPTIMIZE = "optimize"
    TRANSFER = "transfer"
    LOAD = "load"
    RUN = "run"
    ACTIVATE = "activate"


class Verdict(str, Enum):
    """May this measurement be believed?"""

    STABLE = "stable"
    NOISY = "noisy"
    THROTTLED = "throttled"
    INTERFERED = "interfered"
    UNSTEADY = "unsteady"


@dataclass(frozen=True)
class Failure:
    """A typed failure with the detail that a person needs."""

    kind: FailureKind
    detail: str
    stage: Stage = Stage.UNSPECIFIED


@dataclass(frozen=True)
class Trace:
    """One quantity (`temperature_celsius`, `frequency_hertz` …) of one `source` (a zone, a core) over a measurement."""

    quantity: str
    source: str
    n: int
    first: float
    low: float
    high: float
    last: float


@dataclass(frozen=True)
class Conditions:
    """What surrounded a measurement.

    Attributes:
        others_cpu: cores kept busy by processes that are not ours (0.0 = idle), or None if unreadable.
        steal: fraction of CPU time that the hypervisor took, 0 to 1, or None.
        throttled: reasons seen, empty if none.
        settings: governor, power mode, affinity, versions … as text.
        unavailable: quantity -> reason why it could not be read.
    """

    traces: tuple[Trace, ...] = ()
    others_cpu: float | None = None
    steal: float | None = None
    throttled: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scenario:
    """How load is applied. `paced` without a rate: one inference after the other."""

    kind: str = "paced"
    rate_per_s: float | None = None


@dataclass(frozen=True)
class Contender:
    """A candidate in a round, under its key."""

    key: str
    candidate: Candidate


@dataclass(frozen=True)
class LatencyWork:
    """Measure up to four contenders against each other.

    Attributes:
        contenders: the first is the reference that ratios are taken to.
        inputs: digest of a shard (see `edgefarm.tensors`) whose samples are fed in turn.
        launches: indices of the fresh launches still to do; the index seeds the order of bursts.
        bursts: bursts of each contender in one launch.
        burst_ns: least length of a burst.
        min_inferences: least number of inferences in a burst.
        warmup_ns: upper bound of the warm-up of one contender in one launch.
    """

    contenders: tuple[Contender, ...]
    scenario: Scenario
    inputs: str
    launches: tuple[int, ...]
    bursts: int = 8
    burst_ns: int = 20_000_000
    min_inferences: int = 3
    seed: int = 0
    warmup_ns: int = 100_000_000


@dataclass(frozen=True)
class MemoryWork:
    """Memory of one contender in a fresh runner, next to the same runner without a model."""

    contender: Contender
    inputs: str
    inferences: int = 20


@dataclass(frozen=True)
class Reduction:
    """`topk`: the k largest indices along the last axis of `output`, largest first; `raw`: `output` as it is, empty = all outputs."""

    kind: str = "raw"
    output: str = ""
    k: int = 0


@dataclass(frozen=True)
class AccuracyWork:
    """Run every sample of `shards`, in order; give back reduced outputs, and raw outputs of the first `golden_samples`."""

    contender: Contender
    shards: tuple[str, ...]
    reduction: Reduction = field(default_factory=Reduction)
    golden_samples: int = 4
    output_bytes_limit: int = 256 * 2**20


Work = Union[LatencyWork, MemoryWork, AccuracyWork]


@dataclass(frozen=True)
class Limits:
    """Time-outs by phase, each reported by name, and the memory of the runner (0 = the agent's own limit)."""

    transfer_ns: int = 600 * 10**9
    load_ns: int = 120 * 10**9
    run_ns: int = 300 * 10**9
    memory_bytes: int = 0


@dataclass(frozen=True)
class Order:
    """Something to measure; takes effect once. `device` empty: any device of `device_class`."""

    id: str
    run: str
    model: str
    device_class: str
    work: Work
    device: str = ""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class ContenderResult:
    """One contender in one launch; with `failure` set the numbers are 0 and mean nothing.

    `n` inferences make the numbers. `disturbed` of all lost the CPU to another process while they ran; `left_out` of those are not
    among the n (0 where too few undisturbed ones were left). `chosen`: options that the candidate does not name and that matter for
    what is computed, with what the runtime took by itself (OpenVINO: `inference_precision`).
    """

    key: str
    n: int = 0
    mean_ns: float = 0.0
    p50_ns: int = 0
    p90_ns: int = 0
    p99_ns: int = 0
    load_ns: int = 0
    first_inference_ns: int = 0
    warmup_inferences: int = 0
    placement: Mapping[str, int] = field(default_factory=dict)
    burst_p50_ns: tuple[int, ...] = ()
    failure: Failure | None = None
    disturbed: int = 0
    left_out: int = 0
    chosen: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LatencyResult:
    """One launch. `samples`: digest of the raw samples (npz: `KEY`: uint64[n] of nanoseconds, `KEY.disturbed`: bool[n])."""

    contenders: tuple[ContenderResult, ...]
    resident_together: bool = True
    samples: str = ""


@dataclass(frozen=True)
class MemoryResult:
    """Peak RSS and PSS of the runner with the model, and of the same runner without one (the reference)."""

    key: str
    peak_rss_bytes: int
    pss_bytes: int
    reference_peak_rss_bytes: int
    reference_pss_bytes: int


@dataclass(frozen=True)
class AccuracyResult:
    """`outputs`, `golden`: digests of tensor packs (see `edgefarm.tensors`); `n`: samples run."""

    key: str
    outputs: str
    golden: str
    n: int


Outcome = Union[LatencyResult, MemoryResult, AccuracyResult, Failure]


@dataclass(frozen=True)
class Attempt:
    """One execution of one launch, or of a memory or accuracy pass (index 0).

    From `started_unix_ms` on, for `duration_ns`, it had its host to itself: waiting for that, and fetching, are not counted.
    """

    order: str
    index: int
    device: str
    started_unix_ms: int
    duration_ns: int
    outcome: Outcome
    conditions: Conditions = field(default_factory=Conditions)


@dataclass(frozen=True)
class AttemptId:
    """Identity of an attempt."""

    order: str
    index: int


def remaining(order: Order, done: frozenset[int]) -> Order | None:
    """`order` without the launches whose index is in `done`; None if nothing is left."""
    if isinstance(order.work, LatencyWork):
        left = tuple(i for i in order.work.launches if i not in done)
        return replace(order, work=replace(order.work, launches=left)) if left else None
    return None if 0 in done else order

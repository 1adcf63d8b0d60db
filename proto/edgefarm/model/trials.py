"""Orders to measure, and attempts at them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Union

from edgefarm.model.candidates import Candidate
from edgefarm.model.results import (
    AccuracyResult,
    EnergyResult,
    Failure,
    LatencyResult,
    MemoryResult,
    ProfileResult,
)

BENCH_VERSION = 3  # a change in how a number is taken makes new trials


class Verdict(str, Enum):
    """May this measurement be believed?"""

    STABLE = "stable"
    NOISY = "noisy"
    THROTTLED = "throttled"
    INTERFERED = "interfered"
    UNSTEADY = "unsteady"


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
        others_cpu_peak: the same, in the worst window of about 200 ms.
        steal: fraction of CPU time that the hypervisor took, 0 to 1, or None.
        waited: share of the time in which the runner's main thread wanted to run that it had to wait for a CPU, 0 to 1, or None.
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
    others_cpu_peak: float | None = None
    waited: float | None = None


@dataclass(frozen=True)
class Scenario:
    """How load is applied.

    Attributes:
        kind: `paced`: one inference after the other, or one started every 1 / `rate_per_s` seconds, idle in between; `offline`: all
            samples are there, in batches of each of `batch_sizes`; `sustained`: without a pause for `duration_ns`; `server`: requests
            arrive at random moments (Poisson), `rate_per_s` of them on average, and wait for each other.
        rate_per_s: of `paced` and `server`.
        batch_sizes: of `offline`; empty: 1.
        duration_ns: of `sustained` and `server`, per launch; 0: the launch's bursts decide.
    """

    kind: str = "paced"
    rate_per_s: float | None = None
    batch_sizes: tuple[int, ...] = ()
    duration_ns: int = 0


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
        bursts: most bursts of each contender in one launch; fewer, at least 8, where `min_inferences` make them longer than `burst_ns`.
        burst_ns: least length of a burst.
        min_inferences: least number of inferences in a burst.
        warmup_ns: upper bound of the warm-up of one contender in one launch.
        fail_on_fallback: a contender fails if a node runs elsewhere than its options ask (see `ContenderResult.provider`).
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
    fail_on_fallback: bool = False


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


@dataclass(frozen=True)
class EnergyWork:
    """Energy per inference of one contender: a window of load next to idle windows.

    `source`: a power sensor by its name in the agent's table, empty: the best that the device has. `idle_ns`, `window_ns`: least lengths.
    """

    contender: Contender
    inputs: str
    scenario: Scenario = field(default_factory=Scenario)
    source: str = ""
    idle_ns: int = 5 * 10**9
    window_ns: int = 10 * 10**9


@dataclass(frozen=True)
class ProfileWork:
    """Time of each operator of one contender, in a pass of its own: profiling slows a model down."""

    contender: Contender
    inputs: str
    inferences: int = 20


Work = Union[LatencyWork, MemoryWork, AccuracyWork, EnergyWork, ProfileWork]


@dataclass(frozen=True)
class Limits:
    """Time-outs by phase, each reported by name, and the memory of the runner (0 = the agent's own limit)."""

    transfer_ns: int = 600 * 10**9
    load_ns: int = 120 * 10**9
    run_ns: int = 300 * 10**9
    memory_bytes: int = 0


@dataclass(frozen=True)
class Order:
    """Something to measure; takes effect once.

    Attributes:
        device: the one that it is for; empty: any device of `device_class`.
        window: part of the day, in the device's local time, in which its launches may begin (`22:00-05:00`); empty: any time.
        only_on: of the class, the devices that may take it; empty: any that the run names.
    """

    id: str
    run: str
    model: str
    device_class: str
    work: Work
    device: str = ""
    limits: Limits = field(default_factory=Limits)
    window: str = ""
    only_on: tuple[str, ...] = ()


Outcome = Union[LatencyResult, MemoryResult, AccuracyResult, EnergyResult, ProfileResult, Failure]


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

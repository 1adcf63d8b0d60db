"""What comes back from a measurement: results, and typed failures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


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


@dataclass(frozen=True)
class Failure:
    """A typed failure with the detail that a person needs."""

    kind: FailureKind
    detail: str
    stage: Stage = Stage.UNSPECIFIED


@dataclass(frozen=True)
class BatchResult:
    """One batch size of `offline`; durations are of a whole batch. `unavailable`: why the model can't be run with it, and no numbers."""

    batch_size: int
    n: int = 0
    mean_ns: float = 0.0
    p50_ns: int = 0
    unavailable: str = ""


@dataclass(frozen=True)
class ContenderResult:
    """One contender in one launch; with `failure` set the numbers are 0 and mean nothing.

    `n` inferences make the numbers. `disturbed` of all lost the CPU to another process while they ran; `left_out` of those are not
    among the n (0 where too few undisturbed ones were left). `chosen`: options that the candidate does not name and that matter for
    what is computed, with what the runtime took by itself (OpenVINO: `inference_precision`). `samples_per_s`: throughput under the
    scenario, of the best batch size under `offline`; 0: 1e9 / `mean_ns`. Latencies under `server` begin when the request arrived.
    `regime`: shape of the launch's samples over time (`edgefarm.statistics`), of which the first `unsettled` are not among the n.
    `provider`: execution provider or delegate that its options ask for by name, empty if they ask for none; see `fallen_back`.
    `burst_p50_ns`: of each burst, or of each part of a stretch; `burst_min_ns`: the shortest inference of each burst, among as many as all
    contenders have in that round. Empty: no such bursts, inputs of different shapes take turns, or an agent that does not tell it.
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
    samples_per_s: float = 0.0
    batches: tuple[BatchResult, ...] = ()
    regime: str = ""
    unsettled: int = 0
    provider: str = ""
    burst_min_ns: tuple[int, ...] = ()


@dataclass(frozen=True)
class LatencyResult:
    """One launch. `samples`: digest of the raw samples (npz: `KEY`: uint64[n] of nanoseconds, `KEY.disturbed`: bool[n]; under
    `offline` `KEY.batch`: rows of each)."""

    contenders: tuple[ContenderResult, ...]
    resident_together: bool = True
    samples: str = ""


@dataclass(frozen=True)
class MemoryResult:
    """Memory of a fresh runner with the model, and of the same runner without one (the reference).

    Peak RSS is the kernel's; PSS and the private part (what is freed when the process ends) are the largest of their readings, after
    the load, the first inference and the last. `model_file_bytes`: of the model's own files, mapped and resident; they are counted in
    the others too, but are the page cache's, and shared by all who run the model. Memory of the accelerator, named `accelerator`,
    apart, None where there is none or it does not tell.
    """

    key: str
    peak_rss_bytes: int
    pss_bytes: int
    reference_peak_rss_bytes: int
    reference_pss_bytes: int
    private_bytes: int = 0
    reference_private_bytes: int = 0
    accelerator_bytes: int | None = None
    accelerator: str = ""
    model_file_bytes: int = 0


@dataclass(frozen=True)
class EnergyResult:
    """Energy per inference in microjoules with its 95 % interval. `unavailable`: why there is none; the numbers mean nothing then.

    `source`, `rail`, `includes`, `accuracy`: what was read, what hangs on it, and how exact it is said to be. `updates`: distinct
    readings in the load window, `rate_hz` of them per second. `duration_ns`: of the load window.
    """

    key: str
    per_inference_uj: float = 0.0
    low_uj: float = 0.0
    high_uj: float = 0.0
    inferences: int = 0
    load_watts: float = 0.0
    idle_watts: float = 0.0
    duration_ns: int = 0
    updates: int = 0
    rate_hz: float = 0.0
    source: str = ""
    rail: str = ""
    includes: str = ""
    accuracy: str = ""
    idle_subtracted: bool = False
    unavailable: str = ""


@dataclass(frozen=True)
class OperatorTime:
    """One operator of the graph as it runs, or a fused group: mean nanoseconds per inference, over `calls` calls in each.

    What runs inside of it (a loop's body) is not counted twice. `kernel`: what computes it and in which precision, where that is told.
    """

    name: str
    kind: str
    provider: str
    mean_ns: float
    calls: int = 1
    kernel: str = ""


@dataclass(frozen=True)
class ProfileResult:
    """What took the time, the longest first; `placement`: nodes per provider; `whole_ns`: of an inference while it was profiled.

    `source`: what told it. `unavailable`: why the runtime tells no times. `provider`: as in `ContenderResult`.
    """

    key: str
    operators: tuple[OperatorTime, ...] = ()
    placement: Mapping[str, int] = field(default_factory=dict)
    whole_ns: float = 0.0
    source: str = ""
    unavailable: str = ""
    provider: str = ""

    @property
    def fallback_share(self) -> float | None:
        """Share of the operators' time, 0 to 1, that was not spent where the options ask; None if they ask nothing or no time is known."""
        whole = sum(o.mean_ns for o in self.operators)
        if not self.provider or not whole:
            return None
        return sum(o.mean_ns for o in self.operators if o.provider != self.provider) / whole


def fallen_back(provider: str, placement: Mapping[str, int]) -> int:
    """Nodes that run elsewhere than the options ask: the library took them back without a word. 0 where nothing is asked (empty)."""
    return sum(count for name, count in placement.items() if name != provider) if provider else 0


@dataclass(frozen=True)
class AccuracyResult:
    """`outputs`, `golden`: digests of tensor packs (see `edgefarm.tensors`); `n`: samples run."""

    key: str
    outputs: str
    golden: str
    n: int

"""The vocabulary: immutable values that travel between rooms, processes and machines.

Every class equals a message of `edgefarm.v1` in name and field names (`edgefarm.wire` converts).
Digests are `sha256:<64 hex digits>`; durations are monotonic nanoseconds; wall-clock times are UTC milliseconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Union

from edgefarm.digest import canonical_json

PROTOCOL = 1
FEATURES: tuple[str, ...] = ("latency", "memory", "accuracy", "activate-file")
BENCH_VERSION = 1  # a change in how a number is taken makes new trials

Scalar = Union[bool, int, float, str]
Options = Mapping[str, Scalar]


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


class DeploymentState(str, Enum):
    """Life of one deployment on one device."""

    UNSPECIFIED = "unspecified"
    ORDERED = "ordered"
    STAGED = "staged"
    COMMITTED = "committed"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    SUPERSEDED = "superseded"


class OrderState(str, Enum):
    """Life of one order in the queue."""

    UNSPECIFIED = "unspecified"
    QUEUED = "queued"
    SENT = "sent"
    DONE = "done"
    CANCELLED = "cancelled"
    QUARANTINED = "quarantined"


class Verdict(str, Enum):
    """May this measurement be believed?"""

    STABLE = "stable"
    NOISY = "noisy"
    THROTTLED = "throttled"
    INTERFERED = "interfered"
    UNSTEADY = "unsteady"


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact."""

    name: str
    digest: str
    bytes: int


@dataclass(frozen=True)
class Artifact:
    """Immutable bytes, addressed by digest (see `edgefarm.digest.artifact_digest`); `bytes` is the sum over `files`."""

    digest: str
    bytes: int
    format: str
    files: tuple[FileEntry, ...]

    @property
    def main_file(self) -> str:
        """Name of the file that a runtime opens."""
        suffix = {"openvino": ".xml"}.get(self.format, f".{self.format}")
        return next((f.name for f in self.files if f.name.endswith(suffix)), self.files[0].name)


@dataclass(frozen=True)
class TensorMap:
    """Variant tensor `name` = source tensor `source` transposed by `permutation`, then quantised (real = scale * (q - zero_point))."""

    source: str
    name: str
    permutation: tuple[int, ...] = ()
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True)
class Io:
    """How a variant's inputs and outputs map to the source's."""

    inputs: tuple[TensorMap, ...]
    outputs: tuple[TensorMap, ...]


@dataclass(frozen=True)
class Candidate:
    """Variant x runtime x options; `io` is None where the variant takes and gives exactly what the source does."""

    artifact: Artifact
    runtime: str
    options: Options = field(default_factory=dict)
    io: Io | None = None

    @property
    def key(self) -> str:
        """16 hex digits that equal candidates share, on every machine."""
        mapping = None if self.io is None else [[vars(t) for t in side] for side in (self.io.inputs, self.io.outputs)]
        identity = [self.artifact.digest, self.runtime, dict(self.options), mapping]
        return hashlib.sha256(canonical_json(identity)).hexdigest()[:16]


@dataclass(frozen=True)
class Capability:
    """A (runtime, provider or delegate, version) that the device proved it can load, or the reason why it cannot.

    `formats`: formats of artifacts that the runtime takes; `options`: the options that select this provider.
    """

    runtime: str
    provider: str
    version: str
    available: bool
    reason: str = ""
    formats: tuple[str, ...] = ()
    options: Options = field(default_factory=dict)


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
    """`topk`: the k largest indices along the last axis of `output`, largest first; `raw`: all outputs."""

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
    """One contender in one launch; with `failure` set the numbers are 0 and mean nothing."""

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


@dataclass(frozen=True)
class LatencyResult:
    """One launch. `samples`: digest of the raw samples (npz: one `uint64[n]` of nanoseconds per contender key)."""

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
    """One execution of one launch, or of a memory or accuracy pass (index 0)."""

    order: str
    index: int
    device: str
    started_unix_ms: int
    duration_ns: int
    outcome: Outcome
    conditions: Conditions = field(default_factory=Conditions)


@dataclass(frozen=True)
class Golden:
    """Golden inputs and outputs (digest of a tensor pack); an output is right if |got - want| <= absolute + relative * max|want|."""

    digest: str
    relative_tolerance: float
    absolute_tolerance: float


@dataclass(frozen=True)
class Deployment:
    """What a device is told to run for one model. Generations of (device, model) only grow."""

    id: str
    device: str
    model: str
    generation: int
    variant: str
    candidate: Candidate
    activate: str = "file"
    golden: Golden | None = None


@dataclass(frozen=True)
class DeploymentStatus:
    """Where a deployment stands. `path`: the stable path of the active file; `previous`: digest in the other slot."""

    id: str
    device: str
    model: str
    generation: int
    state: DeploymentState
    digest: str = ""
    path: str = ""
    reason: str = ""
    previous: str = ""


@dataclass(frozen=True)
class Device:
    """One board with a stable `id`; `host` is the kernel's boot id: devices of one host take turns to measure."""

    name: str
    id: str
    host: str
    labels: Mapping[str, str] = field(default_factory=dict)
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    capabilities: tuple[Capability, ...] = ()
    threads: int = 1
    emulated: bool = False
    agent_version: str = ""
    metrics_address: str = ""

    @property
    def device_class(self) -> str:
        """12 hex digits that devices with an equal fingerprint share."""
        return hashlib.sha256(canonical_json(dict(self.fingerprint))).hexdigest()[:12]

    def can_run(self, runtime: str, provider: str | None = None) -> bool:
        """Whether the device proved that it loads `runtime` (with `provider`, if given)."""
        return any(c.available and c.runtime == runtime and provider in (None, c.provider) for c in self.capabilities)


@dataclass(frozen=True)
class AttemptId:
    """Identity of an attempt."""

    order: str
    index: int


@dataclass(frozen=True)
class Hello:
    """First message of a session: who the agent is and what it still holds.

    `instance` is new with every start of the agent's process; `probed` is False while capabilities are still being proved.
    """

    protocol: int
    features: tuple[str, ...]
    instance: str
    device: Device
    probed: bool
    open_orders: tuple[str, ...] = ()
    unacknowledged: tuple[AttemptId, ...] = ()
    deployments: tuple[DeploymentStatus, ...] = ()


@dataclass(frozen=True)
class Heartbeat:
    """Sign of life; `order` is the one being worked on, empty if idle."""

    order: str = ""
    disk_free_bytes: int = 0
    rss_bytes: int = 0


@dataclass(frozen=True)
class Probed:
    """The device, with its capabilities proved."""

    device: Device


@dataclass(frozen=True)
class OrderEnded:
    """The agent holds the order no more; every attempt of it was sent before."""

    order: str
    cancelled: bool = False


AgentBody = Union[Hello, Heartbeat, Probed, Attempt, OrderEnded, DeploymentStatus]


@dataclass(frozen=True)
class Welcome:
    """Answer to Hello. `session` authenticates the device's other calls and a re-attach."""

    protocol: int
    features: tuple[str, ...]
    epoch: int
    heartbeat_ns: int
    session: str


@dataclass(frozen=True)
class Cancel:
    """Stop working on an order, now."""

    order: str


@dataclass(frozen=True)
class Ack:
    """The attempt is stored; the agent may forget it."""

    order: str
    index: int


@dataclass(frozen=True)
class Drain:
    """Finish what runs, take nothing new."""


ControllerBody = Union[Welcome, Order, Cancel, Ack, Deployment, Drain]


@dataclass(frozen=True)
class Run:
    """One execution of a campaign, NAME@N. `spec`, `report`: JSON text; `spec_digest` covers model, data and fleet file."""

    name: str
    campaign: str
    number: int
    spec_digest: str
    spec: str
    state: str
    owner: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    started_unix_ms: int = 0
    finished_unix_ms: int = 0
    exit_code: int | None = None
    report: str = ""


@dataclass(frozen=True)
class DeviceStatus:
    """A device as the controller sees it: `state` is ready, probing, busy, draining, lost or needs_upgrade."""

    device: Device
    device_class: str
    state: str
    last_seen_unix_ms: int = 0
    reason: str = ""


@dataclass(frozen=True)
class OrderStatus:
    """An order with all attempts that were received; `device` is where it was sent last."""

    order: Order
    state: OrderState
    device: str = ""
    attempts: tuple[Attempt, ...] = ()


@dataclass(frozen=True)
class Progress:
    """State of a run's orders at `revision`."""

    revision: int
    orders: tuple[OrderStatus, ...]


def remaining(order: Order, done: frozenset[int]) -> Order | None:
    """`order` without the launches whose index is in `done`; None if nothing is left."""
    if isinstance(order.work, LatencyWork):
        left = tuple(i for i in order.work.launches if i not in done)
        return replace(order, work=replace(order.work, launches=left)) if left else None
    return None if 0 in done else order

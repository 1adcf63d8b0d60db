from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FailureKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAILURE_KIND_UNSPECIFIED: _ClassVar[FailureKind]
    FAILURE_KIND_LOAD: _ClassVar[FailureKind]
    FAILURE_KIND_UNSUPPORTED_OP: _ClassVar[FailureKind]
    FAILURE_KIND_IO_CHANGED: _ClassVar[FailureKind]
    FAILURE_KIND_UNCHANGED: _ClassVar[FailureKind]
    FAILURE_KIND_OOM: _ClassVar[FailureKind]
    FAILURE_KIND_TIMEOUT: _ClassVar[FailureKind]
    FAILURE_KIND_CRASH: _ClassVar[FailureKind]
    FAILURE_KIND_NUMERIC: _ClassVar[FailureKind]
    FAILURE_KIND_TRANSFER: _ClassVar[FailureKind]
    FAILURE_KIND_DEVICE_LOST: _ClassVar[FailureKind]

class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_UNSPECIFIED: _ClassVar[Stage]
    STAGE_OPTIMIZE: _ClassVar[Stage]
    STAGE_TRANSFER: _ClassVar[Stage]
    STAGE_LOAD: _ClassVar[Stage]
    STAGE_RUN: _ClassVar[Stage]
    STAGE_ACTIVATE: _ClassVar[Stage]

class DeploymentState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEPLOYMENT_STATE_UNSPECIFIED: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_ORDERED: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_STAGED: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_COMMITTED: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_FAILED: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_ROLLED_BACK: _ClassVar[DeploymentState]
    DEPLOYMENT_STATE_SUPERSEDED: _ClassVar[DeploymentState]
FAILURE_KIND_UNSPECIFIED: FailureKind
FAILURE_KIND_LOAD: FailureKind
FAILURE_KIND_UNSUPPORTED_OP: FailureKind
FAILURE_KIND_IO_CHANGED: FailureKind
FAILURE_KIND_UNCHANGED: FailureKind
FAILURE_KIND_OOM: FailureKind
FAILURE_KIND_TIMEOUT: FailureKind
FAILURE_KIND_CRASH: FailureKind
FAILURE_KIND_NUMERIC: FailureKind
FAILURE_KIND_TRANSFER: FailureKind
FAILURE_KIND_DEVICE_LOST: FailureKind
STAGE_UNSPECIFIED: Stage
STAGE_OPTIMIZE: Stage
STAGE_TRANSFER: Stage
STAGE_LOAD: Stage
STAGE_RUN: Stage
STAGE_ACTIVATE: Stage
DEPLOYMENT_STATE_UNSPECIFIED: DeploymentState
DEPLOYMENT_STATE_ORDERED: DeploymentState
DEPLOYMENT_STATE_STAGED: DeploymentState
DEPLOYMENT_STATE_COMMITTED: DeploymentState
DEPLOYMENT_STATE_FAILED: DeploymentState
DEPLOYMENT_STATE_ROLLED_BACK: DeploymentState
DEPLOYMENT_STATE_SUPERSEDED: DeploymentState

class FileEntry(_message.Message):
    __slots__ = ("name", "digest", "bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    bytes: int
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class Artifact(_message.Message):
    __slots__ = ("digest", "bytes", "format", "files")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    digest: str
    bytes: int
    format: str
    files: _containers.RepeatedCompositeFieldContainer[FileEntry]
    def __init__(self, digest: _Optional[str] = ..., bytes: _Optional[int] = ..., format: _Optional[str] = ..., files: _Optional[_Iterable[_Union[FileEntry, _Mapping]]] = ...) -> None: ...

class TensorMap(_message.Message):
    __slots__ = ("source", "name", "permutation", "scale", "zero_point", "dtype")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PERMUTATION_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    ZERO_POINT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    source: str
    name: str
    permutation: _containers.RepeatedScalarFieldContainer[int]
    scale: float
    zero_point: int
    dtype: str
    def __init__(self, source: _Optional[str] = ..., name: _Optional[str] = ..., permutation: _Optional[_Iterable[int]] = ..., scale: _Optional[float] = ..., zero_point: _Optional[int] = ..., dtype: _Optional[str] = ...) -> None: ...

class Io(_message.Message):
    __slots__ = ("inputs", "outputs")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[TensorMap]
    outputs: _containers.RepeatedCompositeFieldContainer[TensorMap]
    def __init__(self, inputs: _Optional[_Iterable[_Union[TensorMap, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[TensorMap, _Mapping]]] = ...) -> None: ...

class OptionValue(_message.Message):
    __slots__ = ("flag", "integer", "real", "text")
    FLAG_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    REAL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    flag: bool
    integer: int
    real: float
    text: str
    def __init__(self, flag: bool = ..., integer: _Optional[int] = ..., real: _Optional[float] = ..., text: _Optional[str] = ...) -> None: ...

class Candidate(_message.Message):
    __slots__ = ("artifact", "runtime", "options", "io")
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: OptionValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[OptionValue, _Mapping]] = ...) -> None: ...
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    IO_FIELD_NUMBER: _ClassVar[int]
    artifact: Artifact
    runtime: str
    options: _containers.MessageMap[str, OptionValue]
    io: Io
    def __init__(self, artifact: _Optional[_Union[Artifact, _Mapping]] = ..., runtime: _Optional[str] = ..., options: _Optional[_Mapping[str, OptionValue]] = ..., io: _Optional[_Union[Io, _Mapping]] = ...) -> None: ...

class Capability(_message.Message):
    __slots__ = ("runtime", "provider", "version", "available", "reason", "formats", "options")
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: OptionValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[OptionValue, _Mapping]] = ...) -> None: ...
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FORMATS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    runtime: str
    provider: str
    version: str
    available: bool
    reason: str
    formats: _containers.RepeatedScalarFieldContainer[str]
    options: _containers.MessageMap[str, OptionValue]
    def __init__(self, runtime: _Optional[str] = ..., provider: _Optional[str] = ..., version: _Optional[str] = ..., available: bool = ..., reason: _Optional[str] = ..., formats: _Optional[_Iterable[str]] = ..., options: _Optional[_Mapping[str, OptionValue]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("kind", "detail", "stage")
    KIND_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    kind: FailureKind
    detail: str
    stage: Stage
    def __init__(self, kind: _Optional[_Union[FailureKind, str]] = ..., detail: _Optional[str] = ..., stage: _Optional[_Union[Stage, str]] = ...) -> None: ...

class Trace(_message.Message):
    __slots__ = ("quantity", "source", "n", "first", "low", "high", "last")
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    quantity: str
    source: str
    n: int
    first: float
    low: float
    high: float
    last: float
    def __init__(self, quantity: _Optional[str] = ..., source: _Optional[str] = ..., n: _Optional[int] = ..., first: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., last: _Optional[float] = ...) -> None: ...

class Conditions(_message.Message):
    __slots__ = ("traces", "others_cpu", "steal", "throttled", "settings", "unavailable", "others_cpu_peak", "waited")
    class SettingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class UnavailableEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TRACES_FIELD_NUMBER: _ClassVar[int]
    OTHERS_CPU_FIELD_NUMBER: _ClassVar[int]
    STEAL_FIELD_NUMBER: _ClassVar[int]
    THROTTLED_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    UNAVAILABLE_FIELD_NUMBER: _ClassVar[int]
    OTHERS_CPU_PEAK_FIELD_NUMBER: _ClassVar[int]
    WAITED_FIELD_NUMBER: _ClassVar[int]
    traces: _containers.RepeatedCompositeFieldContainer[Trace]
    others_cpu: float
    steal: float
    throttled: _containers.RepeatedScalarFieldContainer[str]
    settings: _containers.ScalarMap[str, str]
    unavailable: _containers.ScalarMap[str, str]
    others_cpu_peak: float
    waited: float
    def __init__(self, traces: _Optional[_Iterable[_Union[Trace, _Mapping]]] = ..., others_cpu: _Optional[float] = ..., steal: _Optional[float] = ..., throttled: _Optional[_Iterable[str]] = ..., settings: _Optional[_Mapping[str, str]] = ..., unavailable: _Optional[_Mapping[str, str]] = ..., others_cpu_peak: _Optional[float] = ..., waited: _Optional[float] = ...) -> None: ...

class Scenario(_message.Message):
    __slots__ = ("kind", "rate_per_s", "batch_sizes", "duration_ns")
    KIND_FIELD_NUMBER: _ClassVar[int]
    RATE_PER_S_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZES_FIELD_NUMBER: _ClassVar[int]
    DURATION_NS_FIELD_NUMBER: _ClassVar[int]
    kind: str
    rate_per_s: float
    batch_sizes: _containers.RepeatedScalarFieldContainer[int]
    duration_ns: int
    def __init__(self, kind: _Optional[str] = ..., rate_per_s: _Optional[float] = ..., batch_sizes: _Optional[_Iterable[int]] = ..., duration_ns: _Optional[int] = ...) -> None: ...

class Contender(_message.Message):
    __slots__ = ("key", "candidate")
    KEY_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    key: str
    candidate: Candidate
    def __init__(self, key: _Optional[str] = ..., candidate: _Optional[_Union[Candidate, _Mapping]] = ...) -> None: ...

class LatencyWork(_message.Message):
    __slots__ = ("contenders", "scenario", "inputs", "launches", "bursts", "burst_ns", "min_inferences", "seed", "warmup_ns", "fail_on_fallback")
    CONTENDERS_FIELD_NUMBER: _ClassVar[int]
    SCENARIO_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    LAUNCHES_FIELD_NUMBER: _ClassVar[int]
    BURSTS_FIELD_NUMBER: _ClassVar[int]
    BURST_NS_FIELD_NUMBER: _ClassVar[int]
    MIN_INFERENCES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    WARMUP_NS_FIELD_NUMBER: _ClassVar[int]
    FAIL_ON_FALLBACK_FIELD_NUMBER: _ClassVar[int]
    contenders: _containers.RepeatedCompositeFieldContainer[Contender]
    scenario: Scenario
    inputs: str
    launches: _containers.RepeatedScalarFieldContainer[int]
    bursts: int
    burst_ns: int
    min_inferences: int
    seed: int
    warmup_ns: int
    fail_on_fallback: bool
    def __init__(self, contenders: _Optional[_Iterable[_Union[Contender, _Mapping]]] = ..., scenario: _Optional[_Union[Scenario, _Mapping]] = ..., inputs: _Optional[str] = ..., launches: _Optional[_Iterable[int]] = ..., bursts: _Optional[int] = ..., burst_ns: _Optional[int] = ..., min_inferences: _Optional[int] = ..., seed: _Optional[int] = ..., warmup_ns: _Optional[int] = ..., fail_on_fallback: bool = ...) -> None: ...

class MemoryWork(_message.Message):
    __slots__ = ("contender", "inputs", "inferences")
    CONTENDER_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    INFERENCES_FIELD_NUMBER: _ClassVar[int]
    contender: Contender
    inputs: str
    inferences: int
    def __init__(self, contender: _Optional[_Union[Contender, _Mapping]] = ..., inputs: _Optional[str] = ..., inferences: _Optional[int] = ...) -> None: ...

class Reduction(_message.Message):
    __slots__ = ("kind", "output", "k")
    KIND_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    kind: str
    output: str
    k: int
    def __init__(self, kind: _Optional[str] = ..., output: _Optional[str] = ..., k: _Optional[int] = ...) -> None: ...

class AccuracyWork(_message.Message):
    __slots__ = ("contender", "shards", "reduction", "golden_samples", "output_bytes_limit")
    CONTENDER_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    REDUCTION_FIELD_NUMBER: _ClassVar[int]
    GOLDEN_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_BYTES_LIMIT_FIELD_NUMBER: _ClassVar[int]
    contender: Contender
    shards: _containers.RepeatedScalarFieldContainer[str]
    reduction: Reduction
    golden_samples: int
    output_bytes_limit: int
    def __init__(self, contender: _Optional[_Union[Contender, _Mapping]] = ..., shards: _Optional[_Iterable[str]] = ..., reduction: _Optional[_Union[Reduction, _Mapping]] = ..., golden_samples: _Optional[int] = ..., output_bytes_limit: _Optional[int] = ...) -> None: ...

class EnergyWork(_message.Message):
    __slots__ = ("contender", "inputs", "scenario", "source", "idle_ns", "window_ns")
    CONTENDER_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    SCENARIO_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    IDLE_NS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_NS_FIELD_NUMBER: _ClassVar[int]
    contender: Contender
    inputs: str
    scenario: Scenario
    source: str
    idle_ns: int
    window_ns: int
    def __init__(self, contender: _Optional[_Union[Contender, _Mapping]] = ..., inputs: _Optional[str] = ..., scenario: _Optional[_Union[Scenario, _Mapping]] = ..., source: _Optional[str] = ..., idle_ns: _Optional[int] = ..., window_ns: _Optional[int] = ...) -> None: ...

class ProfileWork(_message.Message):
    __slots__ = ("contender", "inputs", "inferences")
    CONTENDER_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    INFERENCES_FIELD_NUMBER: _ClassVar[int]
    contender: Contender
    inputs: str
    inferences: int
    def __init__(self, contender: _Optional[_Union[Contender, _Mapping]] = ..., inputs: _Optional[str] = ..., inferences: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("transfer_ns", "load_ns", "run_ns", "memory_bytes")
    TRANSFER_NS_FIELD_NUMBER: _ClassVar[int]
    LOAD_NS_FIELD_NUMBER: _ClassVar[int]
    RUN_NS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    transfer_ns: int
    load_ns: int
    run_ns: int
    memory_bytes: int
    def __init__(self, transfer_ns: _Optional[int] = ..., load_ns: _Optional[int] = ..., run_ns: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class Order(_message.Message):
    __slots__ = ("id", "run", "model", "device_class", "device", "limits", "latency", "memory", "accuracy", "energy", "profile", "window", "only_on")
    ID_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    ENERGY_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    ONLY_ON_FIELD_NUMBER: _ClassVar[int]
    id: str
    run: str
    model: str
    device_class: str
    device: str
    limits: Limits
    latency: LatencyWork
    memory: MemoryWork
    accuracy: AccuracyWork
    energy: EnergyWork
    profile: ProfileWork
    window: str
    only_on: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., run: _Optional[str] = ..., model: _Optional[str] = ..., device_class: _Optional[str] = ..., device: _Optional[str] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., latency: _Optional[_Union[LatencyWork, _Mapping]] = ..., memory: _Optional[_Union[MemoryWork, _Mapping]] = ..., accuracy: _Optional[_Union[AccuracyWork, _Mapping]] = ..., energy: _Optional[_Union[EnergyWork, _Mapping]] = ..., profile: _Optional[_Union[ProfileWork, _Mapping]] = ..., window: _Optional[str] = ..., only_on: _Optional[_Iterable[str]] = ...) -> None: ...

class BatchResult(_message.Message):
    __slots__ = ("batch_size", "n", "mean_ns", "p50_ns", "unavailable")
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    MEAN_NS_FIELD_NUMBER: _ClassVar[int]
    P50_NS_FIELD_NUMBER: _ClassVar[int]
    UNAVAILABLE_FIELD_NUMBER: _ClassVar[int]
    batch_size: int
    n: int
    mean_ns: float
    p50_ns: int
    unavailable: str
    def __init__(self, batch_size: _Optional[int] = ..., n: _Optional[int] = ..., mean_ns: _Optional[float] = ..., p50_ns: _Optional[int] = ..., unavailable: _Optional[str] = ...) -> None: ...

class ContenderResult(_message.Message):
    __slots__ = ("key", "n", "mean_ns", "p50_ns", "p90_ns", "p99_ns", "load_ns", "first_inference_ns", "warmup_inferences", "placement", "burst_p50_ns", "failure", "disturbed", "left_out", "chosen", "samples_per_s", "batches", "regime", "unsettled", "provider", "burst_min_ns")
    class PlacementEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class ChosenEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    KEY_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    MEAN_NS_FIELD_NUMBER: _ClassVar[int]
    P50_NS_FIELD_NUMBER: _ClassVar[int]
    P90_NS_FIELD_NUMBER: _ClassVar[int]
    P99_NS_FIELD_NUMBER: _ClassVar[int]
    LOAD_NS_FIELD_NUMBER: _ClassVar[int]
    FIRST_INFERENCE_NS_FIELD_NUMBER: _ClassVar[int]
    WARMUP_INFERENCES_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    BURST_P50_NS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    DISTURBED_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_S_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    REGIME_FIELD_NUMBER: _ClassVar[int]
    UNSETTLED_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    BURST_MIN_NS_FIELD_NUMBER: _ClassVar[int]
    key: str
    n: int
    mean_ns: float
    p50_ns: int
    p90_ns: int
    p99_ns: int
    load_ns: int
    first_inference_ns: int
    warmup_inferences: int
    placement: _containers.ScalarMap[str, int]
    burst_p50_ns: _containers.RepeatedScalarFieldContainer[int]
    failure: Failure
    disturbed: int
    left_out: int
    chosen: _containers.ScalarMap[str, str]
    samples_per_s: float
    batches: _containers.RepeatedCompositeFieldContainer[BatchResult]
    regime: str
    unsettled: int
    provider: str
    burst_min_ns: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, key: _Optional[str] = ..., n: _Optional[int] = ..., mean_ns: _Optional[float] = ..., p50_ns: _Optional[int] = ..., p90_ns: _Optional[int] = ..., p99_ns: _Optional[int] = ..., load_ns: _Optional[int] = ..., first_inference_ns: _Optional[int] = ..., warmup_inferences: _Optional[int] = ..., placement: _Optional[_Mapping[str, int]] = ..., burst_p50_ns: _Optional[_Iterable[int]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., disturbed: _Optional[int] = ..., left_out: _Optional[int] = ..., chosen: _Optional[_Mapping[str, str]] = ..., samples_per_s: _Optional[float] = ..., batches: _Optional[_Iterable[_Union[BatchResult, _Mapping]]] = ..., regime: _Optional[str] = ..., unsettled: _Optional[int] = ..., provider: _Optional[str] = ..., burst_min_ns: _Optional[_Iterable[int]] = ...) -> None: ...

class LatencyResult(_message.Message):
    __slots__ = ("contenders", "resident_together", "samples")
    CONTENDERS_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_TOGETHER_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    contenders: _containers.RepeatedCompositeFieldContainer[ContenderResult]
    resident_together: bool
    samples: str
    def __init__(self, contenders: _Optional[_Iterable[_Union[ContenderResult, _Mapping]]] = ..., resident_together: bool = ..., samples: _Optional[str] = ...) -> None: ...

class MemoryResult(_message.Message):
    __slots__ = ("key", "peak_rss_bytes", "pss_bytes", "reference_peak_rss_bytes", "reference_pss_bytes", "private_bytes", "reference_private_bytes", "accelerator_bytes", "accelerator", "model_file_bytes")
    KEY_FIELD_NUMBER: _ClassVar[int]
    PEAK_RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    PSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_PEAK_RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_PSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_PRIVATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_BYTES_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    MODEL_FILE_BYTES_FIELD_NUMBER: _ClassVar[int]
    key: str
    peak_rss_bytes: int
    pss_bytes: int
    reference_peak_rss_bytes: int
    reference_pss_bytes: int
    private_bytes: int
    reference_private_bytes: int
    accelerator_bytes: int
    accelerator: str
    model_file_bytes: int
    def __init__(self, key: _Optional[str] = ..., peak_rss_bytes: _Optional[int] = ..., pss_bytes: _Optional[int] = ..., reference_peak_rss_bytes: _Optional[int] = ..., reference_pss_bytes: _Optional[int] = ..., private_bytes: _Optional[int] = ..., reference_private_bytes: _Optional[int] = ..., accelerator_bytes: _Optional[int] = ..., accelerator: _Optional[str] = ..., model_file_bytes: _Optional[int] = ...) -> None: ...

class EnergyResult(_message.Message):
    __slots__ = ("key", "per_inference_uj", "low_uj", "high_uj", "inferences", "load_watts", "idle_watts", "duration_ns", "updates", "rate_hz", "source", "rail", "includes", "accuracy", "idle_subtracted", "unavailable")
    KEY_FIELD_NUMBER: _ClassVar[int]
    PER_INFERENCE_UJ_FIELD_NUMBER: _ClassVar[int]
    LOW_UJ_FIELD_NUMBER: _ClassVar[int]
    HIGH_UJ_FIELD_NUMBER: _ClassVar[int]
    INFERENCES_FIELD_NUMBER: _ClassVar[int]
    LOAD_WATTS_FIELD_NUMBER: _ClassVar[int]
    IDLE_WATTS_FIELD_NUMBER: _ClassVar[int]
    DURATION_NS_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    RATE_HZ_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    RAIL_FIELD_NUMBER: _ClassVar[int]
    INCLUDES_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    IDLE_SUBTRACTED_FIELD_NUMBER: _ClassVar[int]
    UNAVAILABLE_FIELD_NUMBER: _ClassVar[int]
    key: str
    per_inference_uj: float
    low_uj: float
    high_uj: float
    inferences: int
    load_watts: float
    idle_watts: float
    duration_ns: int
    updates: int
    rate_hz: float
    source: str
    rail: str
    includes: str
    accuracy: str
    idle_subtracted: bool
    unavailable: str
    def __init__(self, key: _Optional[str] = ..., per_inference_uj: _Optional[float] = ..., low_uj: _Optional[float] = ..., high_uj: _Optional[float] = ..., inferences: _Optional[int] = ..., load_watts: _Optional[float] = ..., idle_watts: _Optional[float] = ..., duration_ns: _Optional[int] = ..., updates: _Optional[int] = ..., rate_hz: _Optional[float] = ..., source: _Optional[str] = ..., rail: _Optional[str] = ..., includes: _Optional[str] = ..., accuracy: _Optional[str] = ..., idle_subtracted: bool = ..., unavailable: _Optional[str] = ...) -> None: ...

class OperatorTime(_message.Message):
    __slots__ = ("name", "kind", "provider", "mean_ns", "calls", "kernel")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    MEAN_NS_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    provider: str
    mean_ns: float
    calls: int
    kernel: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., provider: _Optional[str] = ..., mean_ns: _Optional[float] = ..., calls: _Optional[int] = ..., kernel: _Optional[str] = ...) -> None: ...

class ProfileResult(_message.Message):
    __slots__ = ("key", "operators", "placement", "whole_ns", "source", "unavailable", "provider")
    class PlacementEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    KEY_FIELD_NUMBER: _ClassVar[int]
    OPERATORS_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    WHOLE_NS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    UNAVAILABLE_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    key: str
    operators: _containers.RepeatedCompositeFieldContainer[OperatorTime]
    placement: _containers.ScalarMap[str, int]
    whole_ns: float
    source: str
    unavailable: str
    provider: str
    def __init__(self, key: _Optional[str] = ..., operators: _Optional[_Iterable[_Union[OperatorTime, _Mapping]]] = ..., placement: _Optional[_Mapping[str, int]] = ..., whole_ns: _Optional[float] = ..., source: _Optional[str] = ..., unavailable: _Optional[str] = ..., provider: _Optional[str] = ...) -> None: ...

class AccuracyResult(_message.Message):
    __slots__ = ("key", "outputs", "golden", "n")
    KEY_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    GOLDEN_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    key: str
    outputs: str
    golden: str
    n: int
    def __init__(self, key: _Optional[str] = ..., outputs: _Optional[str] = ..., golden: _Optional[str] = ..., n: _Optional[int] = ...) -> None: ...

class Attempt(_message.Message):
    __slots__ = ("order", "index", "device", "started_unix_ms", "duration_ns", "conditions", "latency", "memory", "accuracy", "failure", "energy", "profile")
    ORDER_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STARTED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    DURATION_NS_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    ENERGY_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    order: str
    index: int
    device: str
    started_unix_ms: int
    duration_ns: int
    conditions: Conditions
    latency: LatencyResult
    memory: MemoryResult
    accuracy: AccuracyResult
    failure: Failure
    energy: EnergyResult
    profile: ProfileResult
    def __init__(self, order: _Optional[str] = ..., index: _Optional[int] = ..., device: _Optional[str] = ..., started_unix_ms: _Optional[int] = ..., duration_ns: _Optional[int] = ..., conditions: _Optional[_Union[Conditions, _Mapping]] = ..., latency: _Optional[_Union[LatencyResult, _Mapping]] = ..., memory: _Optional[_Union[MemoryResult, _Mapping]] = ..., accuracy: _Optional[_Union[AccuracyResult, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., energy: _Optional[_Union[EnergyResult, _Mapping]] = ..., profile: _Optional[_Union[ProfileResult, _Mapping]] = ...) -> None: ...

class Golden(_message.Message):
    __slots__ = ("digest", "relative_tolerance", "absolute_tolerance")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    RELATIVE_TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    ABSOLUTE_TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    digest: str
    relative_tolerance: float
    absolute_tolerance: float
    def __init__(self, digest: _Optional[str] = ..., relative_tolerance: _Optional[float] = ..., absolute_tolerance: _Optional[float] = ...) -> None: ...

class Deployment(_message.Message):
    __slots__ = ("id", "device", "model", "generation", "variant", "candidate", "activate", "golden")
    ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_FIELD_NUMBER: _ClassVar[int]
    ACTIVATE_FIELD_NUMBER: _ClassVar[int]
    GOLDEN_FIELD_NUMBER: _ClassVar[int]
    id: str
    device: str
    model: str
    generation: int
    variant: str
    candidate: Candidate
    activate: str
    golden: Golden
    def __init__(self, id: _Optional[str] = ..., device: _Optional[str] = ..., model: _Optional[str] = ..., generation: _Optional[int] = ..., variant: _Optional[str] = ..., candidate: _Optional[_Union[Candidate, _Mapping]] = ..., activate: _Optional[str] = ..., golden: _Optional[_Union[Golden, _Mapping]] = ...) -> None: ...

class DeploymentStatus(_message.Message):
    __slots__ = ("id", "device", "model", "generation", "state", "digest", "path", "reason", "previous")
    ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    id: str
    device: str
    model: str
    generation: int
    state: DeploymentState
    digest: str
    path: str
    reason: str
    previous: str
    def __init__(self, id: _Optional[str] = ..., device: _Optional[str] = ..., model: _Optional[str] = ..., generation: _Optional[int] = ..., state: _Optional[_Union[DeploymentState, str]] = ..., digest: _Optional[str] = ..., path: _Optional[str] = ..., reason: _Optional[str] = ..., previous: _Optional[str] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("name", "id", "host", "labels", "fingerprint", "capabilities", "threads", "emulated", "agent_version", "metrics_address")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class FingerprintEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    EMULATED_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    METRICS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    name: str
    id: str
    host: str
    labels: _containers.ScalarMap[str, str]
    fingerprint: _containers.ScalarMap[str, str]
    capabilities: _containers.RepeatedCompositeFieldContainer[Capability]
    threads: int
    emulated: bool
    agent_version: str
    metrics_address: str
    def __init__(self, name: _Optional[str] = ..., id: _Optional[str] = ..., host: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., fingerprint: _Optional[_Mapping[str, str]] = ..., capabilities: _Optional[_Iterable[_Union[Capability, _Mapping]]] = ..., threads: _Optional[int] = ..., emulated: bool = ..., agent_version: _Optional[str] = ..., metrics_address: _Optional[str] = ...) -> None: ...

"""Shape of the fleet file. Unknown keys and wrong types are errors: what a user writes is never ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from edgefarm.model import Verdict

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Objective = Literal["latency_p50", "latency_p90", "latency_p99", "throughput", "energy", "memory", "size"]


class Section(BaseModel):
    """A mapping of the file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class MetricFunction(Section):
    """The user's own metric: `file.py:function`."""

    function: Annotated[str, StringConstraints(pattern=r"^[^:]+\.py:[A-Za-z_]\w*$")]
    higher_is_better: bool = True


class ModelSection(Section):
    """`model`."""

    name: Name | None = None
    path: str
    alternatives: list[str] = []


class Data(Section):
    """`data`; paths are relative to the file."""

    calibration: str | None = None
    evaluation: str
    selection: str | None = None
    train: str | None = None
    metric: Literal["top1", "top5", "mae", "mse", "cosine", "agreement"] | MetricFunction = "agreement"


class Local(Section):
    """`devices[].local`: an agent that the command starts itself. `runtimes`: by default the one that the model's format belongs to."""

    runtimes: Annotated[list[str], Field(min_length=1)] | None = None
    threads: Threads = 1


class Constraints(Section):
    """Limits in the units that the names say; `accuracy_drop` is absolute, against the baseline on the same device."""

    accuracy_drop: NotNegative | None = None
    accuracy_min: Annotated[float, Field(allow_inf_nan=False)] | None = None
    memory_mib: Positive | None = None
    size_mib: Positive | None = None
    load_ms: Positive | None = None
    latency_p50_ms: Positive | None = None
    latency_p90_ms: Positive | None = None
    latency_p99_ms: Positive | None = None
    throughput_per_s: Positive | None = None
    energy_mj: Positive | None = None


class DeviceEntry(Section):
    """One entry of `devices`."""

    name: Name | None = None
    local: Local | None = None
    selector: dict[str, str | list[str]] | None = None
    count: Annotated[int, Field(ge=1)] | None = None
    labels: dict[Name, str] = {}
    constraints: Constraints | None = None
    objective: Objective | None = None
    runtimes: list[str] | None = None
    threads: Annotated[list[Threads], Field(min_length=1)] | None = None


class OptimizeBudget(Section):
    """`optimize.budget`."""

    variants: Annotated[int, Field(ge=0)] = 40
    minutes: Positive = 30


class Optimize(Section):
    """`optimize`; the optimizer checks the recipes themselves."""

    recipes: Literal["auto"] | list[dict[str, Any]] = "auto"
    budget: OptimizeBudget = OptimizeBudget()


class ScenarioSection(Section):
    """`measure.scenario`."""

    kind: Literal["paced", "offline", "sustained", "server"] = "paced"
    rate_per_s: Positive | None = None
    batch_sizes: Annotated[list[Annotated[int, Field(ge=1, le=65536)]], Field(min_length=1)] | None = None
    duration_s: Positive | None = None


class MeasureBudget(Section):
    """`measure.budget`."""

    minutes_per_device: Positive = 5


class Measure(Section):
    """`measure`."""

    scenario: ScenarioSection = ScenarioSection()
    threads: Literal["auto"] | Annotated[list[Threads], Field(min_length=1)] = "auto"
    live: Literal["wait", "pause", "share"] = "wait"
    window: str | None = None
    where: dict[str, str | list[str]] | None = None
    on_fallback: Literal["flag", "fail"] = "flag"
    accept: Annotated[list[Literal["stable", "noisy", "throttled", "interfered", "unsteady"]], Field(min_length=1)] = [Verdict.STABLE.value]
    budget: MeasureBudget = MeasureBudget()

    @property
    def fails_on_fallback(self) -> bool:
        """Whether nodes that ran elsewhere than asked for are a failure."""
        return self.on_fallback == "fail"


class Select(Section):
    """`select`."""

    objective: Objective = "latency_p50"
    constraints: Constraints = Constraints()
    confidence: Annotated[float, Field(gt=0.5, lt=1)] | None = None
    per: Annotated[str, StringConstraints(pattern=r"^(device|class|label:.+)$")] = "device"
    max_variants: Annotated[int, Field(ge=1)] | None = None


class Canary(Section):
    """`rollout.canary`."""

    per: str = "variant"
    count: Annotated[int, Field(ge=1)] = 1


class Health(Section):
    """`rollout.health`."""

    window_s: Positive = 60
    min_requests: Annotated[int, Field(ge=0)] = 0
    on_no_data: Literal["probe", "hold"] = "probe"
    max_latency_ratio: Positive = 1.2
    max_error_rate: NotNegative = 0.0
    check: str | None = None


class Rollout(Section):
    """`rollout`."""

    activate: Literal["serve", "file", "none"] = "file"
    canary: Canary = Canary()
    waves: list[str] = ["25%", "100%"]
    window: str | None = None
    switch: Literal["overlap", "stop_first"] = "overlap"
    health: Health = Health()


class Watch(Section):
    """`watch`."""

    on_regression: Literal["rollback", "propose"] = "propose"
    notify: str | None = None


class FleetFile(Section):
    """The whole file."""

    version: Literal[1]
    name: Name
    labels: dict[str, str] = {}
    controller: str | None = None
    model: ModelSection
    data: Data
    devices: Annotated[list[DeviceEntry], Field(min_length=1)]
    optimize: Optimize = Optimize()
    measure: Measure = Measure()
    select: Select = Select()
    rollout: Rollout = Rollout()
    watch: Watch = Watch()

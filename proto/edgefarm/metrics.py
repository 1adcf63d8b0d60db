"""The metrics of a device, by name, and how a page of them is written.

One table for both sides: the agent's own page, and the controller, which relays a device's families and takes none that it does not
know. Names and labels follow https://prometheus.io/docs/practices/naming/.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgefarm.model import FailureKind, Family

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as PrometheusMetric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Known beforehand: a counter that begins with its first event hides that event from increase().
OUTCOMES = ("ok", *(kind.value for kind in FailureKind if kind is not FailureKind.UNSPECIFIED))
DIRECTIONS = ("fetch", "push")
ROLLBACK_REASONS = ("user",)


@dataclass(frozen=True)
class Metric:
    """One family of a page. `labels`: those beside the device's name; a counter's name ends with `_total`."""

    text: str
    labels: tuple[str, ...] = ()

    def kind(self, name: str) -> str:
        """Prometheus' word for it."""
        return "counter" if name.endswith("_total") else "gauge"


DEVICE_METRICS: Mapping[str, Metric] = {
    "edgefarm_device_up": Metric("1 while the agent runs, 0 once it is lost."),
    "edgefarm_build_info": Metric("Version of the agent, always 1.", ("version",)),
    "edgefarm_device_emulated": Metric("1 if the device's processor is emulated: its latencies are no real device's. Else 0."),
    "edgefarm_agent_memory_bytes": Metric("Resident memory of the agent, without its runner."),
    "edgefarm_disk_free_bytes": Metric("Free bytes where the agent keeps its state."),
    "edgefarm_disk_size_bytes": Metric("Size of the disk where the agent keeps its state."),
    "edgefarm_certificate_expiry_timestamp_seconds": Metric("When the device's certificate ends, as Unix time."),
    "edgefarm_trials_total": Metric("Attempts that ended since the agent started, by outcome.", ("outcome",)),
    "edgefarm_trial_latency_seconds": Metric("Latency of the contender measured last.", ("model", "stat")),
    "edgefarm_trial_memory_bytes": Metric("Peak RSS of the contender measured last.", ("model",)),
    "edgefarm_trial_energy_joules": Metric("Energy above idle of one inference of the contender measured last.", ("model",)),
    "edgefarm_artifact_transfer_bytes_total": Metric("Bytes of artifacts that moved since the agent started.", ("direction",)),
    "edgefarm_deployment_rollbacks_total": Metric("Deployments that went back since the agent started.", ("reason",)),
    "edgefarm_deployment_info": Metric("What runs, always 1.", ("model", "variant", "runtime", "digest", "generation")),
    "edgefarm_collector_success": Metric("1 if the collector gave a value.", ("collector",)),
    "edgefarm_temperature_celsius": Metric("Temperature of a zone.", ("zone",)),
    "edgefarm_cpu_frequency_hertz": Metric("Present frequency of a core.", ("cpu",)),
    "edgefarm_throttled": Metric("1 while the device throttles for this reason.", ("reason",)),
    "edgefarm_throttle_events_total": Metric("Thermal events counted by the processor.", ("source",)),
    "edgefarm_load1": Metric("Runnable processes, averaged over a minute."),
    "edgefarm_memory_available_bytes": Metric("Memory that new processes can use."),
    "edgefarm_memory_total_bytes": Metric("Memory of the device."),
    "edgefarm_cpu_busy_seconds_total": Metric("CPU time spent, over all cores."),
    "edgefarm_cpu_steal_seconds_total": Metric("CPU time that the hypervisor took, over all cores."),
    "edgefarm_power_watts": Metric("Power that a rail of the device takes.", ("rail",)),
    "edgefarm_energy_joules_total": Metric("Energy that a rail took, by the hardware's own counter, which may wrap.", ("rail",)),
    "edgefarm_battery_charge_ratio": Metric("Charge of a battery, 0 to 1.", ("battery",)),
}


def render(table: Mapping[str, Metric], pages: Iterable[tuple[str, Iterable[Family]]]) -> bytes:
    """The text that Prometheus reads.

    Args:
        table: what may be on it; other families are left out.
        pages: (device, its families); an empty name: series that are no device's.
    """
    from prometheus_client import generate_latest

    return generate_latest(_Collected(table, pages))  # of a registry, it uses `collect` only


class _Collected:
    def __init__(self, table: Mapping[str, Metric], pages: Iterable[tuple[str, Iterable[Family]]]) -> None:
        self._table = table
        self._families: dict[str, list[tuple[str, Family]]] = {}
        for device, families in pages:
            for family in families:
                self._families.setdefault(family.name, []).append((device, family))

    def collect(self) -> Iterator[PrometheusMetric]:
        from prometheus_client.metrics_core import Metric as PrometheusMetric

        for name, metric in self._table.items():
            found = self._families.get(name, [])
            samples = [({"device": device} if device else {}, s) for device, family in found for s in family.series]
            if samples:
                written = PrometheusMetric(name.removesuffix("_total"), metric.text, metric.kind(name))
                for owner, series in samples:
                    written.add_sample(name, {**owner, **series.labels}, series.value)
                yield written

"""What the agent counts, and the page that Prometheus reads (served only if asked for, so that the library is imported only then)."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agent.ledger import Statement
from agent.sensors import Absent, Observation, Reading
from edgefarm import __version__
from edgefarm.errors import Busy, UserError
from edgefarm.model import Failure, LatencyResult, MemoryResult, Outcome
from edgefarm.statistics import percentile_floor

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


# stat of a latency -> least number of inferences that carry it
_STATS = {"p50": 1, "p90": percentile_floor(0.9), "p99": percentile_floor(0.99)}


class Counters:
    """Counts since the start of the process, and what the last trials showed. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._trials: Counter[str] = Counter()
        self._transfers: Counter[str] = Counter()
        self._rollbacks: Counter[str] = Counter()
        self._latency_s: dict[str, Mapping[str, float]] = {}
        self._memory_bytes: dict[str, int] = {}

    def add_trial(self, model: str, outcome: Outcome) -> None:
        """One attempt of `model` ended: it counts as ok, or as the kind of its failure; its last contender's numbers are kept."""
        with self._lock:
            self._trials[outcome.kind.value if isinstance(outcome, Failure) else "ok"] += 1
            if isinstance(outcome, MemoryResult):
                self._memory_bytes[model] = outcome.peak_rss_bytes
            elif isinstance(outcome, LatencyResult):
                for result in (r for r in outcome.contenders if r.failure is None):
                    self._latency_s[model] = {s: getattr(result, f"{s}_ns") / 1e9 for s, least in _STATS.items() if result.n >= least}

    def add_transfer(self, direction: str, count: int) -> None:
        """`count` bytes moved; `direction`: fetch or push."""
        with self._lock:
            self._transfers[direction] += count

    def add_rollback(self, reason: str) -> None:
        """A deployment went back; `reason`: user (`edge-agent rollback`)."""
        with self._lock:
            self._rollbacks[reason] += 1

    def snapshot(self) -> tuple[Mapping[str, int], Mapping[str, int], Mapping[str, int]]:
        """(trials by outcome, transferred bytes by direction, rollbacks by reason)."""
        with self._lock:
            return dict(self._trials), dict(self._transfers), dict(self._rollbacks)

    def last_trials(self) -> tuple[Mapping[str, Mapping[str, float]], Mapping[str, int]]:
        """(seconds by stat by model, peak RSS by model) of the last trial that gave such a number."""
        with self._lock:
            return dict(self._latency_s), dict(self._memory_bytes)


# quantity of a sensor -> (name on the page, label of its source, help)
_SENSED: dict[str, tuple[str, str, str]] = {
    "temperature_celsius": ("edgefarm_temperature_celsius", "zone", "Temperature of a zone."),
    "frequency_hertz": ("edgefarm_cpu_frequency_hertz", "cpu", "Present frequency of a core."),
    "throttled": ("edgefarm_throttled", "reason", "1 while the device throttles for this reason."),
    "load_1m": ("edgefarm_load1", "", "Runnable processes, averaged over a minute."),
    "memory_available_bytes": ("edgefarm_memory_available_bytes", "", "Memory that new processes can use."),
    "memory_total_bytes": ("edgefarm_memory_total_bytes", "", "Memory of the device."),
    "cpu_busy_seconds_total": ("edgefarm_cpu_busy_seconds", "", "CPU time spent, over all cores."),
    "cpu_steal_seconds_total": ("edgefarm_cpu_steal_seconds", "", "CPU time that the hypervisor took, over all cores."),
    "throttle_events_total": ("edgefarm_throttle_events", "source", "Thermal events counted by the processor."),
    "battery_charge_ratio": ("edgefarm_battery_charge_ratio", "battery", "Charge of a battery, 0 to 1."),
}


class Page:
    """A collector for prometheus_client: everything that one agent knows, labelled with its device.

    Args:
        device: the device's name.
        counters: what was counted.
        sensors: what each sensor says now.
        deployments: what runs, by model.
        disk_free: free bytes where the agent keeps its state.
    """

    def __init__(
        self, device: str, counters: Counters, sensors: Callable[[], Mapping[str, Sequence[Observation]]],
        deployments: Callable[[], Mapping[str, Statement]], disk_free: Callable[[], int],
    ) -> None:  # fmt: skip
        self._device, self._counters, self._sensors = device, counters, sensors
        self._deployments, self._disk_free = deployments, disk_free

    def collect(self) -> Iterator[Metric]:
        """The metric families, for one scrape."""
        yield from self._counted()
        yield from self._tried()
        yield from self._sensed()
        yield from self._deployed()

    def _counted(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        up = GaugeMetricFamily("edgefarm_device_up", "1 while the agent runs.", labels=["device"])
        up.add_metric([self._device], 1)
        build = GaugeMetricFamily("edgefarm_build_info", "Versions, always 1.", labels=["device", "version"])
        build.add_metric([self._device, __version__], 1)
        free = GaugeMetricFamily("edgefarm_disk_free_bytes", "Free bytes where the agent keeps its state.", labels=["device"])
        free.add_metric([self._device], self._disk_free())
        yield from (up, build, free)
        trials, transfers, rollbacks = self._counters.snapshot()
        for name, text, label, values in (
            ("edgefarm_trials", "Attempts that ended, by outcome.", "outcome", trials),
            ("edgefarm_artifact_transfer_bytes", "Bytes of artifacts that moved.", "direction", transfers),
            ("edgefarm_deployment_rollbacks", "Deployments that went back.", "reason", rollbacks),
        ):
            family = CounterMetricFamily(name, text, labels=["device", label])
            for value, count in sorted(values.items()):
                family.add_metric([self._device, value], count)
            yield family

    def _tried(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import GaugeMetricFamily

        latency = GaugeMetricFamily(
            "edgefarm_trial_latency_seconds", "Latency of the contender measured last.", labels=["device", "model", "stat"]
        )
        memory = GaugeMetricFamily("edgefarm_trial_memory_bytes", "Peak RSS of the contender measured last.", labels=["device", "model"])
        seconds, peaks = self._counters.last_trials()
        for model, stats in seconds.items():
            for stat, value in stats.items():
                latency.add_metric([self._device, model, stat], value)
        for model, peak in peaks.items():
            memory.add_metric([self._device, model], peak)
        yield from (latency, memory)

    def _sensed(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

        success = GaugeMetricFamily("edgefarm_collector_success", "1 if the collector gave a value.", labels=["device", "collector"])
        families: dict[str, Any] = {}
        for collector, observations in sorted(self._sensors().items()):
            success.add_metric([self._device, collector], 0 if all(isinstance(o, Absent) for o in observations) else 1)
            for seen in observations:
                if not isinstance(seen, Reading) or seen.quantity not in _SENSED:
                    continue
                name, label, text = _SENSED[seen.quantity]
                kind = CounterMetricFamily if seen.quantity.endswith("_total") else GaugeMetricFamily
                family = families.setdefault(name, kind(name, text, labels=["device", label] if label else ["device"]))
                family.add_metric([self._device, seen.source] if label else [self._device], seen.value)
        yield success
        yield from families.values()

    def _deployed(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import GaugeMetricFamily

        labels = ["device", "model", "variant", "runtime", "digest", "generation"]
        family = GaugeMetricFamily("edgefarm_deployment_info", "What runs, always 1.", labels=labels)
        for model, runs in self._deployments().items():
            family.add_metric([self._device, model, runs.variant, runs.runtime, runs.digest, str(runs.generation)], 1)
        yield family


class MetricsServer:
    """Serves a page on HOST:PORT; port 0 takes a free one.

    Raises:
        UserError: the address is malformed or not on this machine.
        Busy: the port is taken.
    """

    def __init__(self, address: str, page: Page) -> None:
        from prometheus_client import CollectorRegistry, start_http_server

        host, port = parse_address(address)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(page)
        try:
            self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        except socket.gaierror as error:
            raise UserError(f"--metrics {address}: {error.strerror}") from error
        except OSError as error:
            raise Busy(f"--metrics {address}: {error.strerror}; take another port, or 0 for a free one") from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_port}/metrics"

    def close(self) -> None:
        """Gives the port back."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def parse_address(address: str) -> tuple[str, int]:
    """(host, port) of `HOST:PORT`, `[V6]:PORT` or `:PORT` (loopback). Raises UserError."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit() or int(port) > 65535:
        raise UserError(f"--metrics {address}: expected HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)

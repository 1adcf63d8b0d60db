"""What the agent counts, and the families of its metrics page (`edgefarm.metrics` says what each one is)."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from agent.ledger import Statement
from agent.sensors import Absent, Observation, Reading, collect_by_sensor
from edgefarm import __version__
from edgefarm.errors import EdgefarmError
from edgefarm.metrics import DIRECTIONS, OUTCOMES, ROLLBACK_REASONS
from edgefarm.model import EnergyResult, Failure, Family, LatencyResult, MemoryResult, Outcome, Series

T = TypeVar("T")
_MOST_MODELS = 32  # whose last trial is remembered


class Counters:
    """Counts since the start of the process, and what the last trials showed. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._trials = dict.fromkeys(OUTCOMES, 0)
        self._transfers = dict.fromkeys(DIRECTIONS, 0)
        self._rollbacks = dict.fromkeys(ROLLBACK_REASONS, 0)
        self._latency_s: dict[str, Mapping[str, float]] = {}
        self._memory_bytes: dict[str, int] = {}
        self._energy_j: dict[str, float] = {}

    def add_trial(self, model: str, outcome: Outcome) -> None:
        """One attempt of `model` ended: it counts as ok, or as the kind of its failure; its last contender's numbers are kept."""
        with self._lock:
            self._trials[outcome.kind.value if isinstance(outcome, Failure) else "ok"] += 1
            if isinstance(outcome, MemoryResult):
                _keep(self._memory_bytes, model, outcome.peak_rss_bytes)
            elif isinstance(outcome, EnergyResult):
                if not outcome.unavailable:
                    _keep(self._energy_j, model, outcome.per_inference_uj / 1e6)
            elif isinstance(outcome, LatencyResult):
                for result in (r for r in outcome.contenders if r.failure is None):
                    _keep(self._latency_s, model, {s: getattr(result, f"{s}_ns") / 1e9 for s, n in _floors().items() if result.n >= n})

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

    def last_energies(self) -> Mapping[str, float]:
        """Joules of one inference by model, of the last trial that gave them."""
        with self._lock:
            return dict(self._energy_j)


@functools.cache
def _floors() -> Mapping[str, int]:
    """Stat of a latency -> least number of inferences that carry it."""
    from edgefarm.statistics import percentile_floor  # only where something is measured: it costs memory

    return {"p50": 1, "p90": percentile_floor(0.9), "p99": percentile_floor(0.99)}


def _keep(last: dict[str, T], model: str, value: T) -> None:
    """Remembers `value` as the newest; the oldest models are forgotten, so that the page stays small."""
    last.pop(model, None)
    last[model] = value
    while len(last) > _MOST_MODELS:
        del last[next(iter(last))]


# quantity of a sensor -> (name on the page, label of its source)
_SENSED: dict[str, tuple[str, str]] = {
    "temperature_celsius": ("edgefarm_temperature_celsius", "zone"),
    "frequency_hertz": ("edgefarm_cpu_frequency_hertz", "cpu"),
    "throttled": ("edgefarm_throttled", "reason"),
    "load_1m": ("edgefarm_load1", ""),
    "memory_available_bytes": ("edgefarm_memory_available_bytes", ""),
    "memory_total_bytes": ("edgefarm_memory_total_bytes", ""),
    "cpu_busy_seconds_total": ("edgefarm_cpu_busy_seconds_total", ""),
    "cpu_steal_seconds_total": ("edgefarm_cpu_steal_seconds_total", ""),
    "throttle_events_total": ("edgefarm_throttle_events_total", "source"),
    "power_watts": ("edgefarm_power_watts", "rail"),
    "energy_joules_total": ("edgefarm_energy_joules_total", "rail"),
    "battery_charge_ratio": ("edgefarm_battery_charge_ratio", "battery"),
}


class Page:
    """Everything that one agent knows of itself, as families. What could not be read is not there.

    Args:
        counters: what was counted.
        state: the folder where the agent keeps its state.
        deployments: what runs, by model; like `expiry`, it may raise OSError or EdgefarmError.
        memory_bytes: resident memory of the agent, 0 if unknown.
        expiry: Unix time at which the device's certificate ends; None: it has none.
        sensors: what each sensor says now.
        emulated: whether the device's processor is.
    """

    def __init__(
        self, counters: Counters, state: Path, deployments: Callable[[], Mapping[str, Statement]], memory_bytes: Callable[[], int],
        expiry: Callable[[], float | None] = lambda: None, sensors: Callable[[], Mapping[str, Sequence[Observation]]] = collect_by_sensor,
        emulated: bool = False,
    ) -> None:  # fmt: skip
        self._counters, self._state, self._deployments = counters, state, deployments
        self._memory_bytes, self._expiry, self._sensors, self._emulated = memory_bytes, expiry, sensors, emulated

    def families(self) -> list[Family]:
        """All families, by name, as of now."""
        gathered = _Gathered()
        gathered.add("edgefarm_device_up", 1)
        gathered.add("edgefarm_build_info", 1, version=__version__)
        gathered.add("edgefarm_device_emulated", float(self._emulated))
        if (memory := self._memory_bytes()) > 0:
            gathered.add("edgefarm_agent_memory_bytes", memory)
        self._add_counts(gathered)
        self._add_sensed(gathered)
        for collector, add in (
            ("state", self._add_disk), ("deployments", self._add_deployments), ("certificate", self._add_certificate)
        ):  # fmt: skip
            try:
                add(gathered)
                gathered.add("edgefarm_collector_success", 1, collector=collector)
            except (OSError, EdgefarmError):
                gathered.add("edgefarm_collector_success", 0, collector=collector)
        return gathered.families()

    def _add_counts(self, gathered: _Gathered) -> None:
        trials, transfers, rollbacks = self._counters.snapshot()
        for outcome, count in trials.items():
            gathered.add("edgefarm_trials_total", count, outcome=outcome)
        for direction, count in transfers.items():
            gathered.add("edgefarm_artifact_transfer_bytes_total", count, direction=direction)
        for reason, count in rollbacks.items():
            gathered.add("edgefarm_deployment_rollbacks_total", count, reason=reason)
        seconds, peaks = self._counters.last_trials()
        for model, stats in seconds.items():
            for stat, value in stats.items():
                gathered.add("edgefarm_trial_latency_seconds", value, model=model, stat=stat)
        for model, peak in peaks.items():
            gathered.add("edgefarm_trial_memory_bytes", peak, model=model)
        for model, joules in self._counters.last_energies().items():
            gathered.add("edgefarm_trial_energy_joules", joules, model=model)

    def _add_sensed(self, gathered: _Gathered) -> None:
        for collector, observations in self._sensors().items():
            readable = not all(isinstance(o, Absent) for o in observations)
            gathered.add("edgefarm_collector_success", float(readable), collector=collector)
            for seen in observations:
                if isinstance(seen, Reading) and seen.quantity in _SENSED:
                    name, label = _SENSED[seen.quantity]
                    gathered.add(name, seen.value, **({label: seen.source} if label else {}))

    def _add_disk(self, gathered: _Gathered) -> None:
        figures = os.statvfs(self._state)
        gathered.add("edgefarm_disk_free_bytes", figures.f_bavail * figures.f_frsize)
        gathered.add("edgefarm_disk_size_bytes", figures.f_blocks * figures.f_frsize)

    def _add_certificate(self, gathered: _Gathered) -> None:
        if (expiry := self._expiry()) is not None:
            gathered.add("edgefarm_certificate_expiry_timestamp_seconds", expiry)

    def _add_deployments(self, gathered: _Gathered) -> None:
        for model, runs in self._deployments().items():
            what = {"variant": runs.variant, "runtime": runs.runtime, "digest": runs.digest, "generation": str(runs.generation)}
            gathered.add("edgefarm_deployment_info", 1, model=model, **what)


class _Gathered:
    """Families under construction. Two series with the same labels would make Prometheus refuse the page: the last one counts."""

    def __init__(self) -> None:
        self._families: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}

    def add(self, name: str, value: float, **labels: str) -> None:
        self._families.setdefault(name, {})[tuple(labels.items())] = float(value)

    def families(self) -> list[Family]:
        return [
            Family(name, tuple(Series(dict(labels), value) for labels, value in series.items()))
            for name, series in sorted(self._families.items())
        ]

"""The user's constraints against what is known of a candidate. Pure.

Latency, memory, energy and throughput count at the conservative end of their interval; accuracy at its point estimate, or at the
interval's end where the user asked for a confidence.
"""

from __future__ import annotations

import math

from controller.evidence import Entry, Evidence, Group
from controller.verdicts import Latency, believed, latency, statistic
from edgefarm.statistics import Interval

_CLEARLY = 1.2  # a single screening launch rejects only what is this far beyond a limit
_ROUNDING = 1e-12
_PERCENTILES = {"latency_p50_ms": "p50", "latency_p90_ms": "p90", "latency_p99_ms": "p99"}


def broken(group: Group, entry: Entry, evidence: Evidence, *, certainly: bool = False) -> str:
    """The first constraint that what is known breaks, as text; empty if none does (yet).

    `certainly`: only if the optimistic end of an interval breaks it too, i.e. more launches would hardly mend it.
    """
    for name, limit in group.constraints.items():
        if reason := _check(name, limit, group, entry, evidence, certainly):
            return reason
    return ""


def accuracy_excess(group: Group, entry: Entry, evidence: Evidence) -> tuple[str, float] | None:
    """The accuracy limit that is broken most, or kept with least room, and by how much (at most 0: it holds); None: none is known."""
    scores = evidence.scores.get(entry.key)
    if scores is None:
        return None
    score, found = scores.selection, []
    if (limit := group.constraints.get("accuracy_min")) is not None:
        found.append(("accuracy_min", (limit - score.value) * (1 if scores.higher_is_better else -1)))
    drop = score.drop if group.confidence is None else score.drop_high
    if (limit := group.constraints.get("accuracy_drop")) is not None and drop is not None:
        found.append(("accuracy_drop", 0.0 - limit if entry.baseline else drop - limit - _ROUNDING))
    return max(found, key=lambda f: f[1], default=None)


def unproved(group: Group, entry: Entry, evidence: Evidence) -> str:
    """The first constraint that what is known does not show to hold, as text; empty if all are shown."""
    summary = _latency(group, entry, evidence)
    percentile = f"{group.objective}_ms"
    for name in (*group.constraints, *([percentile] if percentile in _PERCENTILES else [])):
        if name.startswith("accuracy") and entry.key not in evidence.scores:
            return f"{name}: accuracy was not measured"
        if name == "memory_mib" and entry.key not in evidence.memory:
            return f"{name}: memory was not measured"
        if name == "energy_mj" and (reason := no_energy(group, entry, evidence)):
            return f"{name}: {reason}"
        if name in _PERCENTILES or name in ("load_ms", "throughput_per_s"):
            if summary is None:
                return f"{name}: latency was not measured"
            if name in _PERCENTILES and getattr(summary, _PERCENTILES[name]) is None:
                return f"{name}: {summary.n} inferences are too few to state it"
    reason = no_energy(group, entry, evidence) if group.objective == "energy" else ""
    return f"energy: {reason}" if reason else ""


def memory_bytes(entry: Entry, evidence: Evidence) -> int | None:
    """Peak RSS that the model adds to a runner without one."""
    result = evidence.memory.get(entry.key)
    return None if result is None else max(0, result.peak_rss_bytes - result.reference_peak_rss_bytes)


def energy_uj(entry: Entry, evidence: Evidence) -> Interval | None:
    """Energy per inference in microjoules; None where it is not known with its error."""
    result = evidence.energy.get(entry.key)
    if result is None or result.unavailable:
        return None
    interval = Interval(result.per_inference_uj, result.low_uj, result.high_uj, result.inferences)
    return interval if interval.known and math.isfinite(interval.value) and interval.low <= interval.value <= interval.high else None


def no_energy(group: Group, entry: Entry, evidence: Evidence) -> str:
    """Why the energy of a candidate is not known; empty if it is."""
    if energy_uj(entry, evidence) is not None:
        return ""
    result = evidence.energy.get(entry.key)
    if result is not None:
        return result.unavailable or "the error of its energy is not known"
    if not group.power:
        return "no device of this class has a power source that can be read: 'edge-agent probe' on it says why"
    return "energy was not measured"


def _latency(group: Group, entry: Entry, evidence: Evidence) -> Latency | None:
    launches = evidence.launches.get(entry.key)
    return latency(believed(launches, group.scenario.kind)[0]) if launches else None


def _check(name: str, limit: float, group: Group, entry: Entry, evidence: Evidence, certainly: bool) -> str:
    if name.startswith("accuracy"):
        return _accuracy(name, limit, group, entry, evidence)
    if name == "size_mib":
        return _above(name, entry.size_bytes / 2**20, limit)
    if name == "memory_mib":
        used = memory_bytes(entry, evidence)
        return "" if used is None else _above(name, used / 2**20, limit)
    if name == "energy_mj":
        used_uj = energy_uj(entry, evidence)
        return "" if used_uj is None else _above(name, (used_uj.low if certainly else used_uj.high) / 1e3, limit)
    summary = _latency(group, entry, evidence)
    if summary is None:
        return _screened(name, limit, group, entry, evidence)
    if name == "throughput_per_s":
        rate = _end(summary.throughput_per_s, upper=certainly)
        return f"{name} {rate:.4g} < {limit:g}" if rate < limit else ""
    interval = summary.load if name == "load_ms" else getattr(summary, _PERCENTILES[name])
    return "" if interval is None else _above(name, _end(interval, upper=not certainly) / 1e6, limit)


def _accuracy(name: str, limit: float, group: Group, entry: Entry, evidence: Evidence) -> str:
    scores = evidence.scores.get(entry.key)
    if scores is None:
        return ""
    score = scores.selection
    if name == "accuracy_min":
        worse = not (score.value >= limit if scores.higher_is_better else score.value <= limit)
        return (
            f"accuracy {score.value:.4g} {'<' if scores.higher_is_better else '>'} {limit:g} ({scores.metric}, n={score.n})"
            if worse
            else ""
        )
    if entry.baseline:
        return ""
    if group.confidence is not None and score.drop_high is None:
        return f"accuracy_drop: no interval at n={score.n}: {score.reason}"
    drop = score.drop if group.confidence is None else score.drop_high or 0.0
    text = _above(name, drop, limit)
    return f"{text} ({scores.metric}, n={score.n})" if text else ""


def _tells(group: Group) -> bool:
    """Whether screening runs under the load that limits are about: what arrives at random, or lasts for minutes, is screened without."""
    return group.scenario.kind in ("paced", "offline")


def _screened(name: str, limit: float, group: Group, entry: Entry, evidence: Evidence) -> str:
    launch = evidence.screened.get(entry.key)
    if launch is None or name == "latency_p99_ms" or not _tells(group):
        return ""
    result = launch.result
    if name == "throughput_per_s":
        rate = 1e9 / statistic(result, "throughput")
        return f"{name} {rate:.4g} < {limit:g} (screened)" if rate * _CLEARLY < limit else ""
    value = {"load_ms": result.load_ns, "latency_p50_ms": result.p50_ns, "latency_p90_ms": result.p90_ns}[name] / 1e6
    return f"{_above(name, value, limit)} (screened)" if value > limit * _CLEARLY else ""


def _above(name: str, value: float, limit: float) -> str:
    return "" if value <= limit + _ROUNDING else f"{name} {value:.4g} > {limit:g}"


def _end(interval: Interval, *, upper: bool) -> float:
    end = interval.high if upper else interval.low
    return end if math.isfinite(end) and end > 0 else interval.value

"""Measured numbers as JSON values: each with its interval and n, or null and the reason under `unavailable`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from controller.evidence import Launch
from controller.verdicts import Latency
from edgefarm.model import Conditions, ContenderResult, EnergyResult, MemoryResult, ProfileResult, Scenario, fallen_back
from edgefarm.statistics import Interval, geometric_interval, percentile_floor

TOP_OPERATORS = 10  # that a report names; the rest is summed


def finite(value: float | None) -> float | None:
    """`value`, or None where it is infinite or NaN: JSON has neither."""
    return value if value is not None and math.isfinite(value) else None


def ends(interval: Interval) -> list[float] | None:
    """Both ends, None where n carries none."""
    return [interval.low, interval.high] if interval.known else None


def estimate(interval: Interval, name: str, unavailable: dict[str, str]) -> dict[str, Any]:
    """In whole units, with its interval."""
    if not interval.known:
        unavailable[f"{name}.ci95"] = "one launch carries no interval"
    return {"value": round(interval.value), "ci95": [round(e) for e in ends(interval) or []] or None}


def ratio(interval: Interval, name: str, unavailable: dict[str, str]) -> dict[str, Any]:
    """A ratio or a rate, unrounded, with its interval."""
    if not interval.known:
        unavailable[f"{name}.ci95"] = "one launch carries no interval"
    return {"ratio": interval.value, "ci95": ends(interval)}


def latency(summary: Latency, name: str, unavailable: dict[str, str]) -> dict[str, Any]:
    """A latency summary; percentiles that n does not carry are null."""
    document: dict[str, Any] = {"n": summary.n, "launches": summary.launches}
    document["p50"] = estimate(summary.p50, f"{name}.p50", unavailable)
    for part, interval, q in (("p90", summary.p90, 0.9), ("p99", summary.p99, 0.99)):
        document[part] = None if interval is None else estimate(interval, f"{name}.{part}", unavailable)
        if interval is None:
            unavailable[f"{name}.{part}"] = f"n = {summary.n}: at least {percentile_floor(q)} inferences are needed to state it"
    document["disturbed"], document["left_out"] = summary.disturbed, summary.left_out
    document["first_inference"] = estimate(summary.first_inference, f"{name}.first_inference", unavailable)
    return document


def scenario(asked: Scenario) -> dict[str, Any]:
    """How load was applied; what the kind does not have is left out."""
    known: dict[str, Any] = {"kind": asked.kind}
    if asked.rate_per_s is not None:
        known["rate_per_s"] = asked.rate_per_s
    if asked.batch_sizes:
        known["batch_sizes"] = list(asked.batch_sizes)
    if asked.duration_ns:
        known["duration_s"] = asked.duration_ns / 1e9
    return known


def throughput(results: Sequence[ContenderResult], unavailable: dict[str, str]) -> dict[str, Any]:
    """Samples per second under the scenario, over at least one launch; `batches` and `best_batch` under `offline`."""
    rate = geometric_interval([_rate(r) for r in results])
    if not rate.known:
        unavailable["throughput.ci95"] = "one launch carries no interval"
    document: dict[str, Any] = {"per_s": rate.value, "ci95": ends(rate), "launches": len(results)}
    if batches := _batches(results):
        able = [b for b in batches if b["per_s"] is not None]
        document["batches"] = batches
        document["best_batch"] = max(able, key=lambda b: float(b["per_s"]))["batch_size"] if able else None
        if not able:
            unavailable["throughput.best_batch"] = "it ran with none of the batch sizes"
    return document


def _rate(result: ContenderResult) -> float:
    return result.samples_per_s or 1e9 / max(1.0, result.mean_ns)


def _batches(results: Sequence[ContenderResult]) -> list[dict[str, Any]]:
    """Of each batch size over all launches; `per_s` is null where the model can't be run with it, which `unavailable` says."""
    shown = []
    for size in dict.fromkeys(b.batch_size for r in results for b in r.batches):
        known = [b for r in results for b in r.batches if b.batch_size == size]
        ran = [b for b in known if b.n]
        rate = geometric_interval([size * 1e9 / max(1.0, b.mean_ns) for b in ran]) if ran else None
        shown.append({
            "batch_size": size,
            "n": sum(b.n for b in ran),
            "per_s": rate.value if rate else None,
            "ci95": ends(rate) if rate else None,
            "unavailable": "" if ran else next((b.unavailable for b in known if b.unavailable), "it was not run"),
        })  # fmt: skip
    return shown


def regimes(results: Sequence[ContenderResult]) -> dict[str, Any]:
    """How samples went over time: launches by regime, and samples that came before it was settled (not among the n)."""
    return {"launches": dict(Counter(r.regime or "not judged" for r in results)), "unsettled": sum(r.unsettled for r in results)}


def memory(result: MemoryResult | None, unavailable: dict[str, str]) -> dict[str, Any] | None:
    """Of a fresh runner with the model above the same runner without one; the accelerator's and the model file's apart."""
    if result is None:
        unavailable["memory"] = "measured for the baseline and the winner only, unless a limit or the objective is about memory"
        return None
    if result.accelerator_bytes is None:
        unavailable["memory.accelerator_bytes"] = "no accelerator that tells its memory"
    private = result.private_bytes - result.reference_private_bytes if result.private_bytes else None
    if private is None:
        unavailable["memory.private_bytes"] = "the agent did not tell it"
    return {
        "peak_rss_bytes": max(0, result.peak_rss_bytes - result.reference_peak_rss_bytes),
        "pss_bytes": max(0, result.pss_bytes - result.reference_pss_bytes),
        "private_bytes": None if private is None else max(0, private),
        "accelerator_bytes": result.accelerator_bytes,
        "accelerator": result.accelerator,
        "model_file_bytes": result.model_file_bytes,
        "runner_peak_rss_bytes": result.reference_peak_rss_bytes,
        "n": 1,
    }


def energy(result: EnergyResult | None, launches: Sequence[Launch], unavailable: dict[str, str]) -> dict[str, Any] | None:
    """Per inference, with what was read and how."""
    if result is None or result.unavailable:
        unavailable["energy"] = result.unavailable if result else _no_energy(launches)
        return None
    return {
        "per_inference_uj": result.per_inference_uj,
        "ci95": [result.low_uj, result.high_uj],
        "n": result.inferences,
        "source": result.source,
        "rail": result.rail,
        "includes": result.includes,
        "accuracy": result.accuracy,
        "rate_hz": result.rate_hz,
        "updates": result.updates,
        "load_watts": result.load_watts,
        "idle_watts": result.idle_watts,
        "idle_subtracted": result.idle_subtracted,
        "window_s": result.duration_ns / 1e9,
    }


def _no_energy(launches: Sequence[Launch]) -> str:
    said = next((x.conditions.unavailable for x in launches), {})
    return said.get("energy") or said.get("power_watts") or "not measured: no limit or objective asks for it"


def placement(seen: Sequence[Launch], profiled: ProfileResult | None) -> tuple[dict[str, int] | None, dict[str, Any] | None]:
    """Nodes per provider; and, where nodes ran elsewhere than asked, what was asked, how many did, and their share of the time."""
    result = next((x.result for x in reversed(seen) if x.result.placement), None)
    nodes = dict(result.placement) if result else None
    provider = result.provider if result else profiled.provider if profiled else ""
    elsewhere = fallen_back(provider, nodes or (profiled.placement if profiled else {}))
    if not elsewhere:
        return nodes, None
    return nodes, {"asked": provider, "nodes": elsewhere, "time_share": profiled.fallback_share if profiled else None}


def profile(result: ProfileResult | None, unavailable: dict[str, str]) -> dict[str, Any] | None:
    """The operators that take longest, with their share of all operators' time."""
    if result is None:
        unavailable["profile"] = "taken of the winner and the baseline only"
        return None
    if result.unavailable or not result.operators:
        unavailable["profile"] = result.unavailable or "the runtime named no operator"
        return None
    total = math.fsum(o.mean_ns for o in result.operators) or 1.0
    top = result.operators[:TOP_OPERATORS]
    return {
        "source": result.source,
        "whole_ns": round(result.whole_ns),
        "operators": [
            {"name": o.name, "kind": o.kind, "provider": o.provider, "mean_ns": round(o.mean_ns), "calls": o.calls,
             "share": round(o.mean_ns / total, 4)}
            for o in top
        ],
        "others_share": round(math.fsum(o.mean_ns for o in result.operators[TOP_OPERATORS:]) / total, 4),
    }  # fmt: skip


def conditions(seen: Sequence[Conditions]) -> dict[str, Any]:
    """What surrounded all of these launches; empty for none."""
    if not seen:
        return {}
    others, steal = [c.others_cpu for c in seen if c.others_cpu is not None], [c.steal for c in seen if c.steal is not None]
    peaks = [c.others_cpu_peak for c in seen if c.others_cpu_peak is not None]
    waited = [c.waited for c in seen if c.waited is not None]
    return {
        "launches": len(seen),
        "others_cpu": sum(others) / len(others) if others else None,
        "others_cpu_peak": max(peaks, default=None),
        "waited": sum(waited) / len(waited) if waited else None,
        "steal": sum(steal) / len(steal) if steal else None,
        "throttled": sorted({r for c in seen for r in c.throttled}),
        "traces": _traces(seen),
        "settings": dict(seen[-1].settings),
        "settings_changed": _changed([c.settings for c in seen]),
        "unavailable": dict(seen[-1].unavailable),
    }


def _traces(seen: Sequence[Conditions]) -> dict[str, dict[str, float]]:
    """`temperature_celsius/cpu-thermal` -> its range, and how many readings that rests on."""
    traces: dict[str, dict[str, float]] = {}
    for trace in (t for c in seen for t in c.traces):
        known = traces.setdefault(f"{trace.quantity}/{trace.source}", {"low": trace.low, "high": trace.high, "n": 0})
        known["low"], known["high"] = min(known["low"], trace.low), max(known["high"], trace.high)
        known["n"] += trace.n
    return traces


def _changed(settings: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Settings that were not equal in all launches, with all their values."""
    values = {key: list(dict.fromkeys(s.get(key, "absent") for s in settings)) for key in dict.fromkeys(k for s in settings for k in s)}
    return {key: known for key, known in values.items() if len(known) > 1}

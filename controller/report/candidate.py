"""One candidate as the report shows it. A value that is not known is null, with the reason under `unavailable`."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from controller.evidence import Evidence, Group, Launch, Score, Scores
from controller.selection import Judgement
from edgefarm.model import Conditions
from edgefarm.statistics import Interval, percentile_floor


@dataclass(frozen=True)
class Origin:
    """Where a variant comes from: its lineage as JSON values, and the file that `reproduce` names."""

    lineage: Sequence[Mapping[str, Any]] = ()
    file: str = ""


def candidate(judgement: Judgement, group: Group, evidence: Evidence, origin: Origin, device: str) -> dict[str, Any]:
    """The JSON form of one judged candidate."""
    entry, key = judgement.entry, judgement.entry.key
    unavailable: dict[str, str] = {}
    launches = evidence.launches.get(key, ())
    screened = evidence.screened.get(key)
    seen: Sequence[Launch] = launches or ([screened] if screened else [])
    document: dict[str, Any] = {
        "variant": entry.variant,
        "runtime": entry.candidate.runtime,
        "options": dict(entry.candidate.options),
        "artifact": _artifact(entry.candidate.artifact),
        "io": _io(entry.candidate.io),
        "lineage": [dict(step) for step in origin.lineage],
        "accuracy": _accuracy(evidence.scores.get(key), unavailable, judgement),
        "latency_ns": _latency(judgement, unavailable),
        "screening": _screening(screened),
        "speedup_vs_baseline": _speedup(judgement, unavailable),
        "load_ns": _interval(judgement.latency.load) if judgement.latency else None,
        "memory": _memory(key, evidence, unavailable),
        "energy": None,
        "placement": _placement(seen, unavailable),
        "scenario": {"kind": "paced"},
        "verdict": judgement.verdict.value if judgement.verdict else None,
        "verdict_detail": judgement.verdict_detail,
        "conditions": _conditions([x.conditions for x in seen]),
        "measured_on": sorted({x.device for x in seen}) if len({x.device for x in seen}) > 1 else (seen[0].device if seen else None),
        "measured_at": _utc(max(x.at_unix_ms for x in seen)) if seen else None,
        "unavailable": unavailable,
        "reproduce": _reproduce(judgement, origin),
        "feasible": judgement.feasible,
        "rejected": judgement.rejected or None,
        "pareto": judgement.pareto,
    }
    unavailable["energy"] = _no_energy(seen)
    if judgement.verdict is None:
        unavailable["verdict"] = "not compared"
    return document


def _artifact(artifact: Any) -> dict[str, Any]:
    return {
        "digest": artifact.digest,
        "bytes": artifact.bytes,
        "format": artifact.format,
        "files": [asdict(f) for f in artifact.files],
    }


def _io(io: Any) -> dict[str, Any] | None:
    if io is None:
        return None

    def side(tensors: Any) -> list[dict[str, Any]]:
        return [{**asdict(t), "permutation": list(t.permutation) or None} for t in tensors]

    return {"inputs": side(io.inputs), "outputs": side(io.outputs)}


def finite(value: float | None) -> float | None:
    """`value`, or None where it is infinite or NaN: JSON has neither."""
    return value if value is not None and math.isfinite(value) else None


def _ends(interval: Interval, sign: float = 1.0) -> list[float] | None:
    return sorted([sign * interval.low, sign * interval.high]) if interval.known else None


def _interval(interval: Interval) -> dict[str, Any]:
    return {"value": round(interval.value), "ci95": [round(e) for e in (_ends(interval) or [])] or None}


def _accuracy(scores: Scores | None, unavailable: dict[str, str], judgement: Judgement) -> dict[str, Any] | None:
    if scores is None:
        unavailable["accuracy"] = f"not evaluated: {judgement.rejected}" if judgement.rejected else "not evaluated"
        return None
    document = _score(scores.evaluation, unavailable)
    return {
        "metric": scores.metric,
        **document,
        "split": "evaluation",
        "selected_on_same_data": scores.same_data,
        "selection": {**_score(scores.selection, {}), "split": "selection"},
    }


def _score(score: Score, unavailable: dict[str, str]) -> dict[str, Any]:
    if score.difference is None:
        unavailable["accuracy.difference_ci95"] = score.reason or "the metric gives no value per sample"
    return {
        "value": finite(score.value),
        "baseline": finite(score.baseline),
        "n": score.n,
        "difference_ci95": _ends(score.difference) if score.difference else None,
        "resolvable_drop": finite(score.resolvable_drop),
        "samples_needed": score.samples_needed,
    }


def _latency(judgement: Judgement, unavailable: dict[str, str]) -> dict[str, Any] | None:
    summary = judgement.latency
    if summary is None:
        unavailable["latency_ns"] = f"not compared: {judgement.rejected}"
        return None
    document: dict[str, Any] = {"n": summary.n, "launches": summary.launches, "p50": _interval(summary.p50)}
    for name, interval, q in (("p90", summary.p90, 0.9), ("p99", summary.p99, 0.99)):
        document[name] = None if interval is None else _interval(interval)
        if interval is None:
            unavailable[f"latency_ns.{name}"] = f"n = {summary.n}: at least {percentile_floor(q)} inferences are needed to state it"
    document["disturbed"], document["left_out"] = summary.disturbed, summary.left_out
    document["first_inference"] = _interval(summary.first_inference)
    return document


def _screening(launch: Launch | None) -> dict[str, Any] | None:
    if launch is None:
        return None
    ratio = launch.reference.p50_ns / max(1, launch.result.p50_ns)
    return {"p50_ns": launch.result.p50_ns, "baseline_p50_ns": launch.reference.p50_ns, "n": launch.result.n, "speedup": round(ratio, 4)}


def _speedup(judgement: Judgement, unavailable: dict[str, str]) -> dict[str, Any] | None:
    if judgement.speedup is None:
        unavailable["speedup_vs_baseline"] = "not compared"
        return None
    if not judgement.speedup.known:
        unavailable["speedup_vs_baseline.ci95"] = "one launch carries no interval"
    return {"ratio": judgement.speedup.value, "ci95": _ends(judgement.speedup)}


def _memory(key: str, evidence: Evidence, unavailable: dict[str, str]) -> dict[str, Any] | None:
    result = evidence.memory.get(key)
    if result is None:
        unavailable["memory"] = "measured for the compared candidates only"
        return None
    return {
        "peak_rss_bytes": max(0, result.peak_rss_bytes - result.reference_peak_rss_bytes),
        "pss_bytes": max(0, result.pss_bytes - result.reference_pss_bytes),
        "runner_peak_rss_bytes": result.reference_peak_rss_bytes,
    }


def _placement(launches: Sequence[Launch], unavailable: dict[str, str]) -> dict[str, int] | None:
    placement = next((dict(x.result.placement) for x in reversed(launches) if x.result.placement), None)
    if placement is None:
        unavailable["placement"] = "the runtime did not say which provider ran which node" if launches else "not measured"
    return placement


def _conditions(conditions: Sequence[Conditions]) -> dict[str, Any]:
    if not conditions:
        return {}
    others = [c.others_cpu for c in conditions if c.others_cpu is not None]
    steal = [c.steal for c in conditions if c.steal is not None]
    traces: dict[str, dict[str, float]] = {}
    for trace in (t for c in conditions for t in c.traces):
        known = traces.setdefault(f"{trace.quantity}/{trace.source}", {"low": trace.low, "high": trace.high})
        known["low"], known["high"] = min(known["low"], trace.low), max(known["high"], trace.high)
    return {
        "others_cpu": sum(others) / len(others) if others else None,
        "steal": sum(steal) / len(steal) if steal else None,
        "throttled": sorted({r for c in conditions for r in c.throttled}),
        "traces": traces,
        "settings": dict(conditions[-1].settings),
        "unavailable": dict(conditions[-1].unavailable),
    }


def _no_energy(launches: Sequence[Launch]) -> str:
    said = next((x.conditions.unavailable for x in launches), {})
    return said.get("energy") or said.get("power_watts") or "no power sensor"


def _reproduce(judgement: Judgement, origin: Origin) -> str | None:
    if not origin.file:
        return None
    candidate_ = judgement.entry.candidate
    words = ["edge-agent", "bench", origin.file, "--runtime", candidate_.runtime]
    if threads := candidate_.options.get("threads"):
        words += ["--threads", str(threads)]
    return shlex.join(words)


def _utc(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc(unix_ms: int) -> str | None:
    """RFC 3339 in UTC, to the second; None for 0."""
    return _utc(unix_ms) if unix_ms else None

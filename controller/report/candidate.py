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
        "note": entry.note,
        "runtime": entry.candidate.runtime,
        "options": dict(entry.candidate.options),
        "chosen": next((dict(x.result.chosen) for x in reversed(seen) if x.result.chosen), {}),
        "artifact": _artifact(entry.candidate.artifact),
        "io": _io(entry.candidate.io),
        "lineage": [dict(step) for step in origin.lineage],
        "accuracy": _accuracy(evidence.scores.get(key), judgement, unavailable),
        "latency_ns": _latency(judgement, unavailable),
        "screening": _screening(screened, judgement, unavailable),
        "speedup_vs_baseline": _speedup(judgement, unavailable),
        "load_ns": _load(judgement, unavailable),
        "memory": _memory(key, evidence, unavailable),
        "energy": None,
        "placement": _placement(seen, judgement, unavailable),
        "scenario": {"kind": "paced"},
        "verdict": _verdict(judgement, unavailable),
        "verdict_detail": judgement.verdict_detail,
        "conditions": _conditions([x.conditions for x in seen]),
        **_measured(seen, judgement, unavailable),
        "unavailable": unavailable,
        "reproduce": _reproduce(judgement, origin, unavailable),
        "feasible": judgement.feasible,
        "rejected": judgement.rejected or None,
        "pareto": judgement.pareto,
    }
    unavailable["energy"] = _no_energy(seen)
    return document


def _not(done: str, judgement: Judgement) -> str:
    """A reason such as `not compared`, with what spoke against the candidate."""
    return f"not {done}: {judgement.rejected}" if judgement.rejected else f"not {done}"


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
        return [{**asdict(t), "permutation": list(t.permutation) or None, "dtype": t.dtype or None} for t in tensors]

    return {"inputs": side(io.inputs), "outputs": side(io.outputs)}


def finite(value: float | None) -> float | None:
    """`value`, or None where it is infinite or NaN: JSON has neither."""
    return value if value is not None and math.isfinite(value) else None


def _ends(interval: Interval, sign: float = 1.0) -> list[float] | None:
    return sorted([sign * interval.low, sign * interval.high]) if interval.known else None


def _interval(interval: Interval, name: str, unavailable: dict[str, str]) -> dict[str, Any]:
    if not interval.known:
        unavailable[f"{name}.ci95"] = "one launch carries no interval"
    return {"value": round(interval.value), "ci95": [round(e) for e in (_ends(interval) or [])] or None}


def _accuracy(scores: Scores | None, judgement: Judgement, unavailable: dict[str, str]) -> dict[str, Any] | None:
    if scores is None:
        unavailable["accuracy"] = _not("evaluated", judgement)
        return None
    document = _score(scores.evaluation, "accuracy", unavailable)
    return {
        "metric": scores.metric,
        **document,
        "split": "evaluation",
        "selected_on_same_data": scores.same_data,
        "selection": {**_score(scores.selection, "accuracy.selection", unavailable), "split": "selection"},
    }


def _score(score: Score, name: str, unavailable: dict[str, str]) -> dict[str, Any]:
    """`samples_needed` is null where the samples suffice."""
    document = {
        "value": finite(score.value),
        "baseline": finite(score.baseline),
        "n": score.n,
        "difference_ci95": _ends(score.difference) if score.difference else None,
        "resolvable_drop": finite(score.resolvable_drop),
        "samples_needed": score.samples_needed,
    }
    for part in ("value", "baseline"):
        if document[part] is None:
            unavailable[f"{name}.{part}"] = f"no finite number: {getattr(score, part)}"
    whole = math.isfinite(score.value) and math.isfinite(score.baseline)
    for part in ("difference_ci95", "resolvable_drop"):
        if document[part] is None:
            why = score.reason or ("the metric gives no value per sample" if score.difference is None else f"{score.n} samples are too few")
            unavailable[f"{name}.{part}"] = why if whole else "the metric gave no finite number"
    return document


def _latency(judgement: Judgement, unavailable: dict[str, str]) -> dict[str, Any] | None:
    summary = judgement.latency
    if summary is None:
        unavailable["latency_ns"] = _not("compared", judgement)
        return None
    document: dict[str, Any] = {"n": summary.n, "launches": summary.launches}
    document["p50"] = _interval(summary.p50, "latency_ns.p50", unavailable)
    for name, interval, q in (("p90", summary.p90, 0.9), ("p99", summary.p99, 0.99)):
        document[name] = None if interval is None else _interval(interval, f"latency_ns.{name}", unavailable)
        if interval is None:
            unavailable[f"latency_ns.{name}"] = f"n = {summary.n}: at least {percentile_floor(q)} inferences are needed to state it"
    document["disturbed"], document["left_out"] = summary.disturbed, summary.left_out
    document["first_inference"] = _interval(summary.first_inference, "latency_ns.first_inference", unavailable)
    return document


def _load(judgement: Judgement, unavailable: dict[str, str]) -> dict[str, Any] | None:
    if judgement.latency is None:
        unavailable["load_ns"] = _not("compared", judgement)
        return None
    return _interval(judgement.latency.load, "load_ns", unavailable)


def _verdict(judgement: Judgement, unavailable: dict[str, str]) -> str | None:
    if judgement.verdict is None:
        unavailable["verdict"] = _not("compared", judgement)
        return None
    return judgement.verdict.value


def _measured(launches: Sequence[Launch], judgement: Judgement, unavailable: dict[str, str]) -> dict[str, Any]:
    """Where and when; devices of one class share trials."""
    if not launches:
        unavailable["measured_on"] = unavailable["measured_at"] = _not("measured", judgement)
    return {
        "measured_on": launches[0].device if launches else None,
        "measured_on_all": sorted({x.device for x in launches}),
        "measured_at": _utc(max(x.at_unix_ms for x in launches)) if launches else None,
    }


def _screening(launch: Launch | None, judgement: Judgement, unavailable: dict[str, str]) -> dict[str, Any] | None:
    if launch is None:
        unavailable["screening"] = _not("screened", judgement)
        return None
    ratio = launch.reference.p50_ns / max(1, launch.result.p50_ns)
    return {"p50_ns": launch.result.p50_ns, "baseline_p50_ns": launch.reference.p50_ns, "n": launch.result.n, "speedup": round(ratio, 4)}


def _speedup(judgement: Judgement, unavailable: dict[str, str]) -> dict[str, Any] | None:
    if judgement.speedup is None:
        unavailable["speedup_vs_baseline"] = _not("compared", judgement)
        return None
    if not judgement.speedup.known:
        unavailable["speedup_vs_baseline.ci95"] = "one launch carries no interval"
    return {"ratio": judgement.speedup.value, "ci95": _ends(judgement.speedup)}


def _memory(key: str, evidence: Evidence, unavailable: dict[str, str]) -> dict[str, Any] | None:
    result = evidence.memory.get(key)
    if result is None:
        unavailable["memory"] = "measured for the baseline and the winner only, unless a limit or the objective is about memory"
        return None
    return {
        "peak_rss_bytes": max(0, result.peak_rss_bytes - result.reference_peak_rss_bytes),
        "pss_bytes": max(0, result.pss_bytes - result.reference_pss_bytes),
        "runner_peak_rss_bytes": result.reference_peak_rss_bytes,
    }


def _placement(launches: Sequence[Launch], judgement: Judgement, unavailable: dict[str, str]) -> dict[str, int] | None:
    placement = next((dict(x.result.placement) for x in reversed(launches) if x.result.placement), None)
    if placement is None:
        silent = "the runtime did not say which provider ran which node"
        unavailable["placement"] = silent if launches else _not("measured", judgement)
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


def _reproduce(judgement: Judgement, origin: Origin, unavailable: dict[str, str]) -> str | None:
    if not origin.file:
        unavailable["reproduce"] = "the file of this variant is not known any more; its digest is under 'artifact'"
        return None
    candidate_ = judgement.entry.candidate
    words = ["edge-agent", "bench", origin.file, "--runtime", candidate_.runtime]
    for name, value in sorted(candidate_.options.items(), key=lambda option: (option[0] != "threads", option[0])):
        text = str(value).lower() if isinstance(value, bool) else str(value)
        words += ["--threads", text] if name == "threads" else ["--option", f"{name}={text}"]
    return shlex.join(words)


def _utc(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def utc(unix_ms: int) -> str | None:
    """RFC 3339 in UTC, to the second; None for 0."""
    return _utc(unix_ms) if unix_ms else None

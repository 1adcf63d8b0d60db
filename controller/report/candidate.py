"""One candidate as the report shows it. A value that is not known is null, with the reason under `unavailable`."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from controller.evidence import Evidence, Group, Launch, Score, Scores
from controller.report import measured
from controller.report.measured import finite
from controller.report.times import utc
from controller.selection import Judgement
from controller.verdicts import believed
from edgefarm.model import Scenario

__all__ = ["Origin", "candidate", "utc"]


@dataclass(frozen=True)
class Origin:
    """Where a variant comes from: its lineage as JSON values, and the file that `reproduce` names."""

    lineage: Sequence[Mapping[str, Any]] = ()
    file: str = ""


def candidate(judgement: Judgement, group: Group, evidence: Evidence, origin: Origin, device: str) -> dict[str, Any]:
    """The JSON form of one judged candidate."""
    entry, key = judgement.entry, judgement.entry.key
    unavailable: dict[str, str] = {}
    launches, _ = believed(evidence.launches.get(key, ()), group.scenario.kind)
    screened = evidence.screened.get(key)
    seen: Sequence[Launch] = launches or ([screened] if screened else [])
    if not launches:
        unavailable["regime"] = _not("compared", judgement)
    placed, fallback = measured.placement(seen, evidence.profiles.get(key))
    if placed is None:
        unavailable["placement"] = "the runtime did not say which provider ran which node" if seen else _not("measured", judgement)
    if fallback is None:
        unavailable["fallback"] = "every node ran where it was asked to, or nothing was asked" if placed else unavailable["placement"]
    elif fallback["time_share"] is None:
        unavailable["fallback.time_share"] = "no profile was taken"
    return {
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
        "throughput": _throughput(launches, judgement, unavailable),
        "regime": measured.regimes([x.result for x in launches]) if launches else None,
        "screening": _screening(screened, judgement, unavailable),
        "speedup_vs_baseline": _speedup(judgement, unavailable),
        "load_ns": _load(judgement, unavailable),
        "memory": measured.memory(evidence.memory.get(key), unavailable),
        "energy": measured.energy(evidence.energy.get(key), seen, unavailable),
        "placement": placed,
        "fallback": fallback,
        "profile": measured.profile(evidence.profiles.get(key), unavailable),
        "scenario": measured.scenario(group.scenario),
        "verdict": _verdict(judgement, unavailable),
        "verdict_detail": judgement.verdict_detail,
        "launches_left_out": list(judgement.left_out),
        "conditions": measured.conditions([x.conditions for x in seen]),
        **_measured(seen, judgement, unavailable),
        "unavailable": unavailable,
        "reproduce": _reproduce(judgement, group.scenario, origin, unavailable),
        "feasible": judgement.feasible,
        "rejected": judgement.rejected or None,
        "pareto": judgement.pareto,
    }


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


def _accuracy(scores: Scores | None, judgement: Judgement, unavailable: dict[str, str]) -> dict[str, Any] | None:
    if scores is None:
        unavailable["accuracy"] = _not("evaluated", judgement)
        return None
    reported = scores.evaluation or scores.selection
    return {
        "metric": scores.metric,
        **_score(reported, "accuracy", unavailable),
        "split": "evaluation" if scores.evaluation else "selection",
        "selected_on_same_data": scores.same_data,
        "selection": {**_score(scores.selection, "accuracy.selection", unavailable), "split": "selection"},
    }


def _score(score: Score, name: str, unavailable: dict[str, str]) -> dict[str, Any]:
    """`samples_needed` is null where the samples suffice."""
    document = {
        "value": finite(score.value),
        "baseline": finite(score.baseline),
        "n": score.n,
        "difference_ci95": measured.ends(score.difference) if score.difference else None,
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
    if judgement.latency is None:
        unavailable["latency_ns"] = _not("compared", judgement)
        return None
    return measured.latency(judgement.latency, "latency_ns", unavailable)


def _throughput(launches: Sequence[Launch], judgement: Judgement, unavailable: dict[str, str]) -> dict[str, Any] | None:
    if not launches:
        unavailable["throughput"] = _not("compared", judgement)
        return None
    return measured.throughput([x.result for x in launches], unavailable)


def _load(judgement: Judgement, unavailable: dict[str, str]) -> dict[str, Any] | None:
    if judgement.latency is None:
        unavailable["load_ns"] = _not("compared", judgement)
        return None
    return measured.estimate(judgement.latency.load, "load_ns", unavailable)


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
        "measured_at": utc(max(x.at_unix_ms for x in launches)) if launches else None,
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
    return {"ratio": judgement.speedup.value, "ci95": measured.ends(judgement.speedup)}


def _reproduce(judgement: Judgement, scenario: Scenario, origin: Origin, unavailable: dict[str, str]) -> str | None:
    if not origin.file:
        unavailable["reproduce"] = "the file of this variant is not known any more; its digest is under 'artifact'"
        return None
    candidate_ = judgement.entry.candidate
    words = ["edge-agent", "bench", origin.file, "--runtime", candidate_.runtime]
    for name, value in sorted(candidate_.options.items(), key=lambda option: (option[0] != "threads", option[0])):
        text = str(value).lower() if isinstance(value, bool) else str(value)
        words += ["--threads", text] if name == "threads" else ["--option", f"{name}={text}"]
    return shlex.join([*words, *_scenario_words(scenario)])


def _scenario_words(scenario: Scenario) -> list[str]:
    """As `edge-agent bench` takes it; nothing for one inference after the other."""
    words = ["--scenario", scenario.kind] if scenario.kind != "paced" else []
    if scenario.rate_per_s is not None:
        words += ["--rate", f"{scenario.rate_per_s:g}"]
    if scenario.batch_sizes:
        words += ["--batch-sizes", ",".join(map(str, scenario.batch_sizes))]
    if scenario.duration_ns:
        words += ["--duration", f"{scenario.duration_ns / 1e9:g}"]
    return words

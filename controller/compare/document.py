"""The answer as one JSON document; its shape is `schema.json`. A value that is not known is null, with the reason under `unavailable`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from controller.compare.judging import EnergyRatio, Finding
from controller.compare.outcome import overall, summary, told
from controller.compare.rules import Rules
from controller.compare.stored import StoredFinding
from controller.evidence import Group
from controller.report import caveat
from controller.report.measured import conditions, ends, latency, scenario
from controller.report.times import utc
from edgefarm import __version__
from edgefarm.errors import EdgefarmError
from edgefarm.model import DeviceStatus, Run
from edgefarm.statistics import Interval

SCHEMA = 1


def head(
    base: str, new: str, rules: Rules, findings: Sequence[Finding], lost: Mapping[str, str], problem: EdgefarmError | None
) -> dict[str, Any]:
    """What stands before the devices."""
    said = summary(findings, lost)
    return {
        "schema": SCHEMA,
        "kind": "comparison",
        "base": base,
        "new": new,
        "verdict": overall(findings).value,
        "summary": f"{type(problem).code}: {problem}" if problem else said,
        "counts": said,
        "exit_code": problem.exit_code if problem else 0,
        "edgefarm_version": __version__,
        "margin": rules.margin,
        "confidence": rules.confidence,
        "limits": {"slowdown": rules.max_slowdown, "energy": rules.max_energy},
        "lost": dict(lost),
    }


def of_run(run: Run) -> dict[str, Any]:
    """What a comparison that measured says of its run."""
    return {
        "run": run.name,
        "state": run.state,
        "owner": run.owner,
        "labels": dict(run.labels),
        "started": utc(run.started_unix_ms),
        "finished": utc(run.finished_unix_ms),
    }


def measured(finding: Finding, group: Group, status: DeviceStatus, rules: Rules) -> dict[str, Any]:
    """One device on which both were measured."""
    unavailable: dict[str, str] = {}
    document = _device(finding, rules, unavailable)
    for side, entry, numbers in (("base", group.entries[0], finding.base), ("new", group.entries[-1], finding.new)):
        if numbers is None:
            unavailable[f"{side}.latency_ns"] = finding.reason
        document[side] = {
            "variant": entry.variant,
            "runtime": entry.candidate.runtime,
            "options": dict(entry.candidate.options),
            "artifact": {"digest": entry.candidate.artifact.digest, "bytes": entry.candidate.artifact.bytes,
                         "format": entry.candidate.artifact.format},
            "latency_ns": None if numbers is None else latency(numbers, f"{side}.latency_ns", unavailable),
        }  # fmt: skip
    return {
        **document,
        "class": status.device_class,
        "emulated": status.device.emulated,
        "caveat": caveat(status.device),
        "objective": group.objective if group.objective.startswith("latency") or group.objective == "throughput" else "latency_p50",
        "scenario": scenario(group.scenario),
        "way": "paired within fresh launches, interleaved bursts",
        "differs": [],
        "conditions": conditions([x.conditions for x in finding.launches]),
        "unavailable": unavailable,
    }


def stored(found: StoredFinding, rules: Rules) -> dict[str, Any]:
    """One device by the numbers of two runs."""
    unavailable: dict[str, str] = {"noise_floor": "nothing was measured now"}
    document = _device(found.finding, rules, unavailable)
    for side, shown in (("base", found.base), ("new", found.new)):
        if shown is None:
            unavailable[side] = "the run has no winner there"
        keys = ("variant", "runtime", "options", "artifact", "latency_ns", "verdict", "conditions", "measured_on", "measured_at")
        document[side] = None if shown is None else {key: shown.get(key) for key in keys}
    return {**document, "way": found.way, "differs": list(found.differs), "unavailable": unavailable}


def _device(finding: Finding, rules: Rules, unavailable: dict[str, str]) -> dict[str, Any]:
    if finding.ratio is None:
        unavailable["speedup"] = finding.reason
    ratios = finding.ratios
    if ratios is None:
        unavailable["speedup_by_medians"] = finding.reason or "nothing was measured now"
    if ratios is None or ratios.by_minima is None:
        unavailable["speedup_by_minima"] = finding.no_minima or finding.reason or "nothing was measured now"
    if finding.control is None:
        unavailable.setdefault(
            "noise_floor", "both sides are one model: the comparison itself shows it" if finding.ratio else finding.reason
        )
    if finding.verdict is None:
        unavailable["conditions_verdict"] = finding.reason
    if finding.energy is None:
        unavailable["energy"] = "not asked for: --max-energy does"
    elif finding.energy.reason:
        unavailable["energy"] = finding.energy.reason
    return {
        "name": finding.device,
        "verdict": finding.relation.value,
        "text": told(finding, rules),
        "reason": finding.reason or None,
        "failed": finding.failed or None,
        "speedup": _ratio(finding.ratio),
        "speedup_by_medians": _ratio(ratios.by_medians if ratios else None),
        "speedup_by_minima": _ratio(ratios.by_minima if ratios else None),
        "decided_by": decided_by(finding),
        "decided_because": decided_because(finding),
        "noise_floor": _ratio(finding.control),
        "launches": len(finding.launches) or (finding.ratio.n if finding.ratio else 0),
        "conditions_verdict": finding.verdict.value if finding.verdict else None,
        "conditions_detail": finding.verdict_detail,
        "left_out": list(finding.left_out),
        "gates": {
            "slowdown": finding.slowdown.value if finding.slowdown else None,
            "energy": finding.energy_gate.value if finding.energy_gate else None,
        },
        "energy": _energy(finding.energy),
    }


def decided_by(finding: Finding) -> str | None:
    """Whose ratio `speedup` is; None where nothing was measured now."""
    return None if finding.ratios is None else "minima" if finding.ratios.minima_decide else "medians"


def decided_because(finding: Finding) -> str | None:
    """Why it is that one."""
    if finding.ratios is None:
        return None
    if finding.ratios.minima_decide:
        return "undisturbed inferences spread less, and typical ones do not surely differ otherwise"
    return "typical inferences differ otherwise than undisturbed ones" if finding.ratios.differ else finding.no_minima


def _ratio(interval: Interval | None) -> dict[str, Any] | None:
    return None if interval is None else {"ratio": interval.value, "ci95": ends(interval), "n": interval.n}


def _energy(energy: EnergyRatio | None) -> dict[str, Any] | None:
    if energy is None or energy.increase is None:
        return None
    sides = {
        side: None if result is None else {"per_inference_uj": result.per_inference_uj, "ci95": [result.low_uj, result.high_uj],
                                           "source": result.source, "rail": result.rail, "n": result.inferences}
        for side, result in (("base", energy.base), ("new", energy.new))
    }  # fmt: skip
    return {**sides, "increase": energy.increase.value, "ci95": ends(energy.increase)}

"""Compares the winners of two runs by the numbers that their reports hold. Nothing is measured, so nothing is paired. Pure.

Two runs are two times: a machine that is slower today makes a model look slower. Where both winners were measured against one and the
same baseline on an equal device, their speed-ups are compared, in which that cancels. Else the latencies are, and they have to be apart
by more than two runs of one model usually are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controller.compare.judging import EnergyRatio, Finding, energy_gate, open_answer, slowdown_gate
from controller.compare.rules import Gate, Rules
from edgefarm.model import Verdict
from edgefarm.statistics import Interval, Relation, relation

# Blocks of one model measured one after the other on a shared machine differed by more than 1 % in most runs (DESIGN, 5); this much is
# what an unpaired difference has to be beyond its own interval before it is one.
ALLOWANCE = 0.05
Report = Mapping[str, Any]


@dataclass(frozen=True)
class StoredFinding:
    """One device's finding with what was compared: `way` says how, `differs` what was not equal, `base`, `new` the reports' candidates."""

    finding: Finding
    way: str
    differs: tuple[str, ...] = ()
    base: Mapping[str, Any] | None = None
    new: Mapping[str, Any] | None = None


def find_all(base: Report, new: Report, rules: Rules) -> tuple[list[StoredFinding], dict[str, str]]:
    """Findings on the devices of both runs, and why others were left out."""
    before = {d["name"]: d for d in base["devices"]}
    after = {d["name"]: d for d in new["devices"]}
    missing = {
        **{name: f"not in {new['run']}" for name in before if name not in after},
        **{name: f"not in {base['run']}" for name in after if name not in before},
    }
    return [_find(base, before[name], new, after[name], rules) for name in before if name in after], missing


def _find(base_run: Report, before: Mapping[str, Any], new_run: Report, after: Mapping[str, Any], rules: Rules) -> StoredFinding:
    name, old, new = before["name"], before["winner"], after["winner"]
    differs = tuple(_differences(base_run, before, new_run, after))
    for run, device in ((base_run, before), (new_run, after)):
        if (doubt := _doubt(device)) != "":
            finding = Finding(name, None, Relation.INCONCLUSIVE, f"{run['run']}: {doubt}", slowdown=_gate(None, rules))
            return StoredFinding(finding, "not compared", differs, old, new)
    ratio, way = _by_baseline(before, after) or _by_latency(old, new)
    said = relation(ratio, rules.margin)
    again = f"measure both now: controller compare {base_run['run']}:winner {new_run['run']}:winner"
    reason = "" if said is not Relation.INCONCLUSIVE else f"{open_answer(ratio, rules)} ({way}); {again}"
    energy = None if rules.max_energy is None else _energy(old, new)
    gated = None if rules.max_energy is None or energy is None else energy_gate(energy, rules.max_energy)
    judged = Verdict(new["verdict"])
    detail = new.get("verdict_detail", "")
    finding = Finding(name, ratio, said, reason, "", _gate(ratio, rules), gated, energy, verdict=judged, verdict_detail=detail)
    return StoredFinding(finding, way, differs, old, new)


def _doubt(device: Mapping[str, Any]) -> str:
    """Why a run says nothing of a device that a comparison could rest on; empty if it does."""
    winner = device["winner"]
    if winner is None:
        return f"no winner: {device.get('reason', 'the report does not say why')}"
    if not winner["latency_ns"] or not winner["latency_ns"]["p50"]["ci95"]:
        return f"{winner['variant']} has no latency with an interval"
    if winner["verdict"] != Verdict.STABLE.value:
        return f"{winner['variant']} has the verdict {winner['verdict']}: {winner.get('verdict_detail', '')}"
    return ""


def _by_baseline(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Interval, str] | None:
    """The ratio of the speed-ups over one baseline; None where it is not the same one, or on another kind of device."""
    if before["class"] != after["class"] or not before["baseline"] or not after["baseline"]:
        return None
    same = [(d["baseline"]["artifact"]["digest"], d["baseline"]["runtime"], d["baseline"]["options"], d["baseline"]["scenario"])
            for d in (before, after)]  # fmt: skip
    ratios = [_speedup(d) for d in (before, after)]
    if same[0] != same[1] or ratios[0] is None or ratios[1] is None:
        return None
    return _quotient(ratios[1], ratios[0], 0.0), "speed-ups over the same baseline, each paired in its own run"


def _speedup(device: Mapping[str, Any]) -> Interval | None:
    """Of the winner; exactly 1 where the baseline itself won."""
    winner, known = device["winner"], device["winner"]["speedup_vs_baseline"]
    if winner["artifact"] == device["baseline"]["artifact"] and winner["options"] == device["baseline"]["options"]:
        return Interval(1.0, 1.0, 1.0, 0)
    if not known or not known["ci95"]:
        return None
    return _interval(known["ratio"], known["ci95"], winner["latency_ns"].get("launches", 0))


def _by_latency(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Interval, str]:
    both = (old["latency_ns"], new["latency_ns"])
    first, second = (_interval(c["p50"]["value"], c["p50"]["ci95"], c.get("launches", 0)) for c in both)
    return _quotient(first, second, math.log1p(ALLOWANCE)), f"unpaired latencies of two times, {ALLOWANCE:.0%} allowed between them"


def _interval(value: float, ends: Sequence[float], n: int) -> Interval:
    return Interval(value, ends[0], ends[1], n)


def _quotient(above: Interval, below: Interval, allowance: float) -> Interval:
    """Of two independent estimates: their relative half widths add as independent ones do, then the allowance."""
    centre = math.log(above.value / below.value)
    half = math.hypot(*(math.log(i.high / i.low) / 2 for i in (above, below))) + allowance
    return Interval(math.exp(centre), math.exp(centre - half), math.exp(centre + half), min(above.n, below.n))


def _gate(ratio: Interval | None, rules: Rules) -> Gate | None:
    if rules.max_slowdown is None:
        return None
    return Gate.UNKNOWN if ratio is None else slowdown_gate(ratio, rules.max_slowdown)


def _energy(old: Mapping[str, Any], new: Mapping[str, Any]) -> EnergyRatio:
    known = []
    for candidate in (old, new):
        energy = candidate["energy"]
        if not energy or not energy.get("ci95") or energy["ci95"][0] <= 0:
            return EnergyRatio(reason=f"energy of {candidate['variant']}: {candidate['unavailable'].get('energy', 'no interval above 0')}")
        known.append(_interval(energy["per_inference_uj"], energy["ci95"], energy.get("n", 0)))
    change = _quotient(known[1], known[0], 0.0)
    return EnergyRatio(increase=Interval(change.value - 1, change.low - 1, change.high - 1, change.n))


def _differences(base_run: Report, before: Mapping[str, Any], new_run: Report, after: Mapping[str, Any]) -> Iterator[str]:
    """What was not equal when the two were measured, in words."""
    if base_run["edgefarm_version"] != new_run["edgefarm_version"]:
        yield f"edgefarm {base_run['edgefarm_version']} and {new_run['edgefarm_version']}"
    if before["class"] != after["class"]:
        yield f"device class {before['class']} and {after['class']}"
        yield from _unequal("", before["fingerprint"], after["fingerprint"])
    old, new = before["winner"], after["winner"]
    if old is None or new is None:
        return
    for name in ("runtime", "options", "scenario"):
        if old[name] != new[name]:
            yield f"{name} {old[name]} and {new[name]}"
    yield from _unequal("", old["conditions"].get("settings", {}), new["conditions"].get("settings", {}))
    for candidate in (old, new):
        if reasons := candidate["conditions"].get("throttled"):
            yield f"{candidate['variant']} was throttled: {', '.join(reasons)}"


def _unequal(prefix: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(set(first) | set(second)):
        one, other = first.get(key), second.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _unequal(f"{prefix}{key}.", one, other)
        elif one != other:
            yield f"{prefix}{key}: {'absent' if one is None else one} and {'absent' if other is None else other}"

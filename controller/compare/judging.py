"""Faster, slower, same, or inconclusive: what the launches of two candidates on one device say. Pure.

Paired within launches, so that load which slows both cancels. A median latency is compared by undisturbed inferences as long as typical
ones do not differ otherwise (`edgefarm.statistics.undisturbed`). A bad verdict decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from controller.compare.rules import Gate, Rules, gate
from controller.compare.undisturbed import by_minima, minima_ratio, why_none
from controller.evidence import CONTROL, Evidence, Group, Launch
from controller.verdicts import Latency, believed, latency, ratio_of, verdict
from edgefarm.model import EnergyResult, Verdict
from edgefarm.statistics import BurstRatios, Interval, Relation, burst_ratios, relation

_LEAST_LAUNCHES = 3  # below, no interval is worth a word


@dataclass(frozen=True)
class EnergyRatio:
    """Energy per inference of the second side over the first. `reason`: why there is no ratio."""

    base: EnergyResult | None = None
    new: EnergyResult | None = None
    increase: Interval | None = None
    reason: str = ""


@dataclass(frozen=True)
class Finding:
    """What is held of one device.

    Attributes:
        ratio: the first side's time over the second's: above 1 = the second is faster. None where nothing was measured.
        ratios: both that it may be, by medians and by minima of bursts. None where nothing was measured now.
        no_minima: why there is none by minima; empty if there is.
        relation: of the second side to the first.
        reason: why it is inconclusive, or what failed; empty where all is well.
        failed: the side that does not run there (`base` or `new`), empty: both do.
        slowdown, energy_gate: how the limits stand, None where there is none.
        control: two copies of the first side against each other: the noise floor.
        base, new: each side's own latency.
        left_out: launches that were taken under bad conditions, and which.
    """

    device: str
    ratio: Interval | None
    relation: Relation
    reason: str = ""
    failed: str = ""
    slowdown: Gate | None = None
    energy_gate: Gate | None = None
    energy: EnergyRatio | None = None
    control: Interval | None = None
    base: Latency | None = None
    new: Latency | None = None
    verdict: Verdict | None = None
    verdict_detail: str = ""
    launches: tuple[Launch, ...] = ()
    left_out: tuple[str, ...] = ()
    ratios: BurstRatios | None = None
    no_minima: str = ""


def contender_key(group: Group) -> str:
    """The second side's key in a launch; equal candidates are told apart as the control arm is."""
    base, new = group.entries[0], group.entries[-1]
    return CONTROL if new.key == base.key else new.key


def failure_of(group: Group, evidence: Evidence) -> tuple[str, str] | None:
    """The side that does not run (`base`, `new`) and why; None if both do."""
    for side, entry in (("base", group.entries[0]), ("new", group.entries[-1])):
        if failure := evidence.failures.get(entry.key):
            return side, f"{entry.variant} failed: {failure.kind.value}: {failure.detail}"
    return None


def paired(group: Group, evidence: Evidence) -> tuple[Launch, ...]:
    """Launches that held both sides: `result` is the second's, `reference` the first's."""
    key = contender_key(group)
    return evidence.control if key == CONTROL else evidence.launches.get(key, ())


def ratios_of(launches: Sequence[Launch], group: Group, confidence: float) -> BurstRatios | None:
    """First over second in the statistic that the objective is about, with intervals that hold whenever one looks; None without one."""
    if len(launches) < _LEAST_LAUNCHES:
        return None
    taken = sorted(launches, key=lambda x: x.index)
    medians = [ratio_of(x.reference, x.result, group.objective) for x in taken]
    minima = [] if why_none(taken, group.objective, group.scenario) else [minima_ratio(launch) for launch in taken]
    return burst_ratios(medians, minima, confidence)


def decided(ratio: Interval, rules: Rules) -> bool:
    """Whether more launches would not change the answer: the limit's where there is one, else the relation."""
    if not ratio.known:
        return False
    if rules.max_slowdown is not None:
        return slowdown_gate(ratio, rules.max_slowdown) is not Gate.UNKNOWN
    return relation(ratio, rules.margin) is not Relation.INCONCLUSIVE


def slowdown_gate(ratio: Interval, limit: float) -> Gate:
    """The slowdown 1 / ratio - 1 against its limit."""
    low = 1 / ratio.high - 1 if ratio.high > 0 else math.inf
    return gate(low, 1 / ratio.low - 1 if ratio.low > 0 else math.inf, limit)


def settled(group: Group, evidence: Evidence, rules: Rules) -> bool:
    """Whether the launches decide, and may be believed."""
    launches, _ = believed(paired(group, evidence), group.scenario.kind)
    ratios = ratios_of(launches, group, rules.confidence)
    if ratios is None or not decided(ratios.deciding, rules):
        return False
    return _judge(group, evidence, launches, ratios)[0].value in group.accept


def find(group: Group, evidence: Evidence, rules: Rules) -> Finding:
    """The finding on the group's device."""
    device = group.devices[0]
    if failed := failure_of(group, evidence):
        return Finding(device, None, Relation.INCONCLUSIVE, failed[1], failed[0])
    launches, left_out = believed(paired(group, evidence), group.scenario.kind)
    ratios = ratios_of(launches, group, rules.confidence)
    if ratios is None:
        reason = f"{len(launches)} launches held both: at least {_LEAST_LAUNCHES} are needed"
        return Finding(device, None, Relation.INCONCLUSIVE, reason, launches=tuple(launches))
    ratio = ratios.deciding
    judged, detail = _judge(group, evidence, launches, ratios)
    doubt = "" if judged.value in group.accept else f"verdict {judged.value}: {detail}"
    said = Relation.INCONCLUSIVE if doubt else relation(ratio, rules.margin)
    energy = _energy(group, evidence, rules)
    return Finding(
        device,
        ratio,
        said,
        reason=doubt or ("" if said is not Relation.INCONCLUSIVE else open_answer(ratio, rules)),
        slowdown=None if rules.max_slowdown is None else Gate.UNKNOWN if doubt else slowdown_gate(ratio, rules.max_slowdown),
        energy_gate=None if rules.max_energy is None or energy is None else energy_gate(energy, rules.max_energy),
        energy=energy,
        control=_control(group, evidence, rules, ratios),
        base=latency([replace(x, result=x.reference) for x in launches]),
        new=latency(launches),
        verdict=judged,
        verdict_detail=detail,
        launches=tuple(launches),
        left_out=left_out,
        ratios=ratios,
        no_minima=why_none(launches, group.objective, group.scenario),
    )


def _judge(group: Group, evidence: Evidence, launches: Sequence[Launch], ratios: BurstRatios) -> tuple[Verdict, str]:
    """By the conditions, the spread of what decides, and the control arm; a side compared with itself is no arm of its own."""
    control: Sequence[Launch] = () if contender_key(group) == CONTROL else evidence.control
    if ratios.minima_decide:
        launches = by_minima(launches)
        control = control if why_none(control, group.objective, group.scenario) else by_minima(control)
    return verdict(launches, group.objective, scenario=group.scenario.kind, control=control)


def open_answer(ratio: Interval, rules: Rules) -> str:
    """What an interval that decides nothing leaves open."""
    if not ratio.known:
        return f"{ratio.n} launches carry no interval"
    side = "faster" if ratio.low > 1 else "slower" if ratio.high < 1 else ""
    more = f"{side} for sure, but perhaps by less than {rules.margin:.2%}" if side else "too wide to tell"
    return f"{more}; {ratio.n} launches"


def _control(group: Group, evidence: Evidence, rules: Rules, ratios: BurstRatios) -> Interval | None:
    """Two copies of the first side, by what decides; None where the comparison itself is one."""
    if contender_key(group) == CONTROL:
        return None
    found = ratios_of(evidence.control, group, rules.confidence)
    if found is None:
        return None
    return found.by_minima if ratios.minima_decide and found.by_minima else found.by_medians


def _energy(group: Group, evidence: Evidence, rules: Rules) -> EnergyRatio | None:
    if rules.max_energy is None:
        return None
    base, new = evidence.energy.get(group.entries[0].key), evidence.energy.get(group.entries[-1].key)
    return energy_ratio(base, new)


def energy_ratio(base: EnergyResult | None, new: EnergyResult | None) -> EnergyRatio:
    """The relative increase of energy per inference. Each side's interval is its own window's, so their widths add as independent ones."""
    for side, result in (("the first", base), ("the second", new)):
        if result is None:
            return EnergyRatio(base, new, reason=f"the energy of {side} was not measured")
        if result.unavailable:
            return EnergyRatio(base, new, reason=result.unavailable)
        if result.low_uj <= 0:
            return EnergyRatio(
                base, new, reason=f"the energy of {side} is not told from none: its interval begins at {result.low_uj:.4g} uJ"
            )
    assert base is not None
    assert new is not None
    centre = math.log(new.per_inference_uj / base.per_inference_uj)
    half = math.hypot(*(math.log(r.high_uj / r.low_uj) / 2 for r in (base, new)))
    ends = (math.exp(centre) - 1, math.exp(centre - half) - 1, math.exp(centre + half) - 1)
    return EnergyRatio(base, new, Interval(*ends, n=2))


def energy_gate(energy: EnergyRatio, limit: float) -> Gate:
    """The increase of energy per inference against its limit."""
    return Gate.UNKNOWN if energy.increase is None else gate(energy.increase.low, energy.increase.high, limit)

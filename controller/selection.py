"""Chooses each device's winner from what was measured. Pure.

Drop what breaks a constraint; among the rest the best objective; within the noise the smaller, then the more accurate.
Nothing beats the baseline unless its interval says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from controller.evidence import Entry, Evidence, Group, Launch
from controller.limits import broken, energy_uj, memory_bytes, no_energy, unproved
from controller.screening import NOISE_FLOOR, alike
from controller.verdicts import Latency, against, believed, latency, speedup, statistic, verdict, verdict_of_reference
from edgefarm.model import Verdict
from edgefarm.statistics import Interval, ratio_interval

_LEAST_FLOOR = 0.005  # with one
_LEAST_CONTROLS = 5  # launches of a control arm that say something
_SLOWER = 0.95  # a candidate screened below this speed-up cannot win on latency
_CLEARLY_SLOWER = 0.8  # the same where bursts are of different batch sizes, so that they can't be asked whether they agree
_MEMORY_GAIN = 0.98
_ALIKE = 0.03  # at most so much slower, by the interval's end, may a smaller one be that is taken for equal
_LEAST_BURSTS = 3
_WORTH_IT = 0.05  # a gain that one would want to know of


@dataclass(frozen=True)
class Judgement:
    """What is held of one candidate. `rejected` is empty for the winner only; `left_out`: launches that don't count, and why."""

    entry: Entry
    feasible: bool
    rejected: str
    latency: Latency | None = None
    speedup: Interval | None = None
    verdict: Verdict | None = None
    verdict_detail: str = ""
    pareto: bool = False
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """The winner of one device; None if no candidate is feasible. `inconclusive`: a better one may exist, the numbers can't say."""

    device: str
    winner: Entry | None
    reason: str
    judgements: tuple[Judgement, ...]
    inconclusive: bool = False

    def judgement(self, key: str) -> Judgement:
        """The judgement of one candidate."""
        return next(j for j in self.judgements if j.entry.key == key)


def about_speed(group: Group) -> bool:
    """Whether the objective is a latency or a throughput."""
    return group.objective.startswith("latency") or group.objective == "throughput"


def noise_floor(group: Group, evidence: Evidence) -> float:
    """The relative difference that says nothing: what two copies of the baseline may differ by, where a control arm shows it."""
    copies, _ = believed(evidence.control, group.scenario.kind)
    if len(copies) < _LEAST_CONTROLS:
        return NOISE_FLOOR
    ratio = speedup(copies, objective=group.objective)
    if not ratio.known or ratio.low <= 0:
        return NOISE_FLOOR
    return max(_LEAST_FLOOR, math.expm1(max(abs(math.log(ratio.low)), abs(math.log(ratio.high)))))


def screened_speedup(group: Group, entry: Entry, evidence: Evidence) -> float | None:
    """Speed-up over the baseline in the screening launch, in throughput if that is the objective; 1 for the baseline."""
    if entry.baseline:
        return 1.0
    launch = evidence.screened.get(entry.key)
    if launch is None:
        return None
    if group.objective == "throughput":
        return statistic(launch.reference, "throughput") / statistic(launch.result, "throughput")
    return launch.reference.p50_ns / max(1, launch.result.p50_ns)


def too_slow(group: Group, entry: Entry, evidence: Evidence) -> str:
    """Why a screened candidate cannot win on speed; empty if it can. Says nothing while the baseline itself breaks a limit."""
    ratio = screened_speedup(group, entry, evidence)
    if entry.baseline or ratio is None or not about_speed(group) or ratio >= _SLOWER or broken(group, group.baseline, evidence):
        return ""
    launch = evidence.screened[entry.key]
    if ratio >= _CLEARLY_SLOWER if group.scenario.kind == "offline" else not _bursts_agree(launch):
        return ""
    slow = f"{1 / ratio:.2f}x slower" if ratio > 0 else "slower"
    return f"{slow} than the baseline (screened: {launch.result.p50_ns / 1e6:.4g} ms against {launch.reference.p50_ns / 1e6:.4g} ms)"


def _bursts_agree(launch: Launch) -> bool:
    """Whether the bursts of one launch tell the candidate from its reference; a launch without bursts is taken at its word."""
    mine, base = launch.result.burst_p50_ns, launch.reference.burst_p50_ns
    if len(mine) != len(base) or len(mine) < _LEAST_BURSTS:
        return True
    return ratio_interval([max(1, b) for b in base], [max(1, m) for m in mine]).high < 1.0


def hopeful(group: Group, evidence: Evidence) -> list[Entry]:
    """Screened candidates that may still win, most promising first; without the baseline."""
    able = [
        e
        for e in group.entries
        if not e.baseline
        and e.key not in evidence.failures
        and e.key in evidence.screened
        and not broken(group, e, evidence, certainly=True)
        and not too_slow(group, e, evidence)
    ]
    if about_speed(group) or group.objective == "energy":  # what a candidate needs is measured last; the faster ones mostly need less
        return sorted(able, key=lambda e: (-(screened_speedup(group, e, evidence) or 0.0), e.size_bytes, e.key))
    return sorted(
        able, key=lambda e: (_objective(group, e, evidence, None), e.size_bytes, -(screened_speedup(group, e, evidence) or 0.0), e.key)
    )


def choose(group: Group, evidence: Evidence, device: str) -> Choice:
    """The winner of `device`, one of the group's."""
    judgements = [_judge(group, entry, evidence) for entry in group.entries]
    base = judgements[0]
    base_breaks = bool(broken(group, group.baseline, evidence))
    better = [j for j in judgements if j.feasible and not j.entry.baseline and (base_breaks or _beats(group, j, evidence))]
    better = [j for j in better if not _unconfirmed(group, j.entry, evidence, device)]
    doubtful = any(j.rejected.startswith("verdict ") and _looks_better(group, j, evidence) for j in judgements)
    if better:
        return _choice(group, device, _best(group, better, evidence), judgements, evidence, "best of the feasible candidates")
    if base.feasible:
        reason = "no feasible candidate is better than the baseline"
        return _choice(group, device, base, judgements, evidence, reason, inconclusive=doubtful)
    reason = f"no feasible variant; the baseline: {base.rejected}"
    return _choice(group, device, None, judgements, evidence, reason, inconclusive=doubtful)


def _judge(group: Group, entry: Entry, evidence: Evidence) -> Judgement:
    launches = evidence.launches.get(entry.key, ())
    known = Judgement(entry, False, "")
    if launches:
        known = _measured(group, entry, launches, evidence)
    if failure := evidence.failures.get(entry.key):
        return replace(known, rejected=f"failed: {failure.kind.value}: {failure.detail}")
    if reason := broken(group, entry, evidence) or too_slow(group, entry, evidence):
        return replace(known, rejected=reason)
    if entry.key not in evidence.screened and not launches:
        return replace(known, rejected=_why_not_measured(group, entry, evidence))
    if not launches:
        return replace(known, rejected=_why_not_compared(group, entry, evidence))
    if reason := unproved(group, entry, evidence):
        return replace(known, rejected=reason)
    # Choosing rests on paired ratios; the baseline is what they are taken to, whatever its own spread.
    if not entry.baseline and known.verdict is not None and known.verdict.value not in group.accept:
        return replace(known, rejected=f"verdict {known.verdict.value}: {known.verdict_detail}")
    return replace(known, feasible=True)


def _why_not_measured(group: Group, entry: Entry, evidence: Evidence) -> str:
    if group.cannot_choose:
        return f"energy: {no_energy(group, entry, evidence)}"
    if evidence.spent_ns >= group.budget_ns:
        return "not measured: the budget of device time was spent"
    return "not measured" if entry.baseline else "not measured: what others showed makes it unlikely to win"


def _why_not_compared(group: Group, entry: Entry, evidence: Evidence) -> str:
    ratio = screened_speedup(group, entry, evidence) or 0.0
    for other in group.entries:
        if other.key in evidence.launches and alike(group, other, entry, evidence):
            return f"screened at {ratio:.2f}x; {other.variant} has the same operators and shapes, and was compared for both"
    return f"screened at {ratio:.2f}x, behind those that were compared"


def _measured(group: Group, entry: Entry, launches: Sequence[Launch], evidence: Evidence) -> Judgement:
    """What launches say of a candidate, and whether that may be believed."""
    kind = group.scenario.kind
    good, left_out = believed(launches, kind)
    if entry.baseline:
        seen, detail = verdict_of_reference(good, scenario=kind)
    else:
        seen, detail = verdict(good, group.objective, scenario=kind, control=evidence.control)
    ratio = speedup(good, objective=group.objective)
    return Judgement(entry, False, "", latency(good), ratio, seen, detail, left_out=left_out)


def _looks_better(group: Group, judgement: Judgement, evidence: Evidence) -> bool:
    """Whether a candidate would be worth choosing if its numbers could be believed."""
    if about_speed(group):
        return judgement.speedup is not None and judgement.speedup.value > 1.0 + _WORTH_IT
    mine, base = _objective(group, judgement.entry, evidence, None), _objective(group, group.baseline, evidence, None)
    return mine < base


def _beats(group: Group, judgement: Judgement, evidence: Evidence) -> bool:
    """Whether the interval says that a candidate is better than the baseline."""
    if about_speed(group):
        ratio = judgement.speedup
        known = ratio is not None and ratio.known and math.isfinite(_objective(group, judgement.entry, evidence, judgement.latency))
        return known and ratio is not None and ratio.low > 1.0 and ratio.value > 1.0 + noise_floor(group, evidence)
    if group.objective == "energy":
        less, more = energy_uj(judgement.entry, evidence), energy_uj(group.baseline, evidence)
        return less is not None and more is not None and less.high < more.low
    mine, base = _objective(group, judgement.entry, evidence, None), _objective(group, group.baseline, evidence, None)
    return mine < base * (_MEMORY_GAIN if group.objective == "memory" else 1.0)


def _unconfirmed(group: Group, entry: Entry, evidence: Evidence, device: str) -> bool:
    """Whether a short paired run on this very device failed to show that the candidate is no slower than the baseline.

    What the device had of the comparison counts with it.
    """
    launches = evidence.confirmed.get((device, entry.key))
    if not launches:
        return (device, entry.key) in evidence.unconfirmed
    launches = (*(x for x in evidence.launches.get(entry.key, ()) if x.device == device), *launches)
    ratio = speedup(launches, objective="throughput" if group.objective == "throughput" else "latency_p50")
    return not ratio.known or ratio.low <= 1.0


def _objective(group: Group, entry: Entry, evidence: Evidence, summary: Latency | None) -> float:
    """The objective's value, lower is better; infinite if unknown."""
    if group.objective == "size":
        return float(entry.size_bytes)
    if group.objective == "memory":
        used = memory_bytes(entry, evidence)
        return math.inf if used is None else float(used)
    if group.objective == "energy":
        needed = energy_uj(entry, evidence)
        return math.inf if needed is None else needed.value
    if summary is None:
        return math.inf
    if group.objective == "throughput":
        return -summary.throughput_per_s.value
    interval: Interval | None = getattr(summary, group.objective.removeprefix("latency_"))
    return math.inf if interval is None else interval.value


def _best(group: Group, judgements: Sequence[Judgement], evidence: Evidence) -> Judgement:
    leader = min(judgements, key=lambda j: (_objective(group, j.entry, evidence, j.latency), j.entry.size_bytes, j.entry.key))
    equal = [j for j in judgements if j is leader or _within_noise(group, leader, j, evidence)]
    return min(equal, key=lambda j: (j.entry.size_bytes, harm(j.entry, evidence), j.entry.key))


def _within_noise(group: Group, leader: Judgement, other: Judgement, evidence: Evidence) -> bool:
    """Whether another is as good as the leader: the interval holds "equal", and nothing much worse."""
    mine = _objective(group, leader.entry, evidence, leader.latency)
    theirs = _objective(group, other.entry, evidence, other.latency)
    if group.objective == "energy":
        first_uj, second_uj = energy_uj(leader.entry, evidence), energy_uj(other.entry, evidence)
        known = first_uj is not None and second_uj is not None and second_uj.low <= first_uj.high
        return known and theirs <= mine * (1.0 + _ALIKE)
    if not about_speed(group):
        return mine == theirs
    a, b = (believed(evidence.launches.get(j.entry.key, ()), group.scenario.kind)[0] for j in (leader, other))
    ratio = against(a, b, objective=group.objective)
    if ratio is not None:
        return ratio.low <= 1.0 + noise_floor(group, evidence) and ratio.high <= 1.0 + _ALIKE
    first, second = leader.speedup, other.speedup  # never in one launch: by way of the baseline
    return first is not None and second is not None and first.high / max(second.low, 1e-9) <= 1.0 + _ALIKE


def harm(entry: Entry, evidence: Evidence) -> float:
    """Accuracy lost on the samples that decide; infinite if unknown."""
    scores = evidence.scores.get(entry.key)
    return scores.selection.drop if scores else math.inf


def _choice(
    group: Group,
    device: str,
    winner: Judgement | None,
    judgements: Sequence[Judgement],
    evidence: Evidence,
    reason: str,
    *,
    inconclusive: bool = False,
) -> Choice:
    front = _pareto(group, judgements, evidence)
    final = []
    for judgement in judgements:
        text = judgement.rejected
        if judgement.feasible and judgement is not winner:
            text = _why_not(group, judgement, winner, evidence, device)
        final.append(replace(judgement, rejected=text, pareto=judgement.entry.key in front))
    return Choice(device, winner.entry if winner else None, reason, tuple(final), inconclusive)


def _why_not(group: Group, judgement: Judgement, winner: Judgement | None, evidence: Evidence, device: str) -> str:
    if not judgement.entry.baseline and _unconfirmed(group, judgement.entry, evidence, device):
        return f"not confirmed as faster than the baseline on {device}"
    if winner is None or winner.entry.baseline:
        ratio = judgement.speedup
        shown = f" ({ratio.value:.3f}x, interval {ratio.low:.3f} to {ratio.high:.3f})" if ratio else ""
        return f"not better than the baseline{shown}"
    if judgement.entry.baseline:
        return "the winner is better"
    mine, theirs = (evidence.launches.get(j.entry.key, ()) for j in (winner, judgement))
    ratio = against(mine, theirs, objective=group.objective)
    if about_speed(group) and ratio is not None and ratio.known and ratio.low > 1.0:
        return f"{ratio.value:.3f}x slower than the winner"
    order = [(j.entry.size_bytes, harm(j.entry, evidence)) for j in (judgement, winner)]
    if order[0] < order[1] or not _within_noise(group, winner, judgement, evidence):
        shown = f" ({ratio.value:.3f}x, interval {ratio.low:.3f} to {ratio.high:.3f})" if ratio is not None and ratio.known else ""
        return f"not sure to be as good as the best in {group.objective}{shown}"
    return f"as good as the winner in {group.objective}, but not smaller or more accurate"


def _pareto(group: Group, judgements: Sequence[Judgement], evidence: Evidence) -> set[str]:
    """Keys of the measured candidates that no other beats in speed (as the objective has it), size and accuracy at once."""

    def pace(summary: Latency) -> float:
        return -summary.throughput_per_s.value if group.objective == "throughput" else summary.p50.value

    points: Mapping[str, tuple[float, float, float]] = {
        j.entry.key: (pace(j.latency), float(j.entry.size_bytes), harm(j.entry, evidence))
        for j in judgements
        if j.latency is not None and j.entry.key not in evidence.failures
    }

    def dominated(point: tuple[float, float, float]) -> bool:
        return any(all(a <= b for a, b in zip(other, point)) and other != point for other in points.values())

    return {key for key, point in points.items() if not dominated(point)}

"""Rules that say which plans to try after those that devices have run. Pure: each rule reads the results and proposes plans.

A rule is one function and one row of `RULES`. Its proposals carry a bound on what they may gain; `optimizer.search` drops those that
cannot matter and those that have been run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from edgefarm.model import Scalar
from optimizer.recipe import Plan, Step, parameters_in_full, varied

FLOOR = math.log1p(0.02)  # of a gain: less is noise, and matters to nobody
PRUNING, QUANTISATIONS = "prune_structured", ("quantize_static", "quantize_dynamic")
_RATIO, _FLOAT_LAYERS = "ratio", "float_layers"
_GRID = 20  # ratios are multiples of 1 / _GRID
_BOLDEST = 18  # of _GRID


@dataclass(frozen=True)
class Seen:
    """What one class of devices showed of a variant, of its fastest way to be run there.

    Attributes:
        where: the devices' names; the same for all that a class showed.
        gain: log of the baseline's objective over the variant's, above 0 = better; None: not known.
        excess: by how much it breaks the accuracy limit, at most 0 if it holds; None: not known, or there is no limit.
        limit: the accuracy limit that `excess` is about.
        trouble: another limit that it breaks, or how it failed.
    """

    where: str
    gain: float | None = None
    excess: float | None = None
    limit: str = ""
    trouble: str = ""

    @property
    def holds(self) -> bool:
        """Whether it keeps to the limits, accuracy among them."""
        return self.gain is not None and self.excess is not None and self.excess <= 0 and not self.trouble

    @property
    def breaks(self) -> bool:
        """Whether accuracy is all that speaks against it."""
        return self.gain is not None and self.excess is not None and self.excess > 0 and not self.trouble


@dataclass(frozen=True)
class Tried:
    """A plan that has ended.

    Attributes:
        look: number of the look that it was tried in, from 1.
        failed: it gave no variant.
    """

    plan: Plan
    look: int = 1
    failed: bool = False
    seen: tuple[Seen, ...] = ()

    def on(self, where: str) -> Seen:
        """What a class showed of it; nothing if it did not run there."""
        return next((s for s in self.seen if s.where == where), Seen(where))


@dataclass(frozen=True)
class Results:
    """All that is known.

    Attributes:
        tried: every plan that has ended.
        leaders: class -> gain of what would be chosen there now; the baseline's is 0.
        layers: layers of the model that may hold weights.
        spent: no device has time left to measure.
        samples: there are calibration samples, which show what a layer does.
    """

    tried: tuple[Tried, ...]
    leaders: Mapping[str, float] = field(default_factory=dict)
    layers: int = 0
    spent: bool = False
    samples: bool = True

    def may_lead(self, where: str, gain: float) -> bool:
        """Whether a gain beats the leader by more than noise."""
        return gain > self.leaders.get(where, 0.0) + FLOOR


@dataclass(frozen=True)
class Proposal:
    """A plan with the reason for it, and by how much (log) it may beat the leader of some class at most."""

    plan: Plan
    reason: str
    lead: float


Rule = Callable[[Results], Iterator[Proposal]]


def prune_otherwise(results: Results) -> Iterator[Proposal]:
    """Bisects the ratio of structured pruning: bolder where it holds and pays, milder where it breaks the accuracy limit.

    What follows the pruning (nothing, a quantisation …) differs among siblings; a ratio that one of them asks for is tried with all.
    """
    for siblings in _pruned(results.tried).values():
        for points in list(siblings.values()):
            for where in results.leaders:
                found = _other_ratio(points, where)
                if found is None or not results.may_lead(where, most := _most_gain(points, found.ratio, where)):
                    continue
                lead = most - results.leaders[where]
                for other in siblings.values():
                    if other is points or any(_may_lead(results, other, found.ratio, w) for w in results.leaders):
                        yield Proposal(_at_ratio(_nearest(other, found.ratio).plan, found.ratio), found.reason, lead)


def keep_layers_in_float(results: Results) -> Iterator[Proposal]:
    """Mixed precision: of a quantisation that would lead but for its accuracy, layers go back to float, most harmful first.

    Their number doubles until the limit holds in every class where it matters, then it is bisected to the fewest, as long as it pays.
    """
    for points in _quantised(results.tried).values() if results.samples else ():
        for where in results.leaders:
            if 0 not in points or not points[0].on(where).breaks:
                continue
            breaking = [n for n, t in points.items() if t.on(where).breaks]
            holding = [n for n, t in points.items() if t.on(where).holds]
            least = min(holding, default=None)
            below = max(n for n in breaking if least is None or n < least)
            wanted = (2 * below or 1) if least is None else (below + least) // 2
            last = points[below].on(where)
            gain, excess = last.gain or 0.0, last.excess or 0.0
            if wanted in points or wanted >= max(1, results.layers) or not results.may_lead(where, gain):
                continue
            reason = f"{points[below].plan.name} breaks {last.limit} by {excess:.2g} on {where}: {_layers(wanted)} back to float"
            if least is not None:
                reason = f"{points[least].plan.name} holds {last.limit} on {where}, {points[below].plan.name} does not: {_layers(wanted)}"
            yield Proposal(_with_float(points[0].plan, wanted), reason, gain - results.leaders[where])


RULES: tuple[Rule, ...] = (keep_layers_in_float, prune_otherwise)


@dataclass(frozen=True)
class _Ratio:
    ratio: int  # of _GRID
    reason: str


_Points = Mapping[int, Tried]  # by the parameter that a rule varies


def _other_ratio(points: _Points, where: str) -> _Ratio | None:
    """The ratio, on the grid, that a class asks for."""
    holding = {k: s.gain or 0.0 for k, t in points.items() if (s := t.on(where)).holds}
    breaking = [k for k, t in points.items() if t.on(where).breaks]
    if holding:
        best = max(holding)
        bolder = min((k for k in points if k > best), default=_BOLDEST + 1)
        wanted = (best + bolder) // 2
        ended = bolder > _BOLDEST or points[bolder].failed or bolder in breaking or points[bolder].on(where).trouble
        if not ended or wanted in points or holding[best] < max(holding.values()) - FLOOR:
            return None
        limit = points[best].on(where).limit
        return _Ratio(wanted, f"{points[best].plan.name} holds {limit} on {where}: {_share(wanted)} of the channels go")
    if not breaking:
        return None
    mildest = min(breaking)
    wanted, seen = mildest // 2, points[mildest].on(where)
    if wanted == 0 or any(k <= mildest for k in points if k != mildest):
        return None
    why = f"{points[mildest].plan.name} breaks {seen.limit} by {seen.excess:.2g} on {where}"
    return _Ratio(wanted, f"{why}: only {_share(wanted)} of the channels go")


def _most_gain(points: _Points, ratio: int, where: str) -> float:
    """What a ratio may gain at most: what the next bolder one gained, else the next milder one with work that falls as its square."""
    known = {k: gain for k, t in points.items() if (gain := t.on(where).gain) is not None}
    bolder, milder = [k for k in known if k >= ratio], [k for k in known if k < ratio]
    if bolder:
        return known[min(bolder)]
    if milder:
        return known[max(milder)] + 2 * math.log((_GRID - max(milder)) / (_GRID - ratio))
    return math.inf


def _may_lead(results: Results, points: _Points, ratio: int, where: str) -> bool:
    return results.may_lead(where, _most_gain(points, ratio, where))


def _nearest(points: _Points, ratio: int) -> Tried:
    return points[min(points, key=lambda k: (abs(k - ratio), k))]


def _pruned(tried: Sequence[Tried]) -> dict[str, dict[str, dict[int, Tried]]]:
    """Plans that prune, by all but the ratio: first up to the pruning, then what follows it, then the ratio on the grid."""
    found: dict[str, dict[str, dict[int, Tried]]] = {}
    for each in tried:
        at = _place(each.plan, (PRUNING,))
        if at is not None:
            before = _key((*each.plan.steps[:at], varied(each.plan.steps[at], **{_RATIO: 0.5})))
            ratio = round(float(_full(each.plan.steps[at], _RATIO)) * _GRID)
            found.setdefault(before, {}).setdefault(_key(each.plan.steps[at + 1 :]), {}).setdefault(ratio, each)
    return found


def _quantised(tried: Sequence[Tried]) -> dict[str, dict[int, Tried]]:
    """Plans that quantise, by all but the number of layers in float, then by that."""
    found: dict[str, dict[int, Tried]] = {}
    for each in tried:
        at = _place(each.plan, QUANTISATIONS)
        if at is not None:
            step = each.plan.steps[at]
            family = _key((*each.plan.steps[:at], varied(step, **{_FLOAT_LAYERS: 0}), *each.plan.steps[at + 1 :]))
            found.setdefault(family, {}).setdefault(int(_full(step, _FLOAT_LAYERS)), each)
    return found


def _at_ratio(plan: Plan, ratio: int) -> Plan:
    at = _place(plan, (PRUNING,))
    assert at is not None
    share = round(ratio / _GRID, 2)
    before = f"{100 * float(_full(plan.steps[at], _RATIO)):.0f}"
    named = plan.recipe.replace(before, f"{100 * share:.0f}", 1) if before in plan.recipe else f"{plan.recipe}-{100 * share:.0f}"
    return replace(plan, recipe=named, steps=_replaced(plan.steps, at, varied(plan.steps[at], **{_RATIO: share})))


def _with_float(plan: Plan, layers: int) -> Plan:
    at = _place(plan, QUANTISATIONS)
    assert at is not None
    step = varied(plan.steps[at], **{_FLOAT_LAYERS: layers})
    return Plan(f"{plan.name}-float{layers}", _replaced(plan.steps, at, step))


def _place(plan: Plan, pass_names: Sequence[str]) -> int | None:
    return next((i for i, step in enumerate(plan.steps) if step.pass_name in pass_names), None)


def _replaced(steps: tuple[Step, ...], at: int, step: Step) -> tuple[Step, ...]:
    return (*steps[:at], step, *steps[at + 1 :])


def _full(step: Step, name: str) -> Scalar:
    return parameters_in_full(step)[name]


def _key(steps: Iterable[Step]) -> str:
    return "/".join(step.key for step in steps)


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _share(ratio: int) -> str:
    return f"{ratio / _GRID:.0%}"

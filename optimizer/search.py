"""Which plans to run next: pure functions of the space, the budget and what is known, so a restart loses nothing.

`step` spreads given plans over the budget; `look` says, of what devices showed, which plans to try after them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Union

from optimizer.recipe import Plan
from optimizer.refinements import FLOOR, RULES, Proposal, Results, Rule, Tried

AT_ONCE = 6  # plans of one look: what devices say of the first ones spares most of the others
_STILL = 2  # looks in a row that move no front end the search


@dataclass(frozen=True)
class Budget:
    """`variants`: plans to run at most; `minutes`: wall time of optimising."""

    variants: int = 40
    minutes: float = 30.0


@dataclass(frozen=True)
class Next:
    """Plans to run now, in this order, each with its reason if the results gave one."""

    plans: tuple[Plan, ...]
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finished:
    """Nothing is left to run; `reason` says why, `left` what a larger budget would have run."""

    reason: str
    left: tuple[Plan, ...] = ()


def step(space: Sequence[Plan], ended: Collection[str], budget: Budget, elapsed_minutes: float = 0.0) -> Union[Next, Finished]:
    """What to do next, in the order of the space: it puts the best expectations first.

    Args:
        ended: keys of the plans that have ended, with a variant or without.
    """
    left = tuple(p for p in space if p.key not in ended)
    if not left:
        return Finished("every plan has been run")
    room = budget.variants - len(set(ended))
    if room <= 0:
        return Finished(f"the budget of {budget.variants} variants is used up", left)
    if elapsed_minutes >= budget.minutes:
        return Finished(f"the budget of {budget.minutes:g} minutes is used up", left)
    return Next(left[:room])


def look(
    results: Results, ended: Collection[str], budget: Budget, elapsed_minutes: float = 0.0, rules: Sequence[Rule] = RULES
) -> Union[Next, Finished]:
    """Which plans to try after those that devices have run, best expectations first.

    Args:
        ended: keys of the plans that have ended and count against the budget.
    """
    number = max((t.look for t in results.tried), default=0)
    found = _proposed(results, rules)
    if not found:
        return Finished("the results suggest nothing more")
    if results.spent:
        return Finished("the budget of device time is spent", tuple(p.plan for p in found))
    if number > _STILL and not any(_moved(results, n) for n in range(number - _STILL + 1, number + 1)):
        return Finished(f"the last {_STILL} looks brought nothing faster or more accurate", tuple(p.plan for p in found))
    following = step([p.plan for p in found[:AT_ONCE]], ended, budget, elapsed_minutes)
    if isinstance(following, Finished):
        return following
    reasons = {p.plan.key: p.reason for p in found}
    return Next(following.plans, tuple(reasons[p.key] for p in following.plans))


def _proposed(results: Results, rules: Sequence[Rule]) -> list[Proposal]:
    """What the rules propose and was not tried, each plan once, those that may lead by most first."""
    known = {t.plan.key for t in results.tried}
    best: dict[str, Proposal] = {}
    for proposal in (p for rule in rules for p in rule(results)):
        key = proposal.plan.key
        if key not in known and (key not in best or proposal.lead > best[key].lead):
            best[key] = proposal
    return sorted(best.values(), key=lambda p: (-p.lead, p.plan.key))


def _moved(results: Results, number: int) -> bool:
    """Whether a look brought to some class what nothing before it was as fast and as accurate as."""
    earlier = [t for t in results.tried if t.look < number]
    return any(_is_new(each, earlier, where) for each in results.tried if each.look == number for where in results.leaders)


def _is_new(tried: Tried, earlier: Sequence[Tried], where: str) -> bool:
    seen = tried.on(where)
    if seen.gain is None or seen.excess is None or seen.trouble or seen.gain <= FLOOR:
        return False
    before = [s for t in earlier if not (s := t.on(where)).trouble]
    return not any(s.gain is not None and s.excess is not None and s.gain >= seen.gain - FLOOR and s.excess <= seen.excess for s in before)

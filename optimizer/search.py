"""Which plans to run next: a pure function of the space, the budget and what is known, so a restart loses nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union

from optimizer.recipe import Plan

_ENOUGH = 2  # measured plans of a family before the rest of it may be given up


@dataclass(frozen=True)
class Budget:
    """`variants`: plans to run at most; `minutes`: wall time of optimising."""

    variants: int = 40
    minutes: float = 30.0


@dataclass(frozen=True)
class Seen:
    """A plan that has ended.

    Attributes:
        gain_high: upper end of the interval of its best gain over the baseline in the objective, over all devices (1 = equal, more
            is better); None = not measured.
        failed: it gave no variant, or none that ran.
    """

    plan: Plan
    gain_high: float | None = None
    failed: bool = False


@dataclass(frozen=True)
class Next:
    """Plans to run now, in this order; `given_up` were pruned, with the reason."""

    plans: tuple[Plan, ...]
    given_up: tuple[tuple[Plan, str], ...] = ()


@dataclass(frozen=True)
class Finished:
    """Nothing is left to run; `reason` says why, `left` what a larger budget would have run."""

    reason: str
    left: tuple[Plan, ...] = ()
    given_up: tuple[tuple[Plan, str], ...] = ()


def step(
    space: Sequence[Plan], seen: Sequence[Seen], budget: Budget, elapsed_minutes: float = 0.0, batch: int = 0
) -> Union[Next, Finished]:
    """What to do next.

    Plans come in the order of the space. A family (same passes) is given up once two of its plans were measured and each, at the
    favourable end of its interval, was worse than the baseline on every device: without such evidence nothing is pruned.

    Args:
        batch: at most so many plans at once; 0 = all that the budget allows.
    """
    known = {s.plan.key for s in seen}
    poor = _poor_families(seen)
    open_plans = [p for p in space if p.key not in known]
    given_up = tuple((p, f"{p.family}: {poor[p.family]}") for p in open_plans if p.family in poor)
    left = tuple(p for p in open_plans if p.family not in poor)
    if not left:
        return Finished("every plan has been run", given_up=given_up)
    room = budget.variants - len(known)
    if room <= 0:
        return Finished(f"the budget of {budget.variants} variants is used up", left, given_up)
    if elapsed_minutes >= budget.minutes:
        return Finished(f"the budget of {budget.minutes:g} minutes is used up", left, given_up)
    return Next(left[: min(room, batch or room)], given_up)


def _poor_families(seen: Sequence[Seen]) -> dict[str, str]:
    measured: dict[str, list[float]] = defaultdict(list)
    for one in seen:
        if one.gain_high is not None:
            measured[one.plan.family].append(one.gain_high)
    return {
        family: f"{len(highs)} of its plans were worse than the baseline (at best {max(highs):.2f}x)"
        for family, highs in measured.items()
        if len(highs) >= _ENOUGH and max(highs) < 1.0
    }

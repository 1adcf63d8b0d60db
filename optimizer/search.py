"""Which plans to run next: a pure function of the space, the budget and what has ended, so a restart loses nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Union

from optimizer.recipe import Plan


@dataclass(frozen=True)
class Budget:
    """`variants`: plans to run at most; `minutes`: wall time of optimising."""

    variants: int = 40
    minutes: float = 30.0


@dataclass(frozen=True)
class Next:
    """Plans to run now, in this order."""

    plans: tuple[Plan, ...]


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

"""The search: a pure function of what has ended."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from optimizer.recipe import Plan, Step
from optimizer.search import Budget, Finished, Next, step

SPACE = [Plan(f"static{i}", (Step("quantize_static", {"samples": i + 1}),)) for i in range(10)]
KEYS = [plan.key for plan in SPACE]


def test_everything_in_order() -> None:
    assert step(SPACE, [], Budget()) == Next(tuple(SPACE))
    assert step(SPACE, KEYS[:4], Budget()) == Next(tuple(SPACE[4:]))
    assert step(SPACE, KEYS, Budget()) == Finished("every plan has been run")


def test_budgets() -> None:
    assert step(SPACE, KEYS[:1], Budget(variants=3)) == Next(tuple(SPACE[1:3]))
    assert step(SPACE, KEYS[:1], Budget(variants=1)) == Finished("the budget of 1 variants is used up", tuple(SPACE[1:]))
    assert step(SPACE, [], Budget(minutes=2), 2.0) == Finished("the budget of 2 minutes is used up", tuple(SPACE))


@given(variants=st.integers(0, 12), interrupted=st.lists(st.integers(1, 4), max_size=12))
def test_it_ends_and_never_repeats(variants: int, interrupted: list[int]) -> None:
    ended: list[str] = []
    while isinstance(found := step(SPACE, ended, Budget(variants)), Next):
        assert found.plans
        count = interrupted.pop() if interrupted else len(found.plans)
        ended += [p.key for p in found.plans[:count]]
    assert len(ended) == len(set(ended)) <= variants
    assert {*ended, *(p.key for p in found.left)} == set(KEYS)

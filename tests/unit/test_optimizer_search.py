"""The search: a pure function of what is known."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from optimizer.recipe import Plan, Step
from optimizer.search import Budget, Finished, Next, Seen, step

STATIC = [Plan(f"static{i}", (Step("quantize_static", {"samples": i + 1}),)) for i in range(5)]
DYNAMIC = [Plan(f"dynamic{i}", (Step("quantize_dynamic", {"op_types": f"Op{i}"}),)) for i in range(5)]
SPACE = [plan for pair in zip(STATIC, DYNAMIC) for plan in pair]


def test_everything_in_order() -> None:
    assert step(SPACE, [], Budget()) == Next(tuple(SPACE))
    assert step(SPACE, [], Budget(), batch=3) == Next(tuple(SPACE[:3]))
    assert step(SPACE, [Seen(p) for p in SPACE], Budget()) == Finished("every plan has been run")


def test_budgets() -> None:
    assert step(SPACE, [Seen(SPACE[0])], Budget(variants=3)) == Next(tuple(SPACE[1:3]))
    used_up = step(SPACE, [Seen(SPACE[0])], Budget(variants=1))
    assert used_up == Finished("the budget of 1 variants is used up", tuple(SPACE[1:]))
    assert step(SPACE, [], Budget(minutes=2), elapsed_minutes=2.0) == Finished("the budget of 2 minutes is used up", tuple(SPACE))


def test_a_family_is_given_up_on_evidence_only() -> None:
    poor = [Seen(DYNAMIC[0], 0.5), Seen(DYNAMIC[1], 0.9)]
    found = step(SPACE, poor, Budget())
    assert isinstance(found, Next)
    assert found.plans == tuple(STATIC)
    assert [p for p, _ in found.given_up] == DYNAMIC[2:]
    assert found.given_up[0][1] == "quantize_dynamic: 2 of its plans were worse than the baseline (at best 0.90x)"


def test_too_little_evidence_prunes_nothing() -> None:
    for seen in (
        [Seen(DYNAMIC[0], 0.5)],
        [Seen(DYNAMIC[0], 0.5), Seen(DYNAMIC[1], 1.1)],
        [Seen(DYNAMIC[0]), Seen(DYNAMIC[1], failed=True)],
    ):
        found = step(SPACE, seen, Budget())
        assert isinstance(found, Next)
        assert found.given_up == ()


@given(
    variants=st.integers(0, 12),
    batch=st.integers(1, 4),
    gains=st.lists(st.one_of(st.none(), st.floats(0.1, 3)), min_size=10, max_size=10),
)
def test_it_ends_and_never_repeats(variants: int, batch: int, gains: list[float | None]) -> None:
    seen: list[Seen] = []
    while isinstance(found := step(SPACE, seen, Budget(variants=variants), batch=batch), Next):
        assert found.plans
        seen += [Seen(p, gains[SPACE.index(p)]) for p in found.plans]
    ran = [s.plan for s in seen]
    assert len(ran) == len({p.key for p in ran}) <= variants
    assert {p.key for p in [*ran, *found.left, *(p for p, _ in found.given_up)]} == {p.key for p in SPACE}

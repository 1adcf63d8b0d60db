"""The search: a pure function of what has ended."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.recipe import Plan, Step, parameters_in_full, varied
from optimizer.refinements import Proposal, Results, Seen, Tried
from optimizer.search import AT_ONCE, Budget, Finished, Next, look, step

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


WHERE = ("bench-1", "pi-1")


DEFAULT = Budget()


def tried(index: int, number: int, gain: float = 0.0, excess: float | None = -0.1) -> Tried:
    return Tried(SPACE[index], number, seen=(Seen(WHERE[0], gain, excess, "accuracy_drop"),))


def a_rule(*indices: int) -> tuple[object, ...]:
    def rule(results: Results) -> Iterator[Proposal]:
        yield from (Proposal(SPACE[i], f"because of {i}", i / 10) for i in indices)

    return (rule,)


def after(*found: Tried, budget: Budget = DEFAULT, spent: bool = False, minutes: float = 0.0, wants: tuple[int, ...] = (0, 1, 2)) -> object:
    results = Results(found, {WHERE[0]: 0.0}, spent=spent)
    return look(results, {t.plan.key for t in found}, budget, minutes, a_rule(*wants))  # type: ignore[arg-type]


def test_a_look_takes_what_was_not_tried_the_largest_lead_first() -> None:
    assert after(tried(0, 1)) == Next((SPACE[2], SPACE[1]), ("because of 2", "because of 1"))
    assert after(tried(0, 1), wants=(0,)) == Finished("the results suggest nothing more")
    found = after(tried(0, 1), wants=tuple(range(10)))
    assert isinstance(found, Next)
    assert found.plans == tuple(SPACE[9 : 9 - AT_ONCE : -1])


def test_budgets_count_over_all_looks() -> None:
    assert after(tried(0, 1), budget=Budget(variants=2)) == Next((SPACE[2],), ("because of 2",))
    assert after(tried(0, 1), budget=Budget(variants=1)) == Finished("the budget of 1 variants is used up", (SPACE[2], SPACE[1]))
    assert after(tried(0, 1), minutes=30.0) == Finished("the budget of 30 minutes is used up", (SPACE[2], SPACE[1]))
    assert after(tried(0, 1), spent=True) == Finished("the budget of device time is spent", (SPACE[2], SPACE[1]))


def test_the_search_ends_when_the_front_stands_still_for_two_looks() -> None:
    first = tried(3, 1, 0.5)
    still = Finished("the last 2 looks brought nothing faster or more accurate", (SPACE[2], SPACE[1], SPACE[0]))
    assert isinstance(after(first, tried(4, 2, 0.4)), Next), "one look may be in vain"
    assert after(first, tried(4, 2, 0.4), tried(5, 3, 0.51)) == still, "faster by no more than noise"
    assert isinstance(after(first, tried(4, 2, 0.4), tried(5, 3, 0.6)), Next)
    assert isinstance(after(first, tried(4, 2, 0.4, -0.2), tried(5, 3, 0.4)), Next), "more accurate"
    assert after(first, tried(4, 2, 0.4), tried(5, 3, -0.4, -0.2)) == still, "slower than the baseline"
    assert after(first, tried(4, 2, 0.4), tried(5, 3, 0.9, None)) == still, "nobody knows how accurate"


def _pruned(ratio: float, int8: bool) -> Plan:
    steps = (varied(Step("prune_structured"), ratio=ratio), *([Step("quantize_static")] if int8 else []))
    return Plan(f"pruned{100 * ratio:.0f}" + ("-int8" if int8 else ""), steps)


STARTS = [Plan("int8", (Step("quantize_static"),)), *(_pruned(r, q) for r in (0.5, 0.3, 0.7) for q in (False, True))]
LAYERS = 30


def _truth(plan: Plan, most_pruned: float, needed: int, slope: float) -> tuple[float, float]:
    """Gain, and by how much the limit is broken: pruned by more than a share, or with too few layers in float."""
    gain, excess = 0.0, -0.01
    for each in plan.steps:
        full = parameters_in_full(each)
        if each.pass_name == "prune_structured":
            gain -= 2 * math.log(1 - float(full["ratio"])) * slope
            excess = max(excess, float(full["ratio"]) - most_pruned)
        else:
            gain += 0.7 * (1 - int(full["float_layers"]) / LAYERS)
            excess = max(excess, (needed - int(full["float_layers"])) / 100)
    return gain, excess if abs(excess) > 1e-9 else 0.0


@settings(deadline=None)
@given(
    most=st.tuples(*[st.floats(0, 1)] * 2),
    needed=st.tuples(*[st.integers(0, LAYERS + 5)] * 2),
    slopes=st.tuples(*[st.floats(-0.2, 1)] * 2),
    lost=st.sets(st.integers(0, 60)),
    variants=st.integers(7, 60),
)
def test_looks_end_and_never_propose_what_was_run(
    most: tuple[float, ...], needed: tuple[int, ...], slopes: tuple[float, ...], lost: set[int], variants: int
) -> None:
    """Two classes with truths of their own; some plans fail, and some are never measured."""
    known: list[Tried] = []
    plans, number = STARTS, 1
    while True:
        for plan in plans:
            at, seen = len(known), []
            for where, *truth in zip(WHERE, most, needed, slopes):
                gain, excess = _truth(plan, *truth)  # type: ignore[arg-type]
                seen.append(Seen(where, gain, excess, "accuracy_drop") if at not in lost or at % 2 else Seen(where))
            known.append(Tried(plan, number, failed=at in lost and at % 3 == 0, seen=() if at in lost and at % 3 == 0 else tuple(seen)))
        leaders = {w: max([0.0, *(t.on(w).gain or 0.0 for t in known if t.on(w).holds)]) for w in WHERE}
        found = look(Results(tuple(known), leaders, LAYERS), {t.plan.key for t in known}, Budget(variants))
        if isinstance(found, Finished):
            break
        assert 0 < len(found.plans) == len(found.reasons) <= AT_ONCE
        assert not {p.key for p in found.plans} & {t.plan.key for t in known}
        plans, number = list(found.plans), number + 1
        assert number < 30
    assert len(known) <= variants
    assert len({t.plan.key for t in known}) == len(known)


@settings(deadline=None)
@given(needed=st.integers(1, LAYERS - 1))
def test_the_fewest_layers_that_hold_the_limit_are_found(needed: int) -> None:
    """Where nothing else is faster, and each layer in float costs more than noise."""
    known = [Tried(STARTS[0], seen=(Seen(WHERE[0], 3.0, needed / 100, "accuracy_drop"),))]
    for number in range(2, 30):
        leader = max([0.0, *(t.seen[0].gain or 0.0 for t in known if t.seen[0].holds)])
        found = look(Results(tuple(known), {WHERE[0]: leader}, LAYERS + 5), {t.plan.key for t in known}, Budget())
        if isinstance(found, Finished):
            break
        (plan,) = found.plans
        count = int(parameters_in_full(plan.steps[0])["float_layers"])
        known.append(
            replace(
                known[0], plan=plan, look=number, seen=(replace(known[0].seen[0], gain=3 - 0.05 * count, excess=(needed - count) / 100),)
            )
        )
    held = [int(parameters_in_full(t.plan.steps[0])["float_layers"]) for t in known if t.seen[0].holds]
    assert min(held, default=0) == needed

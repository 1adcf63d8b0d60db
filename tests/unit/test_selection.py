"""Choosing: rules that a wrong choice would break, one by one."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.evidence import COMPARE, Evidence, Group, Launch, Scores, stage_of
from controller.limits import broken
from controller.selection import choose
from edgefarm.model import Conditions, ContenderResult, Failure, FailureKind, LatencyResult, LatencyWork
from edgefarm.statistics import paired_difference
from tests.fakes.world import FakeWorld, Truth, make_group

BASE = Truth("source", 1_000_000, 0.92, 2_800_000)
FAST = Truth("int8", 400_000, 0.92, 750_000)


def launches(
    group: Group, position: int, p50: float, order: str, n: int = 10, p99: float = 0.0, base_p99: float = 0.0
) -> tuple[Launch, ...]:
    """Launches of one candidate against a baseline of 1 ms."""
    base, key = group.baseline.key, group.entries[position].key
    found = []
    for index in range(n):
        wobble = 1 + 0.001 * (index % 3)
        reference = ContenderResult(base, 800, 1e6, 1_000_000, 1_100_000, round(base_p99 or 1_300_000))
        value = round(p50 * wobble)
        result = ContenderResult(key, 800, p50, value, round(value * 1.1), round(p99 or value * 1.3))
        found.append(Launch(order, index, "d1", result, reference, Conditions(), 1))
    return tuple(found)


def evidence_of(group: Group, measured: dict[int, tuple[Launch, ...]]) -> Evidence:
    world = FakeWorld([BASE, FAST])
    known = world.run(make_group([BASE, FAST]))
    score = next(iter(known.scores.values()))
    keys = {group.entries[i].key: x for i, x in measured.items()}
    baseline = tuple(replace(x, result=x.reference) for x in next(iter(measured.values())))
    return Evidence(
        screened={k: x[0] for k, x in keys.items()},
        launches={group.baseline.key: baseline, **keys},
        scores={e.key: score for e in group.entries},
    )


def test_candidates_that_never_met_are_compared_by_way_of_the_baseline() -> None:
    group = make_group([BASE, Truth("much-faster", 1, size=500), Truth("little-faster", 1, size=400)])
    evidence = evidence_of(group, {1: launches(group, 1, 250_000, "o1"), 2: launches(group, 2, 900_000, "o2")})
    choice = choose(group, evidence, "d1")
    assert choice.winner == group.entries[1]


def test_a_smaller_one_that_may_be_much_slower_is_not_called_equal() -> None:
    group = make_group([BASE, Truth("leader", 1, size=500), Truth("smaller", 1, size=499)])
    leader, other = launches(group, 1, 400_000, "o"), []
    for launch, factor in zip(launches(group, 2, 400_000, "o"), (0.95, 1.2, 1.0, 1.15, 0.98, 1.1, 1.0, 1.12, 0.97, 1.18)):
        other.append(replace(launch, result=replace(launch.result, p50_ns=round(launch.result.p50_ns * factor))))
    evidence = evidence_of(group, {1: leader, 2: tuple(other)})
    choice = choose(replace(group, accept=("stable", "noisy", "unsteady")), evidence, "d1")
    assert choice.winner == group.entries[1]


@pytest.mark.parametrize(("objective", "wins"), [("latency_p50", True), ("latency_p99", False)])
def test_the_objective_is_what_is_compared(objective: str, wins: bool) -> None:
    group = make_group([BASE, FAST], objective=objective)
    evidence = evidence_of(group, {1: launches(group, 1, 400_000, "o", p99=90_000_000, base_p99=5_000_000)})
    choice = choose(group, evidence, "d1")
    assert choice.winner == group.entries[1 if wins else 0]


def test_a_percentile_that_cannot_be_stated_wins_nothing() -> None:
    group = make_group([BASE, FAST], objective="latency_p99")
    few = tuple(replace(x, result=replace(x.result, n=20), reference=replace(x.reference, n=20)) for x in launches(group, 1, 400_000, "o"))
    choice = choose(group, evidence_of(group, {1: few}), "d1")
    assert choice.winner is None
    assert "too few to state it" in choice.judgement(group.entries[1].key).rejected


def flaky_world(bad: int) -> tuple[FakeWorld, Group]:
    """The baseline fails in `bad` launches of every comparison."""
    world, group = FakeWorld([BASE, FAST]), make_group([BASE, FAST])
    world.run(group)
    for name, status in world.orders.items():
        if stage_of(name) != COMPARE or not isinstance(status.order.work, LatencyWork):
            continue
        attempts = list(status.attempts)
        for position in range(bad):
            outcome = attempts[position].outcome
            assert isinstance(outcome, LatencyResult)
            failed = replace(outcome.contenders[0], failure=Failure(FailureKind.TIMEOUT, "once"))
            attempts[position] = replace(attempts[position], outcome=replace(outcome, contenders=(failed, *outcome.contenders[1:])))
        world.orders[name] = replace(status, attempts=tuple(attempts))
    return world, group


def test_one_bad_launch_among_good_ones_condemns_nobody() -> None:
    world, group = flaky_world(1)
    choice = choose(group, world.evidence(group), "d1")
    assert choice.winner == group.entries[1]
    assert choice.judgement(group.baseline.key).feasible


def test_a_baseline_that_fails_again_and_again_does_not_let_others_win_unbeaten() -> None:
    world, group = flaky_world(3)
    choice = choose(group, world.evidence(group), "d1")
    assert choice.judgement(group.baseline.key).rejected.startswith("failed: timeout")
    assert choice.winner in (None, group.entries[1])
    if choice.winner is not None:
        speedup = choice.judgement(choice.winner.key).speedup
        assert speedup is not None
        assert speedup.low > 1


def test_noise_of_the_baseline_alone_is_said() -> None:
    group = make_group([BASE, FAST])
    loud = tuple(
        replace(
            x,
            result=replace(x.result, p50_ns=round(x.result.p50_ns * f)),
            reference=replace(x.reference, p50_ns=round(x.reference.p50_ns * f)),
        )
        for x, f in zip(launches(group, 1, 400_000, "o"), (1, 2, 1, 3, 1, 2, 1, 3, 1, 2))
    )
    choice = choose(group, evidence_of(group, {1: loud}), "d1")
    assert choice.winner == group.entries[1]  # ratios are paired
    verdict = choice.judgement(group.baseline.key).verdict
    assert verdict is not None
    assert verdict.value != "stable"


@settings(max_examples=40)
@given(st.sampled_from([math.nan, math.inf, -math.inf]), st.sampled_from(["accuracy_drop", "accuracy_min"]))
def test_a_score_that_is_no_number_breaks_every_limit(value: float, name: str) -> None:
    group = make_group([BASE, FAST], constraints={name: 0.5})
    evidence = evidence_of(group, {1: launches(group, 1, 400_000, "o")})
    key = group.entries[1].key
    bad = replace(evidence.scores[key].selection, value=-abs(value), drop=abs(value))
    evidence = replace(evidence, scores={**evidence.scores, key: Scores(bad, bad, "mse", True)})
    assert broken(group, group.entries[1], evidence)
    assert choose(group, evidence, "d1").winner != group.entries[1]


def test_there_is_no_difference_to_what_is_no_number() -> None:
    with pytest.raises(ValueError, match="NaN"):
        paired_difference([1.0, math.nan], [1.0, 2.0])


@pytest.mark.parametrize(("center", "inconclusive"), [(1_000_000, False), (400_000, True)])
def test_doubt_matters_only_where_there_is_something_to_gain(center: int, inconclusive: bool) -> None:
    group = make_group([BASE, FAST])
    spread = (1, 3, 0.3, 2, 0.5, 3, 0.3, 1, 2, 0.5)
    loud = tuple(
        replace(x, result=replace(x.result, p50_ns=round(x.result.p50_ns * f))) for x, f in zip(launches(group, 1, center, "o"), spread)
    )
    choice = choose(group, evidence_of(group, {1: loud}), "d1")
    assert choice.winner == group.baseline
    assert choice.judgement(group.entries[1].key).rejected.startswith("verdict noisy")
    assert choice.inconclusive == inconclusive

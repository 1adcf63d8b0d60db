"""The race against worlds whose truth is known: its rate, its end, its budget, and that it forgets nothing over a restart."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.evidence import COMPARE, CONTROL, Evidence, stage_of
from controller.planner import finalists, next_step
from controller.racing import CONTENDERS, ERROR_RATE, FIELD, FINALISTS, LAUNCHES, ROUND, ahead, stand
from controller.screening import close
from controller.selection import choose
from edgefarm.model import Attempt, Failure, FailureKind, LatencyResult, LatencyWork, Order, OrderState, OrderStatus, Outcome, Scenario
from tests.fakes.world import FakeWorld, Truth, entry, make_group

BASE = Truth("source", 1_000_000, 0.92, 2_800_000)


def compared(world: FakeWorld) -> list[LatencyWork]:
    works = [s.order.work for s in world.orders.values() if stage_of(s.order.id) == COMPARE]
    return [w for w in works if isinstance(w, LatencyWork)]


def keys_of(work: LatencyWork) -> list[str]:
    return [c.key for c in work.contenders]


@pytest.mark.parametrize("heavy", [False, True])
def test_at_all_looks_together_the_best_leaves_no_more_often_than_stated(heavy: bool) -> None:
    """Three alike contenders, the hardest case: 400 races of five looks; the bound is the rate plus three standard errors."""
    rng, runs, lost = random.Random(11), 400, 0

    def launch() -> float:
        return rng.gauss(0, 0.003) / math.sqrt(rng.gammavariate(2.0, 0.5)) if heavy else rng.gauss(0, 0.003)

    for _ in range(runs):
        logs: dict[int, list[float]] = {0: [], 1: [], 2: []}
        alive = set(logs)
        while len(logs[0]) < LAUNCHES:
            for values in logs.values():
                values.extend(launch() for _ in range(ROUND))
            leader = min(alive, key=lambda i: fmean(logs[i]))
            pairs = {i: [b - a for a, b in zip(logs[leader], logs[i])] for i in alive if i != leader}
            alive -= {i for i, values in pairs.items() if ahead(values, len(alive)) > 0}
        lost += 0 not in alive
    assert lost / runs <= ERROR_RATE + 3 * math.sqrt(ERROR_RATE * (1 - ERROR_RATE) / runs)


@settings(max_examples=200)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20), st.integers(2, 8))
def test_a_lead_is_never_more_than_was_seen_and_less_sure_among_more(logs: list[float], contenders: int) -> None:
    assert ahead(logs, contenders + 1) <= ahead(logs, contenders) <= fmean(logs) + 1e-12
    assert ahead(logs[:1], contenders) == -math.inf


@given(st.floats(-2, 2), st.floats(0, 0.5), st.floats(-2, 2), st.floats(0, 0.5))
def test_who_looks_faster_always_runs_and_doubt_never_excludes(a: float, wide: float, b: float, narrow: float) -> None:
    assert close((min(a, b), wide), (max(a, b), narrow))
    if close((a, wide), (b, narrow)):
        assert close((a, wide + 0.1), (b, narrow))
    assert not close((b + 0.05, 0.0), (b, 0.0))


def test_the_best_of_many_alike_survives_as_often_as_stated() -> None:
    """40 worlds of eight candidates within 6 %, launches that spread by 1 %: the best is among what the race leaves."""
    lost = 0
    for seed in range(40):
        rng = random.Random(seed)
        truths = (BASE, *(Truth(f"v{i}", round(500_000 * (1 + rng.uniform(0, 0.06))), 0.92) for i in range(8)))
        world, group = FakeWorld(truths, noise=0.01, seed=seed), make_group(truths)
        evidence = world.run(group)
        best = min(truths[1:], key=lambda t: t.latency_ns)
        won = world.truth((choose(group, evidence, "d1").winner or group.baseline).key)
        lost += won.latency_ns > best.latency_ns * 1.03
    assert lost <= 40 * ERROR_RATE + 3 * math.sqrt(40 * ERROR_RATE * (1 - ERROR_RATE))


def test_what_is_plain_takes_one_block() -> None:
    truths = (BASE, *(Truth(f"v{i}", 300_000 + i * 100_000, 0.92) for i in range(9)))
    world, group = FakeWorld(truths, noise=0.003), make_group(truths)
    evidence = world.run(group)
    assert [keys_of(w) for w in compared(world)] == [[group.baseline.key, entry(truths[1]).key, CONTROL]]
    assert len(evidence.accuracy) == 2  # the baseline's, and that of the only one that may win
    assert choose(group, evidence, "d1").winner == group.entries[1]


def test_what_is_left_of_the_budget_goes_to_those_that_are_close() -> None:
    launches = {400_500: 0, 700_000: 0}  # of all candidates, over some worlds, by how slow the second one is
    for other, seed in itertools.product(launches, range(6)):
        truths = (BASE, Truth("a", 400_000, 0.92), Truth("b", other, 0.92), Truth("slow", 900_000, 0.92))
        world, group = FakeWorld(truths, noise=0.015, seed=seed), make_group(truths)
        counts = {t.name: len(world.run(group).launches.get(entry(t).key, ())) for t in truths[1:]}
        assert counts["slow"] == 0
        assert max(counts.values()) <= LAUNCHES
        launches[other] += sum(counts.values())
    assert launches[400_500] > 1.5 * launches[700_000]


def test_more_close_candidates_than_a_round_holds_meet_the_leader_in_later_rounds() -> None:
    truths = (BASE, *(Truth(f"v{i}", 400_000 + i * 1000, 0.92) for i in range(6)))
    world, group = FakeWorld(truths, noise=0.005, seed=1), make_group(truths)
    evidence = world.run(group)
    works = compared(world)
    assert all(len(w.contenders) <= CONTENDERS and w.contenders[0].key == group.baseline.key for w in works)
    assert FINALISTS < sum(entry(t).key in evidence.launches for t in truths[1:]) <= FIELD
    later = [keys_of(w) for w in works[1:]]
    assert later
    assert all(any(k in keys_of(works[0])[1:] for k in ks[1:]) for ks in later)  # somebody who ran before is there to be paired with


races = st.lists(st.tuples(st.integers(200_000, 1_500_000), st.sampled_from([0.92, 0.92, 0.92, 0.5])), min_size=1, max_size=9)


@settings(max_examples=25, deadline=None)
@given(races, st.integers(0, 9), st.sampled_from([0.0, 0.004, 0.03, 0.3]))
def test_every_race_ends_and_asks_no_launch_twice(field: list[tuple[int, float]], seed: int, noise: float) -> None:
    truths = (BASE, *(Truth(f"v{i}", ns, accuracy) for i, (ns, accuracy) in enumerate(field)))
    world, group = FakeWorld(truths, noise=noise, seed=seed), make_group(truths)
    evidence = world.run(group)
    launches = [i for w in compared(world) for i in w.launches]
    assert sorted(launches) == list(range(len(launches)))
    most = LAUNCHES + ROUND * (FIELD // 2)  # a leader goes along with newcomers
    assert all(len(x) <= most for k, x in evidence.launches.items() if k != group.baseline.key)
    assert stand(group, evidence).order is None
    assert [e for e in finalists(group, evidence) if e.key not in evidence.launches] == []


@settings(max_examples=25, deadline=None)
@given(races, st.integers(0, 9), st.integers(0, 60))
def test_a_budget_is_kept_but_for_the_round_that_goes_on(field: list[tuple[int, float]], seed: int, seconds: int) -> None:
    truths = (BASE, *(Truth(f"v{i}", ns, accuracy) for i, (ns, accuracy) in enumerate(field)))
    world, group = FakeWorld(truths, noise=0.05, seed=seed), make_group(truths, budget_ns=seconds * 10**9)
    asked: list[tuple[int, int]] = []

    def look(evidence: Evidence) -> None:
        step = next_step(group, evidence)
        if step.stage == COMPARE:
            asked.append((evidence.spent_ns, min(o.work.launches[0] for o in step.orders if isinstance(o.work, LatencyWork))))

    world.run(group, look)
    assert all(spent < group.budget_ns for spent, first in asked if first > 0)


@settings(max_examples=15, deadline=None)
@given(races, st.integers(0, 9), st.randoms())
def test_with_failures_in_the_race_a_restart_still_asks_for_the_same(field: list[tuple[int, float]], seed: int, rng: random.Random) -> None:
    """One candidate crashes whenever it is compared; orders are answered one by one, and known in any order."""
    truths = (BASE, *(Truth(f"v{i}", ns, accuracy) for i, (ns, accuracy) in enumerate(field)))
    group = make_group(truths)
    cursed = entry(rng.choice(truths[1:])).key

    def answer(world: FakeWorld, shuffle: bool) -> None:
        for _ in range(300):
            if shuffle:
                known = list(world.orders.items())
                rng.shuffle(known)
                world.orders = dict(known)
            step = next_step(group, world.evidence(group))
            if not step.orders:
                return
            for order in [rng.choice(step.orders)] if shuffle else step.orders:
                world.answer(order)
                if stage_of(order.id) == COMPARE:
                    world.orders[order.id] = _with_crash(world.orders[order.id], cursed)
        raise AssertionError("the planner never ends")

    straight, restarted = (FakeWorld(truths, noise=0.01, seed=seed) for _ in range(2))
    answer(straight, shuffle=False)
    answer(restarted, shuffle=True)
    assert set(straight.orders) == set(restarted.orders)
    winner = choose(group, straight.evidence(group), "d1").winner
    assert winner is not None
    assert winner.key != cursed


def _with_crash(status: OrderStatus, key: str) -> OrderStatus:
    crash = Failure(FailureKind.CRASH, "in the race")

    def changed(attempt: Attempt) -> Attempt:
        assert isinstance(attempt.outcome, LatencyResult)
        contenders = tuple(replace(c, failure=crash) if c.key == key else c for c in attempt.outcome.contenders)
        return replace(attempt, outcome=replace(attempt.outcome, contenders=contenders))

    return replace(status, attempts=tuple(map(changed, status.attempts)))


def test_a_round_that_gave_nothing_is_taken_apart() -> None:
    truths = (BASE, Truth("a", 400_000, 0.92), Truth("b", 401_000, 0.92))
    world, group = FakeWorld(truths, noise=0.002), make_group(truths)
    while (step := next_step(group, world.evidence(group))).stage != COMPARE:
        for order in step.orders:
            world.answer(order)
    (order,) = step.orders
    world.orders[order.id] = OrderStatus(order, OrderState.QUARANTINED, "d1", ())
    evidence = world.run(group)
    alone = [keys_of(w) for w in compared(world)[1:3]]
    assert sorted(alone) == sorted([group.baseline.key, entry(t).key] for t in truths[1:])
    winner = choose(group, evidence, "d1").winner
    assert winner in group.entries[1:]


def test_the_control_arm_runs_once_where_a_place_is_free_and_is_no_candidate() -> None:
    truths = (BASE, Truth("a", 400_000, 0.92), Truth("b", 402_000, 0.92))
    world, group = FakeWorld(truths, noise=0.02, seed=4), make_group(truths)
    evidence = world.run(group)
    arms = [CONTROL in keys_of(w) for w in compared(world)]
    assert arms[0]
    assert sum(arms) == 1
    assert len(evidence.control) == ROUND
    assert CONTROL not in evidence.launches


def test_a_noisy_machine_makes_smaller_differences_not_matter() -> None:
    """By the control arm: with a floor of some percent two that may differ by less need no more launches."""
    truths = (BASE, Truth("a", 400_000, 0.92), Truth("b", 400_000, 0.92))
    group = make_group(truths)

    def wanted(evidence: Evidence) -> list[str]:
        order = stand(group, evidence).order
        return keys_of(order.work) if order is not None and isinstance(order.work, LatencyWork) else []

    for seed in range(300):
        usual = FakeWorld(truths, noise=0.03, seed=seed).run(group)
        first = {x.order for x in usual.control}
        one_block = replace(
            usual,
            launches={k: tuple(x for x in xs if x.order in first) for k, xs in usual.launches.items()},
            ended=usual.ended - ({o for o in usual.ended if stage_of(o) == COMPARE} - first),
        )
        if len(stand(group, one_block).alive) == 2 and len(wanted(one_block)) == 3:
            break
    else:
        pytest.fail("in no world is the difference of both in doubt")
    factors = (0.9, 1.1, 0.9, 1.1, 1.0)
    loud = [replace(x, result=replace(x.result, p50_ns=round(x.reference.p50_ns * f))) for x, f in zip(usual.control, factors)]
    assert len(wanted(replace(one_block, control=tuple(loud)))) < 3


@pytest.mark.parametrize("kind", ["sustained", "server"])
def test_where_the_user_says_how_long_a_launch_lasts_no_control_arm_prolongs_it(kind: str) -> None:
    truths = (BASE, Truth("a", 400_000, 0.92))
    world, group = FakeWorld(truths), make_group(truths, scenario=Scenario(kind, 10.0, (), 10**9))
    world.run(group)
    assert compared(world)
    assert not any(CONTROL in keys_of(w) for w in compared(world))


def test_bad_verdicts_are_taken_again_up_to_the_limit() -> None:
    truths = (BASE, Truth("a", 200_000, 0.92))
    world, group = FakeWorld(truths, noise=0.7, seed=3), make_group(truths)
    evidence = world.run(group)
    assert len(evidence.launches[entry(truths[1]).key]) == LAUNCHES


def test_who_breaks_a_limit_in_the_race_drives_nobody_out() -> None:
    """The fastest takes too long to load, which one screening could not tell for sure; the next is chosen."""
    truths = (BASE, Truth("fast", 300_000, 0.92), Truth("fine", 310_000, 0.92))
    world, group = FakeWorld(truths, noise=0.002), make_group(truths, constraints={"accuracy_drop": 0.01, "load_ms": 1.0})
    slow_to_load = entry(truths[1]).key

    def answer(step_orders: Sequence[Order]) -> None:
        for order in step_orders:
            world.answer(order)
            status = world.orders[order.id]
            if isinstance(order.work, LatencyWork):
                attempts = tuple(replace(a, outcome=_loading(a.outcome, slow_to_load)) for a in status.attempts)
                world.orders[order.id] = replace(status, attempts=attempts)

    while (step := next_step(group, world.evidence(group))).orders:
        answer(step.orders)
    winner = choose(group, world.evidence(group), "d1").winner
    assert winner is not None
    assert winner.variant == "fine"


def _loading(outcome: Outcome, slow: str) -> Outcome:
    """Everything loads in .9 ms, one in 1.1 ms."""
    assert isinstance(outcome, LatencyResult)
    return replace(outcome, contenders=tuple(replace(c, load_ns=1_100_000 if c.key == slow else 900_000) for c in outcome.contenders))


def test_of_candidates_that_take_the_same_time_the_most_accurate_runs_alone() -> None:
    accuracies = (0.915, 0.918, 0.912)
    truths = (BASE, *(Truth(f"v{i}", 400_000, accuracy, form="static") for i, accuracy in enumerate(accuracies)))
    world, group = FakeWorld(truths, noise=0.003), make_group(truths)
    evidence = world.run(group)
    assert set(evidence.launches) == {entry(truths[0]).key, entry(truths[2]).key}
    assert len(evidence.accuracy) == len(truths), "whichever of them runs, the accuracy of each has to be known first"
    choice = choose(group, evidence, "d1")
    assert choice.winner == group.entries[2]
    assert "v1 has the same operators and shapes" in choice.judgement(entry(truths[1]).key).rejected
    without = [replace(t, form="") for t in truths]
    assert world_launches(without) > world_launches(truths)


def world_launches(truths: Sequence[Truth]) -> int:
    evidence = FakeWorld(truths, noise=0.003).run(make_group(truths))
    return sum(len(found) for found in evidence.launches.values())


def test_what_breaks_a_limit_or_fails_leaves_its_place_to_one_that_takes_the_same_time() -> None:
    truths = (BASE, Truth("lost", 400_000, 0.5, form="static"), Truth("kept", 402_000, 0.919, form="static"))
    world, group = FakeWorld(truths, noise=0.003), make_group(truths)
    assert choose(group, world.run(group), "d1").winner == group.entries[2]
    failing = [BASE, Truth("best", 400_000, 0.92, form="static"), Truth("next", 402_000, 0.919, form="static")]
    world, group = FakeWorld(failing, noise=0.003), make_group(failing)
    failed = entry(failing[1]).key

    def fails_from_now_on(evidence: Evidence) -> None:
        if failed in evidence.accuracy and world.truth(failed).failure is None:
            world.truths = [t if t.name != "best" else replace(t, failure=FailureKind.CRASH) for t in failing]
            del world.__dict__["_by_key"]

    evidence = world.run(group, fails_from_now_on)
    assert failed in evidence.failures
    assert choose(group, evidence, "d1").winner == group.entries[2]


def test_a_screening_that_tells_them_apart_is_believed_before_their_form() -> None:
    truths = (BASE, Truth("a", 400_000, 0.92, form="static"), Truth("b", 480_000, 0.92, form="static"))
    bursts = (100_000.0,) * 5
    world, group = FakeWorld(truths, noise=0.003, bursts=bursts), make_group(truths)
    evidence = world.run(group)
    assert choose(group, evidence, "d1").winner == group.entries[1]
    assert "behind those that were compared" in choose(group, evidence, "d1").judgement(entry(truths[2]).key).rejected

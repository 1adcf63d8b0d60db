"""The planner and the selection against worlds whose truth is known."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.evidence import (
    ACCURACY,
    COMPARE,
    CONFIRM,
    CONTROL,
    ENERGY,
    EVALUATE,
    MEMORY,
    PROFILE,
    SCREEN,
    Evaluation,
    Evidence,
    Group,
    fold,
    stage_of,
)
from controller.planner import CONTENDERS, ROUND, finalists, next_step
from controller.selection import choose, too_slow
from controller.transfer import Table
from edgefarm.model import AccuracyWork, Attempt, Failure, FailureKind, LatencyWork, OrderState, OrderStatus, Reduction
from tests.fakes.world import FakeWorld, Truth, entry, make_group

BASE = Truth("source", 1_000_000, 0.92, 2_800_000)
USUAL = (
    BASE,
    Truth("int8", 400_000, 0.918, 750_000),
    Truth("int8-lossy", 300_000, 0.70, 750_000),
    Truth("dynamic", 13_000_000, 0.92, 760_000),
    Truth("fp16", 1_010_000, 0.92, 1_400_000),
    Truth("broken", 1, failure=FailureKind.LOAD),
    Truth("nan", 1, failure=FailureKind.NUMERIC),
)


def test_the_usual_world_ends_with_the_fastest_feasible_and_true_reasons() -> None:
    world, group = FakeWorld(USUAL), make_group(USUAL)
    choice = choose(group, world.run(group), "d1")
    assert choice.winner is not None
    assert choice.winner.variant == "int8"
    why = {j.entry.variant: j.rejected for j in choice.judgements}
    assert why["int8"] == ""
    assert why["int8-lossy"].startswith("accuracy_drop 0.22 > 0.01")
    assert re.match(r"1[23]\.\d+x slower than the baseline \(screened", why["dynamic"])
    assert why["broken"] == "failed: load: as told"
    assert why["nan"] == "failed: numeric: as told"
    assert "not better than the baseline" not in why["int8"]
    assert why["source"] == "the winner is better"


def test_stages_come_in_order_and_each_order_is_given_once() -> None:
    world, group = FakeWorld(USUAL), make_group(USUAL)
    world.run(group)
    stages = [stage_of(o) for o in world.answered]
    assert [s for i, s in enumerate(stages) if s not in stages[:i]] == [SCREEN, ACCURACY, COMPARE, EVALUATE, MEMORY, PROFILE]
    assert len(set(world.answered)) == len(world.answered)
    for status in world.orders.values():
        if isinstance(status.order.work, LatencyWork):
            assert status.order.work.contenders[0].key == group.baseline.key
            assert len(status.order.work.contenders) <= CONTENDERS


worlds = st.lists(
    st.builds(
        Truth,
        st.sampled_from([f"v{i}" for i in range(12)]),
        st.integers(50_000, 5_000_000),
        st.floats(0.5, 1.0),
        st.integers(1000, 10_000_000),
        st.integers(1, 500 * 2**20),
        st.sampled_from([None, None, None, None, *FailureKind]),
    ),
    max_size=11,
    unique_by=lambda t: t.name,
).map(lambda others: (BASE, *others))


@settings(max_examples=60, deadline=None)
@given(worlds, st.sampled_from(["latency_p50", "throughput", "size", "memory"]), st.integers(0, 5), st.floats(0.0, 0.3))
def test_what_breaks_a_limit_never_wins_and_the_planner_ends(truths: tuple[Truth, ...], objective: str, seed: int, noise: float) -> None:
    limits = {"accuracy_drop": 0.02, "memory_mib": 300.0, "size_mib": 5.0}
    world, group = FakeWorld(truths, noise=noise, seed=seed), make_group(truths, objective=objective, constraints=limits)
    choice = choose(group, world.run(group), "d1")
    by_key = {entry(t).key: t for t in truths}
    assert {j.entry.key for j in choice.judgements} == set(by_key)
    for judgement in choice.judgements:
        assert (judgement.rejected == "") == (choice.winner is not None and judgement.entry.key == choice.winner.key)
        if choice.winner is not None and "but not smaller" in judgement.rejected:
            assert by_key[judgement.entry.key].size >= by_key[choice.winner.key].size
    if choice.winner is not None:
        truth = by_key[choice.winner.key]
        assert truth.failure is None
        assert BASE.accuracy - truth.accuracy <= 0.02 + 1e-9
        assert truth.size <= 5 * 2**20
        assert truth.memory <= 300 * 2**20
    if choice.winner is not None and not choice.winner.baseline and objective == "latency_p50":
        speedup = choice.judgement(choice.winner.key).speedup
        assert speedup is not None
        assert speedup.low > 1.0


@settings(max_examples=30, deadline=None)
@given(worlds, st.integers(0, 3))
def test_with_little_noise_nothing_clearly_better_is_missed(truths: tuple[Truth, ...], seed: int) -> None:
    world, group = FakeWorld(truths, noise=0.002, seed=seed), make_group(truths)
    choice = choose(group, world.run(group), "d1")
    fine = [t for t in truths if t.failure is None and BASE.accuracy - t.accuracy <= 0.01 + 1e-12]
    best = min(t.latency_ns for t in fine)
    assert choice.winner is not None
    winner = world.truth(choice.winner.key)
    assert winner.latency_ns <= best * 1.03


@settings(max_examples=25, deadline=None)
@given(worlds, st.randoms())
def test_a_restart_at_any_point_gives_the_same_orders(truths: tuple[Truth, ...], rng: random.Random) -> None:
    group = make_group(truths)
    straight = FakeWorld(truths)
    straight.run(group)
    restarted = FakeWorld(truths)
    for _ in range(200):
        shuffled = list(restarted.orders.values())
        rng.shuffle(shuffled)
        known = fold(shuffled, "c1", {})
        step = next_step(group, replace(known, scores=restarted.scores(group, known)))
        if not step.orders:
            break
        restarted.answer(rng.choice(step.orders))  # one at a time, in any order
    assert set(restarted.answered) == set(straight.answered)


def test_a_batch_without_results_is_screened_one_by_one() -> None:
    group = make_group(USUAL)
    world = FakeWorld(USUAL)
    first = next_step(group, world.evidence(group)).orders[0]
    world.orders[first.id] = OrderStatus(first, OrderState.QUARANTINED, "d1", ())
    singles = [o for o in next_step(group, world.evidence(group)).orders if len(o.work.contenders) == 2]  # type: ignore[union-attr]
    batch = [c.key for c in first.work.contenders[1:]]  # type: ignore[union-attr]
    assert [o.work.contenders[1].key for o in singles] == batch  # type: ignore[union-attr]
    sizes = {e.key: e.size_bytes for e in group.entries[1:]}
    assert sorted(sizes[k] for k in batch) == sorted(sizes.values())[:3]
    choice = choose(group, world.run(group), "d1")
    assert choice.winner is not None
    assert choice.winner.variant == "int8"


def test_a_round_that_loses_its_device_is_taken_apart_to_find_the_culprit() -> None:
    truths = (BASE, Truth("int8", 400_000, 0.92), Truth("killer", 300_000, 0.92))
    world, group = FakeWorld(truths), make_group(truths)
    killer = group.entries[2].key
    for _ in range(50):
        orders = next_step(group, world.evidence(group)).orders
        if not orders:
            break
        for order in orders:
            work = order.work
            deadly = stage_of(order.id) == COMPARE and isinstance(work, LatencyWork) and killer in {c.key for c in work.contenders}
            if deadly:
                lost = Attempt(order.id, 0, "d1", 1, 1, Failure(FailureKind.DEVICE_LOST, "lost twice"))
                world.orders[order.id] = OrderStatus(order, OrderState.QUARANTINED, "d1", (lost,))
            else:
                world.answer(order)
    choice = choose(group, world.evidence(group), "d1")
    assert choice.winner is not None
    assert choice.winner.variant == "int8"
    assert choice.judgement(killer).rejected == "failed: device_lost: lost twice"


def test_every_device_of_a_class_confirms_what_it_did_not_compare_itself() -> None:
    group = make_group(USUAL, devices=("d1", "d2"))
    world = FakeWorld(USUAL)
    evidence = world.run(group)
    confirms = [s.order for s in world.orders.values() if stage_of(s.order.id) == CONFIRM]
    assert [o.device for o in confirms] == ["d2"]
    assert choose(group, evidence, "d2").winner == choose(group, evidence, "d1").winner


def test_a_device_that_had_part_of_the_comparison_confirms_with_the_rest() -> None:
    truths = (BASE, Truth("int8", 300_000, 0.92))
    group, world = make_group(truths, devices=("d1", "d2")), FakeWorld(truths)
    while next_step(group, world.evidence(group)).stage != CONFIRM:
        for order in next_step(group, world.evidence(group)).orders:
            world.answer(order)
    [compared] = [s for s in world.orders.values() if stage_of(s.order.id) == COMPARE]
    shared = tuple(replace(a, device="d2") if a.index < 2 else a for a in compared.attempts)
    world.orders[compared.order.id] = replace(compared, attempts=shared)
    asked = {o.device: o.work for o in next_step(group, world.evidence(group)).orders}
    lengths = {name: len(work.launches) for name, work in asked.items() if isinstance(work, LatencyWork)}
    assert lengths == {"d1": 2, "d2": ROUND - 2}
    evidence = world.run(group)
    assert [choose(group, evidence, name).winner for name in group.devices] == [group.entries[1]] * 2


def test_an_order_that_is_underway_stays_wanted_whatever_its_first_launches_say() -> None:
    group = make_group(USUAL, devices=("d1", "d2"))
    world, noisy = FakeWorld(USUAL), FakeWorld(USUAL, noise=0.9, seed=1)
    stages = set()
    while orders := next_step(group, world.evidence(group)).orders:
        order = orders[0]
        noisy.answer(order)
        attempts = noisy.orders[order.id].attempts
        for arrived in range(len(attempts)):
            world.orders[order.id] = OrderStatus(order, OrderState.SENT, order.device or "d1", attempts[:arrived])
            assert order in next_step(group, world.evidence(group)).orders
        world.answer(order)
        stages.add(stage_of(order.id))
    assert {COMPARE, CONFIRM} <= stages


def test_a_device_that_does_not_confirm_keeps_the_baseline() -> None:
    group = make_group(USUAL[:2], devices=("d1", "d2"))
    world = FakeWorld(USUAL[:2])
    world.run(group)
    slow = FakeWorld((BASE, replace(USUAL[1], latency_ns=1_200_000, name="int8")))
    order = next(s.order for s in world.orders.values() if stage_of(s.order.id) == CONFIRM)
    slow.answer(order)
    world.orders[order.id] = slow.orders[order.id]
    evidence = world.evidence(group)
    assert choose(group, evidence, "d1").winner == group.entries[1]
    kept = choose(group, evidence, "d2")
    assert kept.winner == group.baseline
    assert kept.judgement(group.entries[1].key).rejected == "not confirmed as faster than the baseline on d2"


def test_noise_is_inconclusive_not_a_winner() -> None:
    truths = (BASE, Truth("int8", 200_000, 0.92))
    world, group = FakeWorld(truths, noise=0.7, seed=3), make_group(truths)
    choice = choose(group, world.run(group), "d1")
    assert choice.inconclusive
    assert choice.winner == group.baseline
    assert choice.judgement(group.entries[1].key).rejected.startswith("verdict noisy")


def test_a_slower_variant_may_win_where_the_baseline_breaks_a_limit() -> None:
    truths = (BASE, Truth("small", 1_500_000, 0.92, 500_000))
    world, group = FakeWorld(truths), make_group(truths, constraints={"size_mib": 1.0})
    choice = choose(group, world.run(group), "d1")
    assert choice.winner is not None
    assert choice.winner.variant == "small"


def test_a_screening_whose_bursts_disagree_rejects_nobody() -> None:
    truths = (BASE, Truth("int8", 1_200_000, 0.92))
    world, group = FakeWorld(truths), make_group(truths)
    (order,) = next_step(group, world.evidence(group)).orders
    for spread, rejected in ((1.0, True), (6.0, False)):
        world.bursts = tuple(100_000 * f for f in (10, 10, 10 * spread, 10))
        world.answer(order)
        assert bool(too_slow(group, group.entries[1], world.evidence(group))) == rejected


def test_no_feasible_variant_is_said() -> None:
    truths = (BASE, Truth("int8", 400_000, 0.5))
    world, group = FakeWorld(truths), make_group(truths, constraints={"accuracy_min": 0.99})
    choice = choose(group, world.run(group), "d1")
    assert choice.winner is None
    assert choice.reason == "no feasible variant; the baseline: accuracy 0.92 < 0.99 (top1, n=100)"


def test_equal_speed_goes_to_the_smaller_then_the_more_accurate() -> None:
    truths = (BASE, Truth("a", 400_000, 0.92, 900_000), Truth("b", 400_000, 0.915, 500_000), Truth("c", 400_000, 0.92, 500_000))
    world, group = FakeWorld(truths, noise=0.001), make_group(truths)
    choice = choose(group, world.run(group), "d1")
    assert choice.winner is not None
    assert choice.winner.variant == "c"


@pytest.mark.parametrize(("limit", "wins"), [(0.1, True), (0.0001, False)])
def test_latency_counts_at_the_conservative_end(limit: float, wins: bool) -> None:
    truths = (BASE, Truth("int8", 50_000, 0.92))
    world, group = FakeWorld(truths), make_group(truths, constraints={"latency_p90_ms": limit})
    choice = choose(group, world.run(group), "d1")
    assert (choice.winner is not None) == wins


def test_a_spent_budget_ends_the_screening_not_the_run() -> None:
    truths = (BASE, *(Truth(f"v{i}", 900_000 - i * 1000, 0.92) for i in range(12)))
    world, group = FakeWorld(truths), make_group(truths, budget_ns=1)
    first = next_step(group, world.evidence(group)).orders
    world.answer(first[0])
    evidence = world.run(group)
    choice = choose(group, evidence, "d1")
    assert choice.winner is not None
    assert finalists(group, evidence)
    unseen = [j for j in choice.judgements if j.rejected == "not measured: the budget of device time was spent"]
    assert len(unseen) == 9


def stages_of(world: FakeWorld) -> dict[str, list[str]]:
    """Names of the variants that each stage had, in the order of asking."""
    found: dict[str, list[str]] = {}
    for order_id in world.answered:
        work = world.orders[order_id].order.work
        names = [c.key for c in work.contenders] if isinstance(work, LatencyWork) else [work.contender.key]
        found.setdefault(stage_of(order_id), []).extend(world.truth(k).name for k in names if k != CONTROL)
    return found


@pytest.mark.parametrize(
    ("changes", "measured"),
    [
        ({}, []),
        ({"power": True}, ["source", "int8"]),
        ({"power": True, "objective": "energy"}, ["source", "fp16", "int8"]),
        ({"power": True, "constraints": {"accuracy_drop": 0.01, "energy_mj": 5.0}}, ["source", "int8"]),
    ],
)
def test_energy_is_measured_where_it_decides_or_a_sensor_is_there(changes: dict[str, object], measured: list[str]) -> None:
    world, group = FakeWorld(USUAL), make_group(USUAL, **changes)
    world.run(group)
    energy = stages_of(world).get(ENERGY, [])
    assert set(measured) <= set(energy)
    assert len(energy) == len(set(energy))
    assert bool(energy) == bool(measured)


def test_the_time_of_baseline_and_winner_is_looked_at_last_and_its_failure_is_held_against_nobody() -> None:
    world, group = FakeWorld(USUAL), make_group(USUAL)
    while (step := next_step(group, world.evidence(group))).stage != PROFILE:
        for order in step.orders:
            world.answer(order)
    before = choose(group, world.evidence(group), "d1")
    for order in step.orders:
        unknown = Attempt(order.id, 0, "d1", 1, 0, Failure(FailureKind.UNSPECIFIED, "the agent does not know 'profile'"))
        world.orders[order.id] = OrderStatus(order, OrderState.DONE, "d1", (unknown,))
    after = world.evidence(group)
    assert next_step(group, after).orders == ()
    assert choose(group, after, "d1") == before
    assert [world.truth(o.work.contender.key).name for o in step.orders] == ["source", "int8"]  # type: ignore[union-attr]


MANY = (BASE, *(Truth(f"v{i:02d}", 300_000 + 37_000 * i, 0.92) for i in range(24)))


def tables_of(truths: tuple[Truth, ...], count: int) -> list[dict[str, float]]:
    """What devices of other speeds showed, each a little otherwise."""
    rng = random.Random(5)
    return [{entry(t).key: math.log(t.latency_ns / truths[0].latency_ns) + rng.gauss(0, 0.03) for t in truths} for _ in range(count)]


def run_with(world: FakeWorld, group: Group, tables: Sequence[Table]) -> Evidence:
    for _ in range(200):
        evidence = world.evidence(group)
        step = next_step(group, evidence, tables)
        if not step.orders:
            return evidence
        for order in step.orders:
            world.answer(order)
    raise AssertionError("the planner never ends")


def test_what_others_showed_says_what_is_screened_first_and_what_need_not_be() -> None:
    group = make_group(MANY)
    world = FakeWorld(MANY)
    evidence = run_with(world, group, tables_of(MANY, 5))
    assert choose(group, evidence, "d1").winner == group.entries[1]
    assert len(evidence.screened) - 1 <= 9
    assert {entry(t).key for t in MANY[1:3]} <= set(evidence.screened)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 30), st.integers(0, 6))
def test_tables_that_lie_never_choose(seed: int, count: int) -> None:
    """Whatever others showed, the winner is one that was measured here, and truly faster than the baseline."""
    rng = random.Random(seed)
    truths = MANY[:12]
    liars = [{entry(t).key: rng.gauss(0, 1) for t in truths} for _ in range(count)]
    world, group = FakeWorld(truths, seed=seed), make_group(truths)
    evidence = run_with(world, group, liars)
    winner = choose(group, evidence, "d1").winner
    assert winner is not None
    assert winner.baseline or winner.key in evidence.launches
    assert world.truth(winner.key).latency_ns <= BASE.latency_ns


def test_screening_goes_on_where_the_fastest_known_turns_out_not_to_be_allowed() -> None:
    lossy = tuple(replace(t, accuracy=0.5) if t.name in ("v00", "v01", "v02", "v03") else t for t in MANY)
    world, group = FakeWorld(lossy), make_group(lossy)
    evidence = run_with(world, group, tables_of(lossy, 5))
    winner = choose(group, evidence, "d1").winner
    assert winner is not None
    assert winner.variant == "v04"


def test_a_wave_without_results_is_taken_apart_and_does_not_come_again() -> None:
    group, tables = make_group(MANY), tables_of(MANY, 5)
    world = FakeWorld(MANY)
    (first,) = next_step(group, world.evidence(group), tables).orders
    world.orders[first.id] = OrderStatus(first, OrderState.QUARANTINED, "d1", ())
    alone = next_step(group, world.evidence(group), tables).orders
    assert [len(o.work.contenders) for o in alone] == [2, 2, 2]  # type: ignore[union-attr]
    for order in alone:
        world.orders[order.id] = OrderStatus(order, OrderState.QUARANTINED, "d1", ())
    silent = {o.work.contenders[1].key for o in alone}  # type: ignore[union-attr]
    evidence = run_with(world, group, tables)
    assert not silent & set(evidence.screened)
    assert choose(group, evidence, "d1").winner is not None


@settings(max_examples=25, deadline=None)
@given(worlds, st.integers(0, 3))
def test_the_samples_of_the_report_are_run_by_the_baseline_and_what_was_chosen_and_by_nobody_before(
    truths: tuple[Truth, ...], seed: int
) -> None:
    world, group = FakeWorld(truths, seed=seed), make_group(truths)
    evidence = world.run(group)
    choice = choose(group, evidence, "d1")
    works = {i: s.order.work for i, s in world.orders.items() if isinstance(s.order.work, AccuracyWork)}
    assert {w.shards for i, w in works.items() if stage_of(i) == ACCURACY} == {group.evaluation.selection}
    assert {w.shards for i, w in works.items() if stage_of(i) == EVALUATE} <= {group.evaluation.report}
    chosen = {choice.winner.key} if choice.winner is not None else set()
    assert {group.baseline.key} | chosen == set(evidence.evaluated)
    first = next(n for n, i in enumerate(world.answered) if stage_of(i) == EVALUATE)
    assert not [i for i in world.answered[first:] if stage_of(i) in (SCREEN, ACCURACY, COMPARE)]


def test_one_set_for_both_is_run_once() -> None:
    truths = (BASE, replace(BASE, name="fast", latency_ns=BASE.latency_ns // 2))
    world, group = FakeWorld(truths), make_group(truths, evaluation=Evaluation(("sha256:samples",), Reduction()))
    assert world.run(group).evaluated == {}
    assert EVALUATE not in {stage_of(i) for i in world.answered}

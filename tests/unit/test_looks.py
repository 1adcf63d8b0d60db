"""Candidates that come with later looks: what was measured before stands, and what was decided stays decided."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller import feedback, orders
from controller.artifacts import ArtifactStore
from controller.evidence import COMPARE, CONTROL, SCREEN, Evidence, Group, Launch, fold, stage_of
from controller.farm import Farm
from controller.knowledge import Knowledge
from controller.measuring import Measuring
from controller.planner import Step, next_step, stages_of_search
from controller.racing import ERROR_RATE, FIELD, LAUNCHES, ROUND, ahead, stand
from controller.scoring import Scoring
from controller.selection import choose
from controller.store import SqlStore
from edgefarm.model import Conditions, ContenderResult, Failure, FailureKind, LatencyWork, Stage, Work
from optimizer.pipeline import Failed, Variant
from optimizer.recipe import Plan
from optimizer.recipe import Step as PassStep
from tests.fakes.devices import FakeDevice
from tests.fakes.orders import a_device
from tests.fakes.world import FakeWorld, Truth, entry, make_group
from tests.unit.test_measuring import FakeEvents

BASE = Truth("source", 1_000_000, 0.92, 2_800_000)
FIRST = (
    BASE,
    Truth("fine", 500_000, 0.92, 750_000),
    Truth("lossy", 300_000, 0.70, 750_000),
    Truth("alike", 502_000, 0.92, 760_000),
    Truth("slow", 2_000_000, 0.92, 760_000),
)
BETTER, WORSE, BROKEN = (
    Truth("better", 350_000, 0.92, 800_000),
    Truth("worse", 700_000, 0.92, 700_000),
    Truth("broken", 1, failure=FailureKind.LOAD),
)
Looks = Sequence[Sequence[Truth]]


def grouped(looks: Looks, **changes: object) -> Group:
    """A group whose entries came with several looks."""
    group = make_group([t for look in looks for t in look], **changes)
    numbers = [n for n, look in enumerate(looks, start=1) for _ in look]
    return replace(group, entries=tuple(replace(e, look=n) for e, n in zip(group.entries, numbers)))


def evidence(world: FakeWorld, group: Group, *, searching: bool = False) -> Evidence:
    """As `Measuring` takes it: of orders whose candidates the group has, in a search of those that the search asks for."""
    known = {e.key for e in group.entries} | {CONTROL}
    mine = [s for s in world.orders.values() if keys_in(s.order.work) <= known]
    mine = [s for s in mine if not searching or stage_of(s.order.id) in stages_of_search(group)]
    found = fold(mine, group.device_class, {})
    return replace(found, scores=world.scores(group, found))


def keys_in(work: Work) -> set[str]:
    return keys_of(work) if isinstance(work, LatencyWork) else {work.contender.key}


def played(looks: Looks, seed: int = 0, noise: float = 0.005, chance: random.Random | None = None, **changes: object) -> FakeWorld:
    """Plays look after look as a driver does; `chance`: asks from the first look on after each answer, as if killed then."""
    world = FakeWorld([t for look in looks for t in look], noise=noise, seed=seed)
    play(world, looks, chance, **changes)
    return world


def play(world: FakeWorld, looks: Looks, chance: random.Random | None = None, **changes: object) -> list[int]:
    """A drive; returns the device time that was spent by the end of each look."""
    spent: list[int] = []
    for _ in range(500):
        number = min(len(spent) + 1, len(looks))
        group, searching = grouped(looks[:number], **changes), len(spent) < len(looks)
        known = evidence(world, group, searching=searching)
        step = next_step(group, known, searching=searching)
        if step.orders:
            for order in [chance.choice(step.orders)] if chance else step.orders:
                world.answer(order)
            spent = [] if chance else spent
        elif searching:
            spent.append(known.spent_ns)
        else:
            return spent
    raise AssertionError("it never ends")


def ordered(world: FakeWorld, stage: str) -> list[tuple[str, LatencyWork]]:
    return [
        (s.order.id, s.order.work) for s in world.orders.values() if stage_of(s.order.id) == stage and isinstance(s.order.work, LatencyWork)
    ]


def keys_of(work: LatencyWork) -> set[str]:
    return {c.key for c in work.contenders}


def test_a_later_look_changes_no_order_of_an_earlier_one() -> None:
    alone, longer = played([FIRST]), played([FIRST, [BETTER, WORSE, BROKEN]])
    for stage in (SCREEN, COMPARE):
        before = [name for name, _ in ordered(alone, stage)]
        assert [name for name, _ in ordered(longer, stage)][: len(before)] == before
    assert len(set(longer.answered)) == len(longer.answered)


def test_what_is_new_runs_beside_the_leader_in_fresh_launches_and_wins_if_it_is_faster() -> None:
    looks = [FIRST, [BETTER, WORSE, BROKEN]]
    world, group = played(looks), grouped(looks)
    winner = choose(group, world.evidence(group), "d1").winner
    assert winner is not None
    assert winner.variant == "better"
    works = [work for _, work in ordered(world, COMPARE)]
    new = [w for w in works if entry(BETTER).key in keys_of(w)]
    assert new
    leaders = {entry(t).key for t in FIRST if t.name in ("fine", "alike")}
    assert keys_of(new[0]) & leaders
    launches = [i for w in works for i in w.launches]
    assert launches == list(range(len(launches)))
    assert not [w for w in works if entry(WORSE).key in keys_of(w)], "its screening said enough"


@pytest.mark.parametrize(("noise", "fine"), [(0.005, 500_000), (0.1, 500_000), (0.1, 960_000)])
def test_a_look_without_anything_good_costs_its_screening_only(noise: float, fine: int) -> None:
    """However close those of before were to each other or to the baseline: they had their launches."""
    first = (BASE, Truth("fine", fine, 0.92), Truth("alike", fine + 2000, 0.92))
    alone, longer = (played([first, *more], noise=noise) for more in ([], [[Truth("bad", 30_000_000)], [Truth("poor", 40_000_000)]]))
    assert sum(len(work.launches) for _, work in ordered(alone, COMPARE)) > (ROUND if noise > 0.01 else 0)
    assert [name for name, _ in ordered(longer, COMPARE)] == [name for name, _ in ordered(alone, COMPARE)]
    assert len(ordered(longer, SCREEN)) == len(ordered(alone, SCREEN)) + 2


def test_the_leader_is_asked_again_beside_a_close_newcomer_though_it_had_all_its_launches() -> None:
    again = []
    for seed, ns in itertools.product(range(10), (505_000, 560_000)):
        new = Truth("new", ns, 0.92)
        looks = [(BASE, Truth("fine", 500_000, 0.92), Truth("alike", 502_000, 0.92)), [new]]
        world = played(looks, seed, 0.1)
        before, found = (evidence(world, grouped(some)).launches for some in (looks[:1], looks))
        again += [len(found[k]) - len(x) for k, x in before.items() if k != entry(BASE).key and len(x) >= LAUNCHES]
        works = [keys_of(work) for _, work in ordered(world, COMPARE)]
        joined = next((i for i, keys in enumerate(works) if entry(new).key in keys), len(works))
        assert all(entry(new).key in keys for keys in works[joined:]), "among the old ones all was said"
    assert max(again) > ROUND


def test_each_look_has_room_for_as_many_as_the_first() -> None:
    looks = [(BASE, *(Truth(f"v{i}", 500_000 + 1000 * i, 0.92) for i in range(8))), [BETTER]]
    world, group = played(looks), grouped(looks)
    assert sum(e.key in world.evidence(group).launches for e in group.entries[1:-1]) == FIELD
    winner = choose(group, world.evidence(group), "d1").winner
    assert winner is not None
    assert winner.variant == "better"


def test_a_look_waits_for_the_race_of_the_one_before_it() -> None:
    looks = [FIRST, [BETTER]]
    at_once = FakeWorld([t for look in looks for t in look], noise=0.005)
    at_once.run(grouped(looks))
    assert [name for name, _ in ordered(at_once, COMPARE)] == [name for name, _ in ordered(played(looks), COMPARE)]


def test_what_only_winners_are_asked_waits_for_the_end_of_the_search() -> None:
    world, group = FakeWorld(FIRST), make_group(FIRST)
    stages = set()
    while (step := next_step(group, world.evidence(group), searching=True)).orders:
        stages.add(step.stage)
        for order in step.orders:
            world.answer(order)
    assert stages == {"screen", "accuracy", "compare"}
    assert next_step(group, world.evidence(group)).stage == "evaluate"
    heavy = make_group(FIRST, objective="memory")
    world = FakeWorld(FIRST)
    stages = set()
    while (step := next_step(heavy, world.evidence(heavy), searching=True)).orders:
        stages.add(step.stage)
        for order in step.orders:
            world.answer(order)
    assert "memory" in stages, "here it decides"


truths = st.builds(
    Truth,
    st.sampled_from([f"v{i}" for i in range(14)]),
    st.integers(100_000, 1_500_000),
    st.sampled_from([0.92, 0.92, 0.5]),
    st.integers(1000, 10_000_000),
    failure=st.sampled_from([None, None, None, None, FailureKind.CRASH]),
)
several = st.lists(truths, max_size=10, unique_by=lambda t: t.name).flatmap(
    lambda found: st.lists(st.integers(0, len(found)), max_size=3).map(
        lambda cuts: [
            [BASE, *found[: min(cuts, default=len(found))]],
            *(found[a:b] for a, b in zip(sorted(cuts), [*sorted(cuts)[1:], len(found)])),
        ]
    )
)


@settings(max_examples=25, deadline=None)
@given(several, st.integers(0, 5), st.sampled_from([0.002, 0.02, 0.2]), st.randoms())
def test_kills_at_any_point_of_any_look_repeat_and_change_nothing(looks: Looks, seed: int, noise: float, chance: random.Random) -> None:
    looks = [look for look in looks if look]
    straight = played(looks, seed, noise)
    assert len(set(straight.answered)) == len(straight.answered)
    killed = played(looks, seed, noise, chance)
    assert len(set(killed.answered)) == len(killed.answered)
    assert set(killed.answered) == set(straight.answered)


@settings(max_examples=25, deadline=None)
@given(several, st.integers(0, 5), st.sampled_from([10 * 10**9, 30 * 10**9, 300 * 10**9]))
def test_another_drive_finds_every_look_as_it_was(looks: Looks, seed: int, budget_ns: int) -> None:
    looks = [look for look in looks if look]
    world = FakeWorld([t for look in looks for t in look], seed=seed)
    spent, answered = play(world, looks, budget_ns=budget_ns), len(world.answered)
    assert play(world, looks, budget_ns=budget_ns) == spent
    assert len(world.answered) == answered


@settings(max_examples=25, deadline=None)
@given(several, st.integers(0, 5))
def test_the_best_of_all_looks_is_found(looks: Looks, seed: int) -> None:
    looks = [look for look in looks if look]
    world, group = played(looks, seed, 0.002), grouped(looks)
    winner = choose(group, world.evidence(group), "d1").winner
    fine = [t.latency_ns for look in looks for t in look if t.failure is None and t.accuracy > 0.9]
    assert winner is not None
    assert world.truth(winner.key).latency_ns <= min(fine) * 1.03
    most = LAUNCHES + 3 * ROUND
    counts = [len(x) for k, x in world.evidence(group).launches.items() if k != group.baseline.key]
    assert all(n <= most * len(looks) for n in counts)


@pytest.mark.parametrize("objective", ["size", "memory"])
def test_later_candidates_have_their_places_where_speed_is_not_the_objective(objective: str) -> None:
    small = Truth("small", 900_000, 0.92, 1000, 2**20)
    looks = [FIRST, [small]]
    world, group = played(looks, objective=objective), grouped(looks, objective=objective)
    winner = choose(group, world.evidence(group), "d1").winner
    assert winner is not None
    assert winner.variant == "small"


def test_over_any_number_of_looks_the_best_leaves_no_more_often_than_stated() -> None:
    """Newcomers that are as fast, the hardest case: 300 searches of five looks; the bound is twice the rate plus three standard errors."""
    rng, runs, lost = random.Random(5), 300, 0
    for _ in range(runs):
        stays = True
        for look in range(1, 6):
            logs = [[rng.gauss(0, 0.003) for _ in range(LAUNCHES)] for _ in range(3)]
            for count in range(ROUND, LAUNCHES + 1, 3):
                means = [fmean(x[:count]) for x in logs]
                leader = means.index(min(means))
                pairs = [b - a for a, b in zip(logs[leader][:count], logs[0][:count])]
                stays = stays and not (leader and ahead(pairs, 3, look) > 0)
        lost += not stays
    assert lost / runs <= 2 * ERROR_RATE + 3 * math.sqrt(2 * ERROR_RATE * (1 - 2 * ERROR_RATE) / runs)
    assert ahead([0.1, 0.11, 0.12], 3, 2) < ahead([0.1, 0.11, 0.12], 3, 1)


def test_a_race_that_ran_out_of_time_does_not_begin_another() -> None:
    looks = [FIRST, [BETTER]]
    world = played([FIRST])
    group = grouped(looks, budget_ns=1)
    assert next_step(group, world.evidence(group), searching=True).orders == ()
    assert stand(group, world.evidence(group)).order is None


# What the search is told


def outcome(truth: Truth, plan: Plan) -> Variant:
    return Variant(f"{truth.name}/0000", entry(truth).candidate.artifact, Path(), (plan,), ((),))


def plan_of(name: str) -> Plan:
    return Plan(name, (PassStep(name),))


def test_the_search_is_told_gain_and_excess_of_every_plan() -> None:
    world, group = played([FIRST], noise=0.001), make_group(FIRST)
    plans = {t.name: plan_of(t.name) for t in FIRST[1:]}
    failed = Failed(plan_of("never"), Failure(FailureKind.UNCHANGED, "nothing", Stage.OPTIMIZE))
    looks = [[outcome(t, plans[t.name]) for t in FIRST[1:4]], [outcome(FIRST[4], plans["slow"]), failed]]
    found = feedback.results(looks, [group], {group.id: world.evidence(group)}, layers=7, samples=True)
    by_name = {t.plan.name: t for t in found.tried}
    assert {name: t.look for name, t in by_name.items()} == {"fine": 1, "lossy": 1, "alike": 1, "slow": 2, "never": 2}
    assert by_name["never"].failed
    assert found.leaders["d1"] == pytest.approx(math.log(2), abs=0.02)
    fine, lossy, slow = (by_name[n].on("d1") for n in ("fine", "lossy", "slow"))
    assert fine.gain == pytest.approx(math.log(2), abs=0.02)
    assert fine.excess == pytest.approx(-0.01)
    assert fine.holds
    assert lossy.gain == pytest.approx(math.log(1 / 0.3), abs=0.02)
    assert (lossy.excess, lossy.limit, lossy.breaks) == (pytest.approx(0.21), "accuracy_drop", True)
    assert slow.gain == pytest.approx(-math.log(2), abs=0.02)
    assert slow.excess is None
    assert (found.layers, found.spent) == (7, False)
    poor = replace(group, budget_ns=1)
    assert feedback.results(looks, [poor], {poor.id: world.evidence(poor)}, layers=7, samples=True).spent


@pytest.mark.parametrize(("drop", "confidence", "excess"), [(0.25, None, -0.03), (0.25, 0.95, None), (None, None, None)])
def test_an_excess_is_known_where_a_limit_and_the_number_are(drop: float | None, confidence: float | None, excess: float | None) -> None:
    limits = {} if drop is None else {"accuracy_drop": drop}
    group = make_group(FIRST, constraints=limits, confidence=confidence)
    known = Evidence(accuracy={entry(FIRST[2]).key: None})  # type: ignore[dict-item]
    world = FakeWorld(FIRST)
    known = replace(known, scores=world.scores(group, replace(known, accuracy={entry(FIRST[2]).key: None})))  # type: ignore[dict-item]
    (tried,) = feedback.results([[outcome(FIRST[2], plan_of("lossy"))]], [group], {group.id: known}, 1, samples=True).tried
    assert tried.on("d1").excess == (None if excess is None else pytest.approx(excess))


def test_an_accuracy_to_reach_counts_by_its_direction() -> None:
    group = make_group(FIRST, constraints={"accuracy_min": 0.75})
    world = FakeWorld(FIRST)
    known = Evidence(scores=world.scores(group, Evidence(accuracy={entry(t).key: None for t in FIRST})))  # type: ignore[dict-item]
    both = [outcome(FIRST[1], plan_of("fine")), outcome(FIRST[2], plan_of("lossy"))]
    tried = feedback.results([both], [group], {group.id: known}, 1, samples=True).tried
    assert [t.on("d1").excess for t in tried] == [pytest.approx(-0.17), pytest.approx(0.05)]
    lower = replace(known, scores={k: replace(s, higher_is_better=False) for k, s in known.scores.items()})
    tried = feedback.results([both], [group], {group.id: lower}, 1, samples=True).tried
    assert [t.on("d1").excess for t in tried] == [pytest.approx(0.17), pytest.approx(-0.05)]


def test_of_several_ways_to_run_a_variant_the_best_one_counts() -> None:
    group = make_group(FIRST)
    more = [replace(e, candidate=replace(e.candidate, options={"threads": 4})) for e in group.entries[1:]]
    group = replace(group, entries=(*group.entries, *more))
    fast = Evidence(screened={more[0].key: launch(more[0].key, 250_000), group.entries[1].key: launch(group.entries[1].key, 500_000)})
    crashed = replace(fast, failures={more[0].key: Failure(FailureKind.CRASH, "", Stage.RUN)})
    for known, gain in ((fast, math.log(4)), (crashed, math.log(2))):
        (tried,) = feedback.results([[outcome(FIRST[1], plan_of("fine"))]], [group], {group.id: known}, 1, samples=True).tried
        assert tried.on("d1").gain == pytest.approx(gain)


def launch(key: str, ns: int) -> Launch:
    result, reference = (ContenderResult(k, 400, float(n), n, n, n, 10**6, 10**6, 5) for k, n in ((key, ns), ("base", 1_000_000)))
    return Launch("o", 0, "d1", result, reference, Conditions(), 0)


def test_trouble_is_another_limit_or_a_failure() -> None:
    world, group = played([FIRST]), make_group(FIRST, constraints={"accuracy_drop": 0.01, "size_mib": 0.72})
    known = world.evidence(group)
    known = replace(known, failures={entry(FIRST[4]).key: Failure(FailureKind.CRASH, "", Stage.RUN)})
    looks = [[outcome(t, plan_of(t.name)) for t in FIRST[2:]]]
    lossy, alike, slow = (t.on("d1").trouble for t in feedback.results(looks, [group], {group.id: known}, 1, samples=True).tried)
    assert lossy == ""
    assert alike.startswith("size_mib 0.72")
    assert slow == "crash"


# Measuring goes on


def test_orders_of_a_later_look_are_no_evidence_for_an_earlier_one(tmp_path: Path) -> None:
    store = SqlStore(":memory:")
    farm = Farm(store, ArtifactStore(tmp_path / "artifacts"), wall=lambda: 1000)
    device = FakeDevice(farm, replace(a_device("d1", "h1"), fingerprint={}))
    device.attach()
    run = farm.open_run("world", "spec", "{}", "me", {}).name
    looks = [FIRST, [BETTER]]
    first, both = (grouped(found, run=run, device_class=device.device.device_class) for found in (looks[:1], looks))
    world = FakeWorld([t for look in looks for t in look])
    known = [next_step(first, Evidence()).orders[0], orders.screening(both, [both.baseline, both.entries[-1]])]
    for order in (*known, orders.memory(both, both.baseline)):
        farm.submit([order])
        world.answer(order, "d1")
        device.say(*[replace(a, device="d1") for a in world.orders[order.id].attempts])
    asked: list[tuple[int, bool]] = []

    def plan(group: Group, evidence: Evidence) -> Step:
        asked.append((len(evidence.ended), entry(BETTER).key in evidence.screened))
        return Step("done", ())

    measuring = Measuring(run, [first], farm, cast(Scoring, None), FakeEvents(), plan)
    measuring.go_on([first], plan, searching=True)
    measuring.go_on([both], plan, searching=True)
    measuring.go_on([both], plan)
    assert asked == [(1, False), (2, True), (3, True)]
    store.close()


def test_what_other_devices_showed_is_of_use_in_a_later_look_too() -> None:
    looks = [(BASE, *(Truth(f"v{i}", 500_000 + 10_000 * i, 0.92) for i in range(8))), [BETTER, WORSE]]
    tables = {f"t{i}": {entry(t).key: math.log(t.latency_ns / 1e6) + 0.01 * i for look in looks for t in look} for i in range(4)}
    knowledge, world = Knowledge(tables), FakeWorld([t for look in looks for t in look], noise=0.002)
    for number in (1, 2):
        group = grouped(looks[:number])
        while (step := knowledge.next_step(group, evidence(world, group), searching=True)).orders:
            for order in step.orders:
                world.answer(order)
    assert len(set(world.answered)) == len(world.answered)
    winner = choose(grouped(looks), evidence(world, grouped(looks)), "d1").winner
    assert winner is not None
    assert winner.variant == "better"

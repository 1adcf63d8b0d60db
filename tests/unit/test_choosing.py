"""Choosing by energy and by throughput, under scenarios, with a control arm: an interval decides, and what is not known never wins."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.evidence import COMPARE, CONFIRM, CONTROL, SCREEN, Evidence, Group, Launch, fold
from controller.limits import broken, energy_uj, unproved
from controller.screening import NOISE_FLOOR
from controller.selection import choose, hopeful, noise_floor, too_slow
from edgefarm.model import (
    Attempt,
    Conditions,
    Contender,
    ContenderResult,
    EnergyResult,
    Failure,
    FailureKind,
    LatencyResult,
    LatencyWork,
    Order,
    OrderState,
    OrderStatus,
    Outcome,
    Scenario,
    Stage,
)
from tests.fakes.world import FakeWorld, Truth, make_group
from tests.unit.test_selection import launches

BASE, FAST, SMALL = Truth("source", 1_000_000, size=1000), Truth("fast", 500_000, size=900), Truth("small", 800_000, size=100)
TRUTHS = [BASE, FAST, SMALL]


def known(group: Group, p50: tuple[float, ...] = (1e6, 5e5, 8e5)) -> Evidence:
    """All of a group compared in one order and scored as equally accurate."""
    score = next(iter(FakeWorld(TRUTHS).run(make_group(TRUTHS)).scores.values()))
    found = {e.key: launches(group, i, p50[i], "o") for i, e in enumerate(group.entries)}
    return Evidence(screened={k: x[0] for k, x in found.items()}, launches=found, scores=dict.fromkeys(found, score))


def energy(key: str, uj: float, half: float, unavailable: str = "") -> EnergyResult:
    return EnergyResult(key, uj, uj - half, uj + half, inferences=1000, source="ina", rail="VDD_IN", unavailable=unavailable)


def needing(group: Group, *measured: tuple[float, float] | None) -> Evidence:
    """With the energy of each candidate and half the width of its interval, in microjoules."""
    found = {e.key: energy(e.key, *m) for e, m in zip(group.entries, measured) if m is not None}
    return replace(known(group), energy=found)


def an_energy_group(**more: object) -> Group:
    return make_group(TRUTHS, objective="energy", power=True, **more)


def test_the_least_energy_wins_if_the_interval_says_so() -> None:
    group = an_energy_group()
    assert choose(group, needing(group, (900, 20), (500, 20), (700, 20)), "d1").winner == group.entries[1]
    assert choose(group, needing(group, (900, 20), (700, 20), (500, 20)), "d1").winner == group.entries[2], "the slower one"
    assert choose(group, needing(group, (900, 60), (800, 60), (850, 60)), "d1").winner == group.baseline, "the intervals overlap"


def test_of_equals_in_energy_the_smaller() -> None:
    group = an_energy_group()
    assert choose(group, needing(group, (900, 20), (500, 20), (510, 20)), "d1").winner == group.entries[2]
    assert choose(group, needing(group, (900, 20), (500, 90), (600, 90)), "d1").winner == group.entries[1], "overlap alone is not equal"


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_unknown_energy_cannot_win_and_says_why(missing: int) -> None:
    group = an_energy_group()
    measured = [(900.0, 20.0), (500.0, 20.0), (700.0, 20.0)]
    evidence = needing(group, *[None if i == missing else m for i, m in enumerate(measured)])
    choice = choose(group, evidence, "d1")
    assert choice.winner == {0: None, 1: group.entries[2], 2: group.entries[1]}[missing]
    assert choice.judgement(group.entries[missing].key).rejected == "energy: energy was not measured"
    lost = replace(evidence, energy={**evidence.energy, group.entries[missing].key: energy("", 0, 0, "12 updates are too few")})
    assert choose(group, lost, "d1").judgement(group.entries[missing].key).rejected == "energy: 12 updates are too few"


def test_without_a_power_source_it_says_so_and_measures_nothing() -> None:
    group = replace(an_energy_group(), power=False)
    assert group.cannot_choose
    assert not replace(group, objective="latency_p50").cannot_choose
    assert replace(group, objective="latency_p50", constraints={"energy_mj": 1.0}).cannot_choose
    choice = choose(group, Evidence(), "d1")
    assert choice.winner is None
    assert choice.judgement(group.baseline.key).rejected.startswith("energy: no device of this class has a power source")
    assert "edge-agent probe" in choice.reason
    assert not choice.inconclusive


def test_a_limit_of_energy_counts_at_the_conservative_end() -> None:
    group = make_group(TRUTHS, constraints={"energy_mj": 0.75}, power=True)
    evidence = needing(group, (700, 20), (740, 20), (800, 20))
    assert not broken(group, group.baseline, evidence)
    assert broken(group, group.entries[1], evidence) == "energy_mj 0.76 > 0.75"
    assert not broken(group, group.entries[1], evidence, certainly=True)
    assert broken(group, group.entries[2], evidence, certainly=True) == "energy_mj 0.78 > 0.75"
    assert choose(group, evidence, "d1").winner == group.baseline
    assert unproved(group, group.entries[1], known(group)) == "energy_mj: energy was not measured"


@pytest.mark.parametrize("broken_number", [math.nan, math.inf, -math.inf])
def test_energy_that_is_no_number_is_not_known(broken_number: float) -> None:
    group = an_energy_group()
    for result in (energy("", broken_number, 1.0), energy("", 5.0, broken_number), replace(energy("", 5.0, 1.0), low_uj=9.0)):
        evidence = replace(needing(group, (900, 20), None, (700, 20)), energy={group.entries[1].key: result})
        assert energy_uj(group.entries[1], evidence) is None
        assert choose(group, evidence, "d1").winner != group.entries[1]


def test_before_energy_is_known_the_faster_is_the_more_promising() -> None:
    group = an_energy_group()
    assert [e.variant for e in hopeful(group, needing(group))] == ["fast", "small"]
    assert [e.variant for e in hopeful(group, needing(group, (900, 9), (500, 9), (100, 9)))] == ["fast", "small"], "nor does it change"


def with_throughput(group: Group, rates: tuple[float, ...]) -> Evidence:
    """The same, with samples per second of each candidate; latencies say the contrary."""
    evidence = known(group, tuple(1e6 * r for r in rates))

    def change(launch: Launch, rate: float) -> Launch:
        return replace(
            launch, result=replace(launch.result, samples_per_s=rate), reference=replace(launch.reference, samples_per_s=rates[0])
        )

    found = {e.key: tuple(change(x, rates[i]) for x in evidence.launches[e.key]) for i, e in enumerate(group.entries)}
    return replace(evidence, launches=found, screened={k: x[0] for k, x in found.items()})


def test_throughput_is_what_the_scenario_gave() -> None:
    group = make_group(TRUTHS, objective="throughput", scenario=Scenario("offline", batch_sizes=(1, 8)), constraints={})
    evidence = with_throughput(group, (100.0, 300.0, 150.0))
    choice = choose(group, evidence, "d1")
    assert choice.winner == group.entries[1]
    assert choice.judgement(group.entries[1].key).latency.throughput_per_s.value == pytest.approx(300.0)  # type: ignore[union-attr]
    assert [e.variant for e in hopeful(group, evidence)] == ["fast", "small"]
    slow = with_throughput(group, (100.0, 70.0, 90.0))
    assert "slower than the baseline" in too_slow(group, group.entries[1], slow)
    assert not too_slow(group, group.entries[2], slow), "one launch is no reason to drop what is close"


def test_a_limit_of_throughput_is_the_scenarios_too() -> None:
    group = make_group(TRUTHS, constraints={"throughput_per_s": 120.0}, objective="memory", scenario=Scenario("offline"))
    evidence = with_throughput(group, (100.0, 300.0, 110.0))
    assert [bool(broken(group, e, evidence)) for e in group.entries] == [True, False, True]
    screened = replace(evidence, launches={})
    assert [bool(broken(group, e, screened)) for e in group.entries] == [False, False, False], "a single launch rejects what is far off"
    assert broken(group, group.entries[1], replace(screened, screened={group.entries[1].key: evidence.screened[group.baseline.key]})) == ""


def test_a_screening_without_load_rejects_nothing_for_the_limits_under_load() -> None:
    paced = make_group(TRUTHS, constraints={"latency_p90_ms": 0.1})
    server = replace(paced, scenario=Scenario("server", 30.0))
    evidence = replace(known(paced), launches={})
    assert broken(paced, paced.entries[1], evidence).endswith("(screened)")
    assert broken(server, server.entries[1], evidence) == ""


def control(group: Group, ratios: list[float]) -> tuple[Launch, ...]:
    found = []
    for index, ratio in enumerate(ratios):
        reference = ContenderResult(group.baseline.key, 800, 1e6, 1_000_000, 1_100_000, 1_300_000)
        result = replace(reference, key=CONTROL, p50_ns=round(1_000_000 / ratio), mean_ns=1e6 / ratio)
        found.append(Launch("o", index, "d1", result, reference, Conditions(), 1))
    return tuple(found)


def test_the_noise_floor_is_what_two_copies_differ_by() -> None:
    group = make_group(TRUTHS)
    assert noise_floor(group, Evidence()) == NOISE_FLOOR
    assert noise_floor(group, Evidence(control=control(group, [1.0] * 3))) == NOISE_FLOOR, "too few to say"
    assert noise_floor(group, Evidence(control=control(group, [1.0] * 8))) == 0.005
    shifted = noise_floor(group, Evidence(control=control(group, [1.02, 1.021] * 4)))
    assert 0.02 < shifted < 0.03
    assert noise_floor(group, Evidence(control=control(group, [1 / 1.02, 1 / 1.021] * 4))) == pytest.approx(shifted, rel=0.02)


def test_nothing_wins_by_less_than_the_copies_differ() -> None:
    group = make_group([BASE, FAST], accept=("stable", "noisy", "interfered", "unsteady"))
    evidence = known(make_group(TRUTHS), (1e6, 1e6 / 1.03, 8e5))
    assert choose(group, evidence, "d1").winner == group.entries[1]
    assert choose(group, replace(evidence, control=control(group, [1.04, 1.05] * 4)), "d1").winner == group.baseline


def status(stage: str, contenders: tuple[str, ...], outcome: Outcome) -> OrderStatus:
    group = make_group(TRUTHS)
    candidates = [Contender(key, group.baseline.candidate) for key in contenders]
    work = LatencyWork(tuple(candidates), Scenario(), "sha256:i", (0,))
    order = Order(f"world@1/{stage}/x", "world@1", "m", "c1", work)
    return OrderStatus(order, OrderState.DONE, "d1", (Attempt(order.id, 0, "d1", 1, 1, outcome),))


def results(*keys: str, failed: str = "") -> LatencyResult:
    failure = Failure(FailureKind.CRASH, "died", Stage.RUN)
    return LatencyResult(tuple(ContenderResult(k, 10, 1e6, 10**6, failure=failure if k == failed else None) for k in keys))


def test_the_control_arm_is_no_candidate() -> None:
    evidence = fold([status(COMPARE, ("base", "a", CONTROL), results("base", "a", CONTROL))], "c1", {})
    assert set(evidence.launches) == {"base", "a"}
    assert [(x.result.key, x.reference.key) for x in evidence.control] == [(CONTROL, "base")]
    for stage in (SCREEN, CONFIRM):
        evidence = fold([status(stage, ("base", "a", CONTROL), results("base", "a", CONTROL))], "c1", {})
        assert evidence.control == ()
        assert CONTROL not in {*evidence.screened, *(key for _, key in evidence.confirmed)}


def test_the_control_arms_failure_is_nobodys() -> None:
    evidence = fold([status(COMPARE, ("base", "a", CONTROL), results("base", "a", CONTROL, failed=CONTROL))], "c1", {})
    assert evidence.failures == {}
    whole = Failure(FailureKind.DEVICE_LOST, "gone", Stage.RUN)
    assert set(fold([status(COMPARE, ("base", "a", CONTROL), whole)], "c1", {}).failures) == {"a"}, "a round of one candidate"
    assert set(fold([status(COMPARE, ("base", "a", "b", CONTROL), whole)], "c1", {}).failures) == set()


def scaled(launch: Launch, factor: float) -> Launch:
    result = launch.result
    numbers = {name: round(getattr(result, name) * factor) for name in ("p50_ns", "p90_ns", "p99_ns")}
    return replace(launch, result=replace(result, mean_ns=result.mean_ns * factor, **numbers))


OBJECTIVES = st.sampled_from(["latency_p50", "latency_p90", "latency_p99", "throughput", "energy", "memory", "size"])
KINDS = st.sampled_from(["paced", "offline", "server", "sustained"])


@settings(max_examples=60, deadline=None)
@given(OBJECTIVES, KINDS, st.integers(0, 2**16), st.floats(0.2, 3.0))
def test_a_bad_verdict_never_chooses(objective: str, kind: str, seed: int, factor: float) -> None:
    """Whatever wins but the baseline has a verdict that the user accepts, and its energy is known where that decides."""
    spread = [math.exp(math.sin(seed + i * i) * factor) for i in range(10)]
    group = make_group(TRUTHS, objective=objective, scenario=Scenario(kind, rate_per_s=5.0), power=True, constraints={})
    evidence = needing(group, (900, 20), (500, 20), (700, 20))
    loud = tuple(scaled(x, f) for x, f in zip(evidence.launches[group.entries[1].key], spread))
    evidence = replace(evidence, launches={**evidence.launches, group.entries[1].key: loud})
    choice = choose(group, evidence, "d1")
    if choice.winner is not None and not choice.winner.baseline:
        verdict = choice.judgement(choice.winner.key).verdict
        assert verdict is not None
        assert verdict.value in group.accept
    doubted = choice.judgement(group.entries[1].key)
    if doubted.verdict is not None and doubted.verdict.value not in group.accept:
        assert choice.winner != group.entries[1]
        assert doubted.rejected.startswith(("verdict ", "latency_"))

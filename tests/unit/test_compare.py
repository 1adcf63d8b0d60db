"""A comparison says what is true as often as it promises, for any truth; limits, exit codes and words follow from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import controller.compare
from controller.compare import document, forms, planning
from controller.compare.document import decided_because
from controller.compare.judging import Finding, find, slowdown_gate
from controller.compare.outcome import overall, problem, summary, told
from controller.compare.rules import ROUNDS, Gate, Rules, gate
from controller.evidence import CONTROL, Evidence, Group
from edgefarm.model import (
    Conditions,
    ContenderResult,
    Device,
    DeviceStatus,
    EnergyResult,
    Failure,
    FailureKind,
    LatencyWork,
    Scenario,
    Verdict,
)
from edgefarm.statistics import Interval, Relation
from tests.fakes.comparing import Answering, cut, pair

RULES = Rules()
SCHEMA = json.loads((Path(controller.compare.__file__).parent / "schema.json").read_text())


def finding(answering: Answering, rules: Rules = RULES, group: Group | None = None) -> Finding:
    asked = group or pair(answering.ratio)
    return find(asked, answering.run(asked, partial(planning.next_step, rules=rules)), rules)


@pytest.mark.parametrize(("ratio", "truth"), [(1.0, "same"), (1.003, "same"), (1.03, "faster"), (0.97, "slower"), (1.5, "faster")])
def test_the_answer_is_the_truth_in_all_but_a_few_of_many_comparisons(ratio: float, truth: str) -> None:
    answers = [finding(Answering(ratio, seed=seed)).relation.value for seed in range(60)]
    assert sum(a not in (truth, "inconclusive") for a in answers) <= 3  # 5 % of 60
    assert answers.count(truth) >= 57, answers


def test_what_is_at_the_margin_is_never_called_on_the_wrong_side_more_often_than_promised() -> None:
    answers = [finding(Answering(1.01, seed=seed)).relation for seed in range(60)]
    assert sum(a is Relation.SLOWER for a in answers) == 0
    assert sum(a in (Relation.FASTER, Relation.SAME) for a in answers) <= 6  # 5 % for each of the two, of 60


def test_noise_is_said_to_be_noise_and_costs_all_launches_that_are_allowed() -> None:
    answering = Answering(spread=0.2)
    found = finding(answering)
    assert found.relation is Relation.INCONCLUSIVE
    assert found.reason
    assert sum(len(s.attempts) for s in answering.orders.values()) == ROUNDS[-1]


def test_clear_differences_take_the_first_round_only() -> None:
    answering = Answering(1.5)
    assert finding(answering).relation is Relation.FASTER
    assert sum(len(s.attempts) for s in answering.orders.values()) == ROUNDS[0]


def test_a_spent_budget_ends_it_after_the_round() -> None:
    answering = Answering(spread=0.2)
    finding(answering, group=pair(budget_ns=1))
    assert len(answering.orders) == 1


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 5), st.integers(0, 100))
def test_a_restart_asks_for_the_same_orders(keep: int, seed: int) -> None:
    whole = Answering(1.008, seed=seed)
    expected = finding(whole)
    again = cut(whole, keep)
    assert finding(again) == expected
    assert list(again.orders) == list(whole.orders)


def test_each_launch_holds_both_sides_and_a_second_copy_of_the_first() -> None:
    group = pair(1.5)
    answering = Answering(1.5)
    finding(answering, group=group)
    (status,) = answering.orders.values()
    assert isinstance(status.order.work, LatencyWork)
    assert [c.key for c in status.order.work.contenders] == [group.entries[0].key, group.entries[1].key, CONTROL]
    assert status.order.device == "d1"


def test_a_side_compared_with_itself_is_its_own_control_arm() -> None:
    group = pair()
    same = replace(group, entries=(group.entries[0], replace(group.entries[0], baseline=False, variant="copy")))
    answering = Answering()
    found = finding(answering, group=same)
    assert found.relation is Relation.SAME
    assert found.control is None
    works = [s.order.work for s in answering.orders.values()]
    assert all(isinstance(w, LatencyWork) and len(w.contenders) == 2 for w in works)


def test_devices_of_one_class_are_measured_each_itself() -> None:
    rounds = [planning.next_step(pair(devices=(name,)), Answering().run(pair(), lambda *_: planning.Step("", ())), RULES).orders[0]
              for name in ("d1", "d2")]  # fmt: skip
    assert [o.device for o in rounds] == ["d1", "d2"]
    assert rounds[0].id != rounds[1].id


def test_a_bad_verdict_decides_nothing() -> None:
    throttled = Answering(1.5, conditions=Conditions(throttled=("thermal limit",)))
    found = finding(throttled, Rules(max_slowdown=0.02))
    assert (found.relation, found.slowdown) == (Relation.INCONCLUSIVE, Gate.UNKNOWN)
    assert "throttled" in found.reason


def test_two_copies_that_differ_make_the_launches_unfair() -> None:
    found = finding(Answering(1.5, control=1.2))
    assert found.relation is Relation.INCONCLUSIVE
    assert found.control is not None
    assert found.control.low > 1.1


def test_undisturbed_inferences_decide_where_every_launch_tells_them() -> None:
    """They spread by .1 % here and typical ones by .6 %: the answer takes fewer launches, and is the same."""
    launches = dict.fromkeys((0, 8), 0)
    for seed in range(20):
        for bursts in launches:
            answering = Answering(1.0, 0.006, seed, bursts=bursts)
            found = finding(answering)
            assert found.relation is Relation.SAME
            assert found.ratios is not None
            assert (found.ratios.by_minima is None, found.ratios.minima_decide) == (not bursts, bool(bursts) and not found.ratios.differ)
            launches[bursts] += sum(len(s.attempts) for s in answering.orders.values())
    assert launches[8] < 0.7 * launches[0]


def test_typical_inferences_that_differ_otherwise_decide_themselves() -> None:
    """As where something slows most inferences of one side, and spares a few."""
    for seed in range(20):
        found = finding(Answering(1 / 1.04, seed=seed, bursts=8, shortest=1.0))
        assert found.relation is Relation.SLOWER
        assert found.ratios is not None
        assert found.ratios.by_minima is not None
        assert found.ratios.by_minima.low > 0.99, "the shortest alone would be the same"
        assert found.ratio == found.ratios.by_medians
        assert decided_because(found) == "typical inferences differ otherwise than undisturbed ones"


def answered(answering: Answering, group: Group) -> Evidence:
    return answering.run(group, partial(planning.next_step, rules=RULES))


def with_minima(evidence: Evidence, group: Group, change: Callable[[int, ContenderResult], ContenderResult]) -> Evidence:
    """The second side's results changed by launch."""
    key = group.entries[1].key
    changed = tuple(replace(launch, result=change(launch.index, launch.result)) for launch in evidence.launches[key])
    return replace(evidence, launches={**evidence.launches, key: changed})


@pytest.mark.parametrize("minima", [(), (900_000,), (900_000,) * 3])
def test_one_launch_without_paired_minima_lets_medians_decide(minima: tuple[int, ...]) -> None:
    group = pair(1.03)
    evidence = answered(Answering(1.03, bursts=8), group)
    assert find(group, evidence, RULES).no_minima == ""
    found = find(group, with_minima(evidence, group, lambda index, r: r if index else replace(r, burst_min_ns=minima)), RULES)
    assert found.ratios is not None
    assert (found.ratios.by_minima, found.ratio) == (None, found.ratios.by_medians)
    assert decided_because(found) == found.no_minima == "not every launch tells the minima of its bursts"


@pytest.mark.parametrize(
    "changes",
    [{"objective": "latency_p99"}, {"objective": "throughput"}, {"objective": "energy"}, {"scenario": Scenario(rate_per_s=30.0)},
     {"scenario": Scenario("sustained")}, {"scenario": Scenario("offline")}],
    ids=str,
)  # fmt: skip
def test_what_is_not_a_median_of_inferences_back_to_back_has_no_minima(changes: dict[str, object]) -> None:
    group = pair(1.03)
    evidence = answered(Answering(1.03, bursts=8), group)
    found = find(replace(group, **changes), evidence, RULES)  # type: ignore[arg-type]
    assert found.ratios is not None
    assert found.ratios.by_minima is None
    assert found.no_minima


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 2**63 - 1), min_size=8, max_size=8), st.integers(0, 4))
def test_minima_of_a_liar_do_no_harm_to_the_comparison_that_they_are_in(lie: list[int], honest: int) -> None:
    """What they claim can't be told apart from what is; but it is a number, and what its medians show is not overruled by far."""
    group = pair(1.03)
    evidence = answered(Answering(1.03, bursts=8), group)
    told = with_minima(evidence, group, lambda index, r: r if index < honest else replace(r, burst_min_ns=tuple(lie)))
    found = find(group, told, RULES)
    assert found.ratio is not None
    assert found.ratios is not None
    assert found.ratio.low <= found.ratios.by_medians.value <= found.ratio.high
    assert found.relation in (Relation.FASTER, Relation.INCONCLUSIVE)


def test_the_verdict_is_about_what_decides() -> None:
    """Medians so wide that they would be called noisy, and undisturbed inferences that are not."""
    one_round = pair(1.5, budget_ns=1)
    wide = finding(Answering(1.5, spread=0.3, seed=3), group=one_round)
    sharp = finding(Answering(1.5, spread=0.3, seed=3, bursts=8), group=one_round)
    assert wide.verdict is Verdict.NOISY
    assert (sharp.verdict, sharp.relation) == (Verdict.STABLE, Relation.FASTER)
    assert sharp.control is not None
    assert sharp.control.high < 1.02, "two copies are compared as both sides are"


@pytest.mark.parametrize(
    ("answering", "by", "says"),
    [
        (Answering(1.03, bursts=8), "minima", "; minima decide: undisturbed inferences spread less"),
        (Answering(1 / 1.04, bursts=8, shortest=1.0), "medians", "; medians decide: typical inferences differ otherwise than undisturbed"),
        (Answering(1.03), "medians", ""),
        (Answering(fails={pair().entries[1].key: Failure(FailureKind.OOM, "too large")}), None, ""),
    ],
)
def test_every_form_shows_both_ratios_and_which_one_decides(answering: Answering, by: str | None, says: str) -> None:
    group = pair(answering.ratio)
    found = finding(answering, group=group)
    device = document.measured(found, group, DeviceStatus(Device("d1", "id", "boot"), "c1", "ready"), RULES)
    told = {**document.head("old", "new", RULES, [found], {}, None), "devices": [device]}
    jsonschema.validate(told, SCHEMA)
    assert device["decided_by"] == by
    for of in ("medians", "minima"):
        assert (device[f"speedup_by_{of}"] is None) == (f"speedup_by_{of}" in device["unavailable"])
    if by == "medians":
        assert device["speedup"] == device["speedup_by_medians"]
    if says:
        assert (device["speedup"]["ratio"] == device["speedup_by_minima"]["ratio"]) == (by == "minima")
        assert says in forms.table(told)
        assert says in forms.as_junit(told)
    else:
        assert " decide: " not in forms.table(told)


def test_a_side_that_does_not_run_ends_it_by_name() -> None:
    group = pair()
    answering = Answering(fails={group.entries[1].key: Failure(FailureKind.UNSUPPORTED_OP, "no kernel for Foo")})
    found = finding(answering, group=group)
    assert found.failed == "new"
    assert "unsupported_op: no kernel for Foo" in found.reason
    assert len(answering.orders) == 1


@pytest.mark.parametrize(
    ("low", "high", "limit", "expected"),
    [(0.03, 0.05, 0.02, "beyond"), (-0.01, 0.01, 0.02, "within"), (0.01, 0.03, 0.02, "unknown"), (0.02, 0.03, 0.02, "unknown"),
     (-0.5, 0.02, 0.02, "within"), (0.0, 0.0, 0.0, "within")],
)  # fmt: skip
def test_a_limit_is_broken_only_by_the_good_end_of_the_interval(low: float, high: float, limit: float, expected: str) -> None:
    assert gate(low, high, limit).value == expected


@settings(deadline=None)
@given(st.floats(0.2, 5), st.floats(1, 1.5), st.floats(0, 1))
def test_the_limit_of_slowdown_reads_the_ratio_the_right_way_round(value: float, spread: float, limit: float) -> None:
    said = slowdown_gate(Interval(value, value / spread, value * spread, 9), limit)
    slow, good = 1 / (value / spread) - 1, 1 / (value * spread) - 1
    assert said is (Gate.BEYOND if good > limit else Gate.WITHIN if slow <= limit else Gate.UNKNOWN)


def test_with_a_limit_launches_end_once_that_is_decided() -> None:
    answering = Answering(1.5)
    found = finding(answering, Rules(margin=0.02, max_slowdown=0.02))
    assert found.slowdown is Gate.WITHIN
    slower = finding(Answering(0.9), Rules(margin=0.02, max_slowdown=0.02))
    assert (slower.slowdown, slower.relation) == (Gate.BEYOND, Relation.SLOWER)


def energy(key: str, uj: float, spread: float = 0.005, unavailable: str = "") -> EnergyResult:
    return EnergyResult(key, uj, uj * (1 - spread), uj * (1 + spread), 1000, source="ina3221", rail="VDD_IN", unavailable=unavailable)


@pytest.mark.parametrize(("increase", "spread", "expected"), [(1.0, 0.005, "within"), (1.1, 0.005, "beyond"), (1.03, 0.05, "unknown")])
def test_the_limit_of_energy(increase: float, spread: float, expected: str) -> None:
    group = pair()
    keys = [e.key for e in group.entries]
    measured = {keys[0]: energy(keys[0], 100.0, spread), keys[1]: energy(keys[1], 100.0 * increase, spread)}
    found = finding(Answering(energy=measured), Rules(max_energy=0.03), group)
    assert found.energy_gate is not None
    assert found.energy_gate.value == expected


def test_energy_that_nobody_can_tell_is_unknown_with_its_reason() -> None:
    group = pair()
    keys = [e.key for e in group.entries]
    measured = {k: energy(k, 0.0, unavailable="no power sensor") for k in keys}
    found = finding(Answering(energy=measured), Rules(max_energy=0.03), group)
    assert found.energy_gate is Gate.UNKNOWN
    ended = problem([found], {}, Rules(max_energy=0.03))
    assert ended is not None
    assert (ended.exit_code, "no power sensor" in str(ended)) == (8, True)


def made(relation: Relation, slowdown: Gate | None = None, failed: str = "", device: str = "d") -> Finding:
    return Finding(device, Interval(1.0, 0.99, 1.01, 9), relation, "why", failed, slowdown)


LIMITED = Rules(max_slowdown=0.02)


@pytest.mark.parametrize(
    ("findings", "lost", "rules", "code"),
    [
        ([made(Relation.SAME)], {}, RULES, 0),
        ([made(Relation.SLOWER)], {}, RULES, 0),
        ([made(Relation.INCONCLUSIVE)], {}, RULES, 8),
        ([made(Relation.SLOWER, Gate.BEYOND)], {}, LIMITED, 7),
        ([made(Relation.SLOWER, Gate.WITHIN)], {}, LIMITED, 0),
        ([made(Relation.INCONCLUSIVE, Gate.WITHIN)], {}, LIMITED, 0),
        ([made(Relation.INCONCLUSIVE, Gate.UNKNOWN)], {}, LIMITED, 8),
        ([made(Relation.SLOWER, Gate.BEYOND), made(Relation.INCONCLUSIVE, Gate.UNKNOWN)], {}, LIMITED, 7),
        ([made(Relation.SLOWER, Gate.BEYOND)], {"e": "gone"}, LIMITED, 4),
        ([made(Relation.INCONCLUSIVE, failed="new")], {"e": "gone"}, LIMITED, 3),
        ([], {}, RULES, 8),
    ],
)
def test_exit_codes(findings: list[Finding], lost: dict[str, str], rules: Rules, code: int) -> None:
    ended = problem(findings, lost, rules)
    assert (ended.exit_code if ended else 0) == code


def test_lost_devices_may_be_allowed() -> None:
    assert problem([made(Relation.SAME)], {"e": "gone"}, RULES, allow_lost=0.5) is None


def test_the_fleets_answer_is_that_of_its_worst_device() -> None:
    findings = [made(Relation.FASTER), made(Relation.SAME), made(Relation.SLOWER)]
    assert overall(findings) is Relation.SLOWER
    assert overall(findings[:2]) is Relation.SAME
    assert summary(findings, {"x": "gone"}) == "slower on 1, same on 1, faster on 1, 1 lost of 4 devices"


def test_words_say_how_much_and_how_sure() -> None:
    slower = replace(made(Relation.SLOWER), ratio=Interval(1 / 1.03, 1 / 1.035, 1 / 1.025, 12))
    assert told(slower, RULES) == "slower by 3.00 % (+2.50 to +3.50 % time)"
    assert told(made(Relation.SAME), RULES) == "same within 1.00% (-0.99 to +1.01 % time)"

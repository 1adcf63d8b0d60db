"""A comparison says what is true as often as it promises, for any truth; limits, exit codes and words follow from it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.compare import planning
from controller.compare.judging import Finding, find, slowdown_gate
from controller.compare.outcome import overall, problem, summary, told
from controller.compare.rules import ROUNDS, Gate, Rules, gate
from controller.evidence import CONTROL, Group
from edgefarm.model import Conditions, EnergyResult, Failure, FailureKind, LatencyWork
from edgefarm.statistics import Interval, Relation
from tests.fakes.comparing import Answering, cut, pair

RULES = Rules()


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

"""What orders ask of a device: named by content, suited to the scenario, carrying window and place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller import orders
from controller.evidence import CONTROL, stage_of
from edgefarm.model import EnergyWork, LatencyWork, Scenario
from edgefarm.statistics import percentile_floor
from tests.fakes.world import Truth, make_group

TRUTHS = (Truth("source", 1_000_000), Truth("int8", 400_000))


def work(**changes: object) -> LatencyWork:
    group = make_group(TRUTHS, **changes)
    found = orders.comparison(group, group.entries, range(4)).work
    assert isinstance(found, LatencyWork)
    return found


def test_an_order_is_named_by_what_it_asks_alone() -> None:
    group = make_group(TRUTHS)
    moved = make_group(TRUTHS, window="22:00-05:00", only_on=("d1",), budget_ns=1, accept=("noisy",))
    first, again = (orders.comparison(g, g.entries, range(4)) for g in (group, moved))
    assert first.id == again.id
    others = [
        orders.comparison(group, group.entries, range(4, 8)),
        orders.comparison(group, group.entries, range(4), CONTROL),
        orders.comparison(make_group(TRUTHS, scenario=Scenario("offline", None, (1, 8))), group.entries, range(4)),
        orders.confirmation(group, group.entries[1], range(4), "d1"),
        orders.confirmation(group, group.entries[1], range(4), "d2"),
    ]
    assert len({first.id, *(o.id for o in others)}) == 6


def test_window_and_place_go_with_every_order_but_a_device_confirms_itself() -> None:
    group = make_group(TRUTHS, window="22:00-05:00", only_on=("d1",))
    entry = group.entries[1]
    given_ = [
        orders.screening(group, group.entries),
        orders.comparison(group, group.entries, range(4)),
        *(make(group, entry) for make in (orders.accuracy, orders.memory, orders.energy, orders.profile)),
        orders.confirmation(group, entry, range(5), "d2"),
    ]
    assert [o.window for o in given_] == ["22:00-05:00"] * 7
    assert [o.only_on for o in given_] == [("d1",)] * 6 + [()]
    assert [stage_of(o.id) for o in given_] == ["screen", "compare", "accuracy", "memory", "energy", "profile", "confirm"]


@given(st.floats(0.2, 2000), st.sampled_from(["latency_p50", "latency_p99"]))
def test_a_paced_burst_lasts_as_long_as_its_inferences_take_to_come(rate: float, objective: str) -> None:
    asked = work(scenario=Scenario("paced", rate), objective=objective)
    assert asked.burst_ns >= asked.min_inferences / rate * 1e9 - 1
    assert asked.burst_ns >= 20_000_000
    assert 3 <= asked.bursts <= orders.BURSTS
    if asked.bursts > 3:
        assert asked.bursts * asked.burst_ns <= 5 * 10**9


@pytest.mark.parametrize("name", ["latency_p90", "latency_p99"])
def test_ten_launches_carry_the_percentile_that_is_asked_for(name: str) -> None:
    needed = percentile_floor({"latency_p90": 0.9, "latency_p99": 0.99}[name])
    for asked in (work(objective=name), work(constraints={f"{name}_ms": 5.0})):
        assert asked.min_inferences * asked.bursts * orders.PERCENTILE_LAUNCHES >= needed
    server = work(objective=name, scenario=Scenario("server", 7.0)).scenario
    assert server.rate_per_s is not None
    assert server.duration_ns / 1e9 * server.rate_per_s * orders.PERCENTILE_LAUNCHES >= needed


def test_a_screening_only_ranks_so_an_inference_is_a_burst_unless_a_percentile_needs_more() -> None:
    least = {}
    for name in ("latency_p50", "latency_p99"):
        group = make_group(TRUTHS, objective=name)
        asked = [o.work for o in (orders.screening(group, group.entries), orders.comparison(group, group.entries, range(5)))]
        least[name] = [work.min_inferences for work in asked if isinstance(work, LatencyWork)]
    assert least["latency_p50"] == [1, 3]
    assert least["latency_p99"][0] == least["latency_p99"][1] > 3


@pytest.mark.parametrize(
    ("scenario", "screened"),
    [
        (Scenario("paced", 30.0), Scenario("paced", 30.0)),
        (Scenario("offline", None, (1, 8)), Scenario("offline", None, (1, 8))),
        (Scenario("sustained", None, (), 60 * 10**9), Scenario()),
        (Scenario("server", 20.0, (), 5 * 10**9), Scenario()),
    ],
)
def test_the_scenario_is_in_every_comparison_and_long_ones_are_screened_short(scenario: Scenario, screened: Scenario) -> None:
    group = make_group(TRUTHS, scenario=scenario)
    compared, short = orders.comparison(group, group.entries, range(4)), orders.screening(group, group.entries)
    energy = orders.energy(group, group.entries[1]).work
    confirmed = orders.confirmation(group, group.entries[1], range(5), "d1").work
    assert isinstance(compared.work, LatencyWork)
    assert isinstance(short.work, LatencyWork)
    assert isinstance(confirmed, LatencyWork)
    assert isinstance(energy, EnergyWork)
    assert (compared.work.scenario, confirmed.scenario, energy.scenario, short.work.scenario) == (scenario, scenario, scenario, screened)


def test_a_fallback_that_is_an_error_is_one_in_every_launch() -> None:
    group = make_group(TRUTHS, fail_on_fallback=True)
    for order in (orders.screening(group, group.entries), orders.confirmation(group, group.entries[1], range(5), "d1")):
        assert isinstance(order.work, LatencyWork)
        assert order.work.fail_on_fallback


def test_the_control_arm_is_the_baseline_under_a_key_of_its_own() -> None:
    group = make_group(TRUTHS)
    asked = orders.comparison(group, group.entries, range(4), CONTROL).work
    assert isinstance(asked, LatencyWork)
    assert [c.key for c in asked.contenders] == [*(e.key for e in group.entries), CONTROL]
    assert asked.contenders[-1].candidate == group.baseline.candidate

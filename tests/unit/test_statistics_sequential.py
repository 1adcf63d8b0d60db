"""Looking after every launch: how often is the interval ever wrong, and how soon is a slowdown found?"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefarm.statistics import (
    Interval,
    Relation,
    anytime_interval,
    anytime_ratio,
    interquartile_mean,
    launch_ratio,
    mean_interval,
    relation,
)
from edgefarm.statistics.sequential import FIRST_LOOK, PLANNED

RUNS = 2000
positive = st.floats(1e-3, 1e6)


def normal(rng: random.Random) -> float:
    return rng.gauss(0, 1)


def heavy_tailed(rng: random.Random) -> float:
    """Student's t with 3 degrees of freedom, scaled to variance 1."""
    chi = sum(rng.gauss(0, 1) ** 2 for _ in range(3))
    return rng.gauss(0, 1) / math.sqrt(chi / 3) / math.sqrt(3)


def ever_wrong(draw: Callable[[random.Random], float], interval: Callable[[list[float]], Interval], seed: int, launches: int) -> float:
    """Share of comparisons in which an interval, looked at after each launch, ever missed the truth, which is 0."""
    rng, wrong = random.Random(seed), 0
    for _ in range(RUNS):
        values = [draw(rng) for _ in range(launches)]
        looks = (interval(values[:n]) for n in range(FIRST_LOOK, launches + 1))
        wrong += any(not look.low <= 0 <= look.high for look in looks)
    return wrong / RUNS


@pytest.mark.parametrize("draw", [normal, heavy_tailed])
@pytest.mark.parametrize("launches", [PLANNED, 2 * PLANNED + 1])
def test_the_error_rate_holds_when_every_launch_is_looked_at(draw: Callable[[random.Random], float], launches: int) -> None:
    assert ever_wrong(draw, anytime_interval, 11, launches) < 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / RUNS)


def test_an_interval_meant_for_one_look_does_not_stand_that() -> None:
    assert ever_wrong(normal, mean_interval, 11, PLANNED) > 0.10


def decided(mean: float, deviation: float, seed: int, draw: Callable[[random.Random], float] = normal) -> tuple[dict[Relation, int], float]:
    """What 500 comparisons with margin 0.5 % said, and after how many launches on average."""
    rng, runs = random.Random(seed), 500
    said = dict.fromkeys(Relation, 0)
    launches = 0
    for _ in range(runs):
        values: list[float] = []
        found = Relation.INCONCLUSIVE
        while found is Relation.INCONCLUSIVE and len(values) < PLANNED:
            values.append(math.exp(mean + deviation * draw(rng)))
            found = relation(anytime_ratio(values, [1.0] * len(values)), 0.005)
        said[found] += 1
        launches += len(values)
    return said, launches / runs


@pytest.mark.parametrize("draw", [normal, heavy_tailed])
def test_a_slowdown_of_one_percent_is_found_in_few_launches(draw: Callable[[random.Random], float]) -> None:
    said, launches = decided(-math.log(1.01), 0.0036, 5, draw)
    assert said[Relation.SLOWER] >= 475
    assert said[Relation.SAME] + said[Relation.FASTER] <= 2
    assert launches < 8.5


def test_equal_copies_are_called_the_same_and_never_different() -> None:
    said, launches = decided(0.0, 0.0020, 6)
    assert said[Relation.SLOWER] + said[Relation.FASTER] == 0
    assert said[Relation.SAME] >= 495
    assert launches < 7


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60), st.sampled_from([3, 5, PLANNED, 20]))
def test_the_interval_holds_its_estimate_and_is_wider_than_for_one_look(values: list[float], planned: int) -> None:
    interval = anytime_interval(values, planned=planned)
    assert interval.low <= interval.value <= interval.high
    assert interval.known == (len(values) >= FIRST_LOOK)
    assert interval.n <= len(values)
    if interval.known:
        single = mean_interval(values[: interval.n])
        assert interval.high - interval.low >= single.high - single.low


def test_more_launches_than_planned_narrow_it_when_they_have_doubled() -> None:
    rng = random.Random(3)
    values = [rng.gauss(0, 1) for _ in range(8 * PLANNED)]
    widths = [look.high - look.low for look in (anytime_interval(values[: k * PLANNED]) for k in (1, 2, 4, 8))]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 1.5 * widths[3]
    assert anytime_interval(values[: 2 * PLANNED - 1]) == anytime_interval(values[:PLANNED])


@settings(deadline=None)
@given(positive, positive, st.floats(0, 0.5))
def test_a_relation_turns_round_with_its_ratio(one: float, other: float, margin: float) -> None:
    low, high = sorted((one, other))
    there = relation(Interval(math.sqrt(low * high), low, high, 5), margin)
    back = relation(Interval(1 / math.sqrt(low * high), 1 / high, 1 / low, 5), margin)
    turned = {Relation.FASTER: Relation.SLOWER, Relation.SLOWER: Relation.FASTER}
    at_the_edge = any(math.isclose(bound, edge) for bound in (low, high) for edge in (1 + margin, 1 / (1 + margin)))
    assert at_the_edge or back is turned.get(there, there)


@pytest.mark.parametrize(
    ("low", "high", "margin", "said"),
    [
        (1.006, 1.02, 0.005, Relation.FASTER), (0.98, 0.99, 0.005, Relation.SLOWER), (0.997, 1.004, 0.005, Relation.SAME),
        (1.001, 1.004, 0.005, Relation.SAME), (1.001, 1.02, 0.005, Relation.INCONCLUSIVE), (0.9, 1.1, 0.005, Relation.INCONCLUSIVE),
        (1.001, 1.02, 0.0, Relation.FASTER), (1.0, 1.0, 0.0, Relation.INCONCLUSIVE), (0.0, math.inf, 0.5, Relation.INCONCLUSIVE),
    ],
)  # fmt: skip
def test_a_relation_is_said_only_where_the_whole_interval_agrees(low: float, high: float, margin: float, said: Relation) -> None:
    assert relation(Interval((low + min(high, 2)) / 2, low, high, 9), margin) is said


@settings(deadline=None)
@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=40), st.floats(0.5, 2))
def test_a_launch_ratio_scales_and_inverts(bursts: list[tuple[float, float]], factor: float) -> None:
    before, after = [b for b, _ in bursts], [a for _, a in bursts]
    ratio = launch_ratio(before, after)
    assert launch_ratio([b * factor for b in before], after) == pytest.approx(ratio * factor)
    assert launch_ratio(after, before) == pytest.approx(1 / ratio)


def test_what_hits_single_bursts_does_not_move_a_launch_ratio() -> None:
    level = [1e6 * (1 + 0.5 * math.sin(i)) for i in range(40)]
    slower = [ns * 1.01 for ns in level]
    assert launch_ratio(level, slower) == pytest.approx(1 / 1.01)
    hit = [ns * (30 if i % 7 == 0 else 1) for i, ns in enumerate(slower)]
    assert launch_ratio(level, hit) == pytest.approx(1 / 1.01)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_an_interquartile_mean_lies_within_the_values(values: list[float]) -> None:
    assert min(values) - 1e-6 <= interquartile_mean(values) <= max(values) + 1e-6


@pytest.mark.parametrize("call", [
    lambda: anytime_interval([]), lambda: anytime_interval([0.1], planned=2), lambda: anytime_ratio([1.0], []),
    lambda: relation(Interval(1, 1, 1, 3), -0.1), lambda: launch_ratio([1.0], [1.0, 2.0]), lambda: launch_ratio([], []),
])  # fmt: skip
def test_what_has_no_answer_raises(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        call()

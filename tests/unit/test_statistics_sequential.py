"""Looking after every launch: how often is the interval ever wrong, and how soon is a slowdown found?"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefarm.statistics import (
    Interval,
    LaunchRatio,
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
            found = relation(anytime_ratio([LaunchRatio(v) for v in values]), 0.005)
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


def uneven(seed: int, guessed: float = 0.0) -> list[tuple[list[float], list[float]]]:
    """Comparisons of equal copies in percent whose launches are disturbed by turns: values, and what is held to be their errors.

    `guessed`: how wrong the errors are, as the standard deviation of their logarithm.
    """
    rng, found = random.Random(seed), []
    for _ in range(RUNS):
        errors = [0.002 * math.exp(abs(rng.gauss(0, 1))) for _ in range(PLANNED)]
        values = [rng.gauss(0, math.hypot(error, 0.002)) for error in errors]
        found.append((values, [error * math.exp(rng.gauss(0, guessed)) for error in errors]))
    return found


@pytest.mark.parametrize("guessed", [0.0, 0.3])
def test_launches_that_count_by_their_errors_are_as_seldom_wrong(guessed: float) -> None:
    wrong = 0
    for values, errors in uneven(13, guessed):
        looks = (anytime_interval(values[:n], errors=errors[:n]) for n in range(FIRST_LOOK, PLANNED + 1))
        wrong += any(not look.low <= 0 <= look.high for look in looks)
    assert wrong / RUNS < 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / RUNS)


def test_a_disturbed_launch_costs_little_where_its_error_is_known() -> None:
    found = [(anytime_interval(values, errors=errors), anytime_interval(values)) for values, errors in uneven(14)]
    assert statistics.median((a.high - a.low) / (b.high - b.low) for a, b in found) < 0.85
    one = anytime_interval([0.01, 0.011, 0.009, 0.0105, -0.2], errors=[0.001, 0.001, 0.001, 0.001, 0.3])
    assert one.low > 0
    assert one.value == pytest.approx(0.0101, abs=5e-4)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=20), st.floats(0.0, 1.0))
def test_equal_errors_change_nothing(values: list[float], error: float) -> None:
    plain, weighted = anytime_interval(values), anytime_interval(values, errors=[error] * len(values))
    assert weighted.value == pytest.approx(plain.value, abs=1e-9)
    assert (weighted.low, weighted.high) == (pytest.approx(plain.low, abs=1e-9), pytest.approx(plain.high, abs=1e-9))


def test_the_error_of_a_launch_is_the_spread_of_its_ratio_over_launches() -> None:
    """Rounds that differ by 4 % each: what one launch says of its error is what many launches show."""
    rng = random.Random(4)
    launches = [launch_ratio([math.exp(rng.gauss(0, 0.04)) for _ in range(64)], [1.0] * 64) for _ in range(600)]
    shown = statistics.stdev(math.log(x.value) for x in launches)
    assert statistics.median(x.error for x in launches) == pytest.approx(shown, rel=0.1)


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
    scaled, turned = launch_ratio([b * factor for b in before], after), launch_ratio(after, before)
    assert (scaled.value, turned.value) == (pytest.approx(ratio.value * factor), pytest.approx(1 / ratio.value))
    assert (scaled.error, turned.error) == (pytest.approx(ratio.error, abs=1e-9), pytest.approx(ratio.error, abs=1e-9))


def test_what_hits_single_bursts_does_not_move_a_launch_ratio() -> None:
    level = [1e6 * (1 + 0.5 * math.sin(i)) for i in range(40)]
    slower = [ns * 1.01 for ns in level]
    assert launch_ratio(level, slower).value == pytest.approx(1 / 1.01)
    hit = [ns * (30 if i % 7 == 0 else 1) for i, ns in enumerate(slower)]
    assert launch_ratio(level, hit).value == pytest.approx(1 / 1.01)


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_an_interquartile_mean_lies_within_the_values(values: list[float]) -> None:
    assert min(values) - 1e-6 <= interquartile_mean(values) <= max(values) + 1e-6


@pytest.mark.parametrize("call", [
    lambda: anytime_interval([]), lambda: anytime_interval([0.1], planned=2), lambda: anytime_interval([0.1, 0.2], errors=[0.1]),
    lambda: relation(Interval(1, 1, 1, 3), -0.1), lambda: launch_ratio([1.0], [1.0, 2.0]), lambda: launch_ratio([], []),
])  # fmt: skip
def test_what_has_no_answer_raises(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        call()

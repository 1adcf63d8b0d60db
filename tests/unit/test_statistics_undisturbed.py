"""Undisturbed inferences answer for typical ones, more sharply, wherever that is true, and typical ones for themselves where it is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgefarm.statistics import BurstRatios, Interval, LaunchRatio, Relation, burst_ratios, launch_ratio, relation
from edgefarm.statistics.sequential import PLANNED

BURSTS, INFERENCES, COMPARISONS = 40, 5, 200
launch = st.builds(LaunchRatio, st.floats(0.5, 2.0), st.floats(0.0, 0.5))
ratios = st.lists(launch, min_size=1, max_size=30)


def side(rng: np.random.Generator, slower: float, jitter: float) -> NDArray[np.float64]:
    """Inferences of all launches in ms, `[launch, burst, inference]`: what interferes adds time to three bursts in ten and never takes any.

    `jitter`: what the side itself takes more in 60 % of its inferences.
    """
    shape = (PLANNED, BURSTS, INFERENCES)
    own = np.exp(rng.normal(0, 0.004, shape)) + jitter * (rng.random(shape) < 0.6)
    disturbed = (rng.random((*shape[:2], 1)) < 0.3) & (rng.random(shape) < 0.8)
    return (1 + slower) * own + disturbed * rng.exponential(0.1, shape)


def compared(seed: int, slower: float = 0.0, jitter: float = 0.0) -> BurstRatios:
    """Of a model with a copy that takes `slower` more in every inference, and `jitter` in most of them."""
    rng = np.random.default_rng(seed)
    base, new = side(rng, 0.0, 0.0), side(rng, slower, jitter)
    found = [
        [launch_ratio(one.tolist(), other.tolist()) for one, other in zip(statistic(base, axis=2), statistic(new, axis=2))]
        for statistic in (np.median, np.min)
    ]
    return burst_ratios(*found)


def test_equal_copies_under_interference_are_equal_and_known_better_than_by_medians() -> None:
    found = [compared(seed) for seed in range(COMPARISONS)]
    wrong = sum(not f.deciding.low <= 1 <= f.deciding.high for f in found)
    assert wrong <= 0.05 * COMPARISONS + 2.5 * math.sqrt(0.05 * 0.95 * COMPARISONS)
    assert sum(relation(f.deciding, 0.01) is Relation.SAME for f in found) >= 0.95 * COMPARISONS
    widths = [math.log(f.deciding.high / f.deciding.low) / math.log(f.by_medians.high / f.by_medians.low) for f in found]
    assert float(np.median(widths)) < 0.6


@pytest.mark.parametrize("slower", [0.005, 0.01, 0.05, 0.5])
def test_a_slowdown_of_every_inference_is_found_by_the_minima(slower: float) -> None:
    found = [compared(1000 + seed, slower) for seed in range(COMPARISONS)]
    assert sum(f.deciding.low <= 1 / (1 + slower) <= f.deciding.high for f in found) >= 0.93 * COMPARISONS
    assert sum(relation(f.deciding, 0.0) is Relation.SLOWER for f in found) >= 0.95 * COMPARISONS
    assert sum(f.minima_decide for f in found) >= 0.9 * COMPARISONS


@pytest.mark.parametrize("jitter", [0.03, 0.1])
def test_what_slows_most_inferences_of_one_side_is_found_though_the_shortest_do_not_show_it(jitter: float) -> None:
    found = [compared(2000 + seed, jitter=jitter) for seed in range(COMPARISONS)]
    blind = [f.by_minima for f in found if f.by_minima is not None]
    assert sum(relation(m, 0.01) is Relation.SAME for m in blind) >= 0.9 * COMPARISONS, "nothing to be guarded against"
    assert sum(f.differ and relation(f.deciding, 0.01) is Relation.SLOWER for f in found) >= 0.95 * COMPARISONS
    assert not any(relation(f.deciding, 0.01) is Relation.SAME for f in found)


@pytest.mark.parametrize("typical", [0.0, 0.012, 0.02])
def test_a_difference_that_is_not_yet_sure_is_never_called_the_same_more_often_than_promised(typical: float) -> None:
    """Minima of launches spread by .4 %, medians by .65 %; beyond the margin of 1 % only medians show it, looked at three times."""
    rng, runs = np.random.default_rng(7), 400
    same = 0
    for _ in range(runs):
        shared = rng.normal(0, 1, PLANNED)
        minima = np.exp(0.004 * shared)
        medians = np.exp(0.0065 * (0.7 * shared + math.sqrt(0.51) * rng.normal(0, 1, PLANNED)) - typical)
        both = [[LaunchRatio(float(v)) for v in values] for values in (medians, minima)]
        looks = (burst_ratios(*(values[:n] for values in both)).deciding for n in (4, 8, 12))
        said = (relation(look, 0.01) for look in looks)
        same += next((s for s in said if s is not Relation.INCONCLUSIVE), None) is Relation.SAME
    assert same <= 0.05 * runs if typical else same >= 0.95 * runs


def test_without_minima_medians_decide() -> None:
    found = burst_ratios([LaunchRatio(value) for value in (1.1, 1.2, 1.15)], [])
    assert (found.deciding, found.minima_decide, found.differ) == (found.by_medians, False, False)


@given(ratios, st.data())
def test_the_answer_holds_the_typical_estimate_and_is_one_of_both(medians: list[LaunchRatio], data: st.DataObject) -> None:
    minima = data.draw(st.lists(launch, min_size=len(medians), max_size=len(medians)))
    found = burst_ratios(medians, minima)
    assert found.by_minima is not None
    assert found.deciding.low <= found.by_medians.value <= found.deciding.high
    if found.minima_decide:
        assert found.deciding.value == found.by_minima.value
        assert found.deciding.low <= found.by_minima.low
        assert found.deciding.high >= found.by_minima.high
    else:
        assert found.deciding == found.by_medians


@given(ratios.filter(lambda values: len(values) > 2))
def test_equal_estimates_never_differ(medians: list[LaunchRatio]) -> None:
    assert not burst_ratios(medians, medians).differ


def test_a_sure_difference_of_the_two_lets_medians_decide() -> None:
    typical, shortest = Interval(0.9, 0.8, 1.0, 9), Interval(1.0, 0.99, 1.01, 9)
    assert BurstRatios(typical, shortest, Interval(0.9, 0.85, 0.95, 9)).deciding == typical
    assert BurstRatios(typical, shortest, Interval(0.9, 0.80, 1.01, 9)).deciding == Interval(1.0, 0.9, 1.01, 9)

"""Shapes of traces whose truth is known."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefarm.statistics.regimes import RegimeKind, judge
from tests.traces import SHAPES, Draw, traces

SEEDS = (20_261, 20_262, 20_263)  # none of those that the thresholds were set with
COUNT, LONG = 300, 1000


def test_at_least_98_of_100_traces_are_named_rightly() -> None:
    made = traces(SEEDS[0], COUNT)
    wrong = [(t.name, len(t.samples), found) for t in made if (found := judge(t.samples)).kind.value not in t.kinds]
    assert len(wrong) <= 0.02 * len(made), wrong


@pytest.mark.long
@pytest.mark.parametrize("seed", SEEDS)
def test_so_are_more_traces(seed: int) -> None:
    made = traces(seed, LONG)
    wrong = [(t.name, len(t.samples), found) for t in made if (found := judge(t.samples)).kind.value not in t.kinds]
    assert len(wrong) <= 0.02 * len(made), wrong


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_no_shape_is_named_rightly_at_the_expense_of_another(shape: object) -> None:
    rng = random.Random(77)
    made = [shape(Draw(random.Random(rng.getrandbits(64)))) for _ in range(40)]  # type: ignore[operator]
    right = sum(judge(t.samples).kind.value in t.kinds for t in made)
    assert right >= 36


@pytest.mark.parametrize("seed", [5, 6])
def test_the_steady_state_begins_about_where_it_does(seed: int) -> None:
    rng, off = random.Random(seed), []
    for i in range(60):
        trace = SHAPES[2 + i % 3](Draw(random.Random(rng.getrandbits(64))))  # warm_up, step_down, step_up
        found = judge(trace.samples)
        if found.kind.value in trace.kinds:
            assert trace.settled_from is not None
            off.append(abs(found.settled_from - trace.settled_from) / len(trace.samples))
    assert len(off) >= 50
    assert sorted(off)[len(off) // 2] < 0.05
    assert max(off) < 0.45


@pytest.mark.parametrize("n", [0, 1, 19])
def test_a_few_samples_have_no_shape(n: int) -> None:
    found = judge([1e6] * n)
    assert (found.kind, found.settled_from) == (RegimeKind.TOO_SHORT, 0)
    assert str(n) in found.detail


@pytest.mark.parametrize("value", [0, 1, 1_000_000])
def test_equal_samples_are_flat(value: int) -> None:
    assert judge([value] * 500).kind is RegimeKind.FLAT


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 10**9), min_size=20, max_size=400), st.floats(0.01, 100))
def test_a_shape_does_not_depend_on_the_unit(samples: list[int], unit: float) -> None:
    found = judge(samples)
    assert 0 <= found.settled_from <= len(samples)
    assert (found.settled_from == len(samples)) == (found.kind is RegimeKind.UNSTEADY)
    scaled = judge([s * 2.0 ** round(math.log2(unit)) for s in samples])
    assert (scaled.kind, scaled.settled_from) == (found.kind, found.settled_from)


@pytest.mark.parametrize("seed", range(4))
def test_a_spike_however_high_changes_nothing(seed: int) -> None:
    rng = random.Random(seed)
    samples = [1e6 * math.exp(rng.gauss(0, 0.01)) for _ in range(300)]
    clean = judge(samples)
    for at in rng.sample(range(300), 5):
        samples[at] *= 1e4
    assert judge(samples).kind is clean.kind is RegimeKind.FLAT


def test_what_was_seen_is_told() -> None:
    rng = random.Random(8)
    slow = [1e6 * math.exp(rng.gauss(0.2 if i >= 100 else 0, 0.01)) for i in range(400)]
    assert "slower than it was before" in judge(slow).detail
    warm = judge(list(reversed(slow)))
    assert warm.kind is RegimeKind.WARM_UP
    assert f"{warm.settled_from} samples" in warm.detail
    modes = judge([1e6 * math.exp(rng.gauss(0.3 * (rng.random() < 0.5), 0.01)) for _ in range(400)])
    assert "two modes" in modes.detail

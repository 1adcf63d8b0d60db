"""What other devices say of candidates not measured yet: on made-up fleets with a known structure, and on real tables."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.transfer import LEAST_TABLES, Table, may_be_fastest, most_promising, predict

TABLES = Path(__file__).parents[1] / "data" / "nasbench201_latency.npz"
KEYS = [f"k{i:02d}" for i in range(30)]


def fleet(seed: int, devices: int, spread: float = 0.05) -> list[dict[str, float]]:
    """Devices with two traits each, candidates with two costs each: log latency = traits * costs, and something of their own."""
    rng = random.Random(seed)
    costs = {k: (rng.uniform(-1, 1), rng.uniform(-1, 1)) for k in KEYS}
    traits = [(rng.uniform(0.6, 1.4), rng.uniform(-0.5, 0.5), rng.uniform(-3, 3)) for _ in range(devices)]
    return [{k: a * x + b * y + c + rng.gauss(0, spread) for k, (x, y) in costs.items()} for a, b, c in traits]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 8), st.floats(-5, 5))
def test_how_fast_a_device_is_changes_nothing(seed: int, devices: int, shift: float) -> None:
    """A table's own scale, and the units of what is known, say nothing of the order."""
    *tables, target = fleet(seed, devices + 1)
    known = {k: target[k] for k in KEYS[:6]}
    plain = predict(known, tables, KEYS)
    moved = predict({k: v + shift for k, v in known.items()}, [{k: v - shift for k, v in t.items()} for t in tables], KEYS)
    for key in KEYS:
        assert moved[key].mean - shift == pytest.approx(plain[key].mean, abs=0.06 + 0.02 * abs(shift))
        assert moved[key].sd == pytest.approx(plain[key].sd, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 8), st.integers(1, 25))
def test_knowing_more_never_makes_less_sure_and_what_is_known_is_kept(seed: int, devices: int, count: int) -> None:
    *tables, target = fleet(seed, devices + 1)
    less, more = ({k: target[k] for k in KEYS[:n]} for n in (count, count + 1))
    before, after = predict(less, tables, KEYS), predict(more, tables, KEYS)
    assert all(after[k].sd <= before[k].sd + 1e-6 for k in KEYS)
    # Measured with .02, beside a spread of its own of .05; one poor table beside three values moves them most: .107 in the worst of 3,338.
    assert sum(abs(after[k].mean - v) for k, v in more.items()) / len(more) < 0.15
    assert all(math.isfinite(p.mean) and p.sd > 0 for p in after.values())


def test_ten_measurements_order_the_rest() -> None:
    *tables, target = fleet(5, 9, spread=0.02)
    known: dict[str, float] = {}
    while len(known) < 10:
        known.update({k: target[k] for k in most_promising(known, tables, KEYS, 1)})
    told = predict(known, tables, KEYS)
    truly, guessed = (sorted(KEYS, key=lambda k: values[k]) for values in (target, {k: p.mean for k, p in told.items()}))
    places = [abs(truly.index(k) - guessed.index(k)) for k in KEYS]
    assert max(places) <= 4


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 6), st.integers(0, 29), st.integers(1, 40))
def test_what_is_proposed_is_new_and_all_comes_in_the_end(seed: int, devices: int, count: int, asked: int) -> None:
    *tables, target = fleet(seed, devices + 1)
    known = {k: target[k] for k in KEYS[:count]}
    proposed = most_promising({**known, "elsewhere": 0.0}, tables, KEYS, asked)
    assert len(proposed) == len(set(proposed)) == min(asked, len(KEYS) - count)
    assert not set(proposed) & set(known)
    assert most_promising({**known, "elsewhere": 0.0}, tables, KEYS, asked) == proposed


def test_few_tables_exclude_nobody() -> None:
    *tables, target = fleet(3, LEAST_TABLES)
    known = {k: target[k] for k in KEYS[:10]}
    assert len(tables) == LEAST_TABLES - 1
    assert may_be_fastest(known, tables, KEYS, 0.02) == KEYS[10:]
    assert may_be_fastest({}, fleet(3, 5), KEYS, 0.02) == KEYS


def test_the_plainly_slow_are_excluded_and_the_unheard_of_never() -> None:
    tables = fleet(7, 8, spread=0.01)
    target = dict(tables.pop())
    best = sorted(KEYS, key=lambda k: target[k])[:12]
    known = {k: target[k] for k in best}
    for table in tables:
        del table[KEYS[-1] if KEYS[-1] not in known else KEYS[-2]]
    missing = next(k for k in KEYS if k not in tables[0])
    left = may_be_fastest(known, tables, KEYS, 0.02)
    assert missing in left
    assert len(left) < 6


def test_on_real_tables_fifteen_of_two_hundred_are_enough() -> None:
    """Six devices of six kinds, each unseen, 200 random cells: the search of `make bench-racing`, in small."""
    with np.load(TABLES, allow_pickle=False) as tables:
        names = [n for n in tables.files if n != "architecture"]
        cells = np.random.default_rng(17).choice(len(tables["architecture"]), 200, replace=False)
        logs = {n: np.log(np.maximum(tables[n][cells].astype(float), 1e-9)) for n in names}
    keys = [str(c) for c in cells]
    regrets = []
    for target in ("pixel2", "gold_6226", "fpga", "eyeriss", "titanx_32", "silver_4114"):
        others: list[Table] = [dict(zip(keys, map(float, logs[n]))) for n in names if n.split("_")[0] != target.split("_")[0]]
        truth = dict(zip(keys, map(float, logs[target])))
        rng = np.random.default_rng(3)
        known: dict[str, float] = {}
        while len(known) < 15:
            known.update({k: truth[k] + float(rng.normal(0, 0.01)) for k in most_promising(known, others, keys, 3)})
        regrets.append(math.exp(truth[min(known, key=lambda k: known[k])] - min(truth.values())) - 1)
    assert sum(regrets) / len(regrets) <= 0.01

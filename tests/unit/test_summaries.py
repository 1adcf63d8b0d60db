"""What the samples of a launch amount to."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from agent.runner.lanes import Timed
from agent.runner.replies import SHAPES, _fit
from agent.runner.summaries import summaries


def _timed(samples: list[int], disturbed: list[bool]) -> Timed:
    return Timed(samples, disturbed, [len(samples)], 7)


def test_summaries_give_quantiles() -> None:
    found = summaries({"a": _timed(list(range(1, 102)), [False] * 101)})["a"]
    assert (found["n"], found["mean_ns"], found["p50_ns"], found["p90_ns"], found["p99_ns"]) == (101, 51.0, 51, 91, 100)
    assert (found["warmup_inferences"], found["burst_p50_ns"], found["burst_min_ns"]) == (7, [51], [1])
    assert (found["disturbed"], found["left_out"]) == (0, 0)


def test_inferences_that_lost_the_cpu_are_left_out_of_all_contenders() -> None:
    hit = _timed([100] * 20 + [9000] * 20, [False] * 20 + [True] * 20)
    spared = _timed([50] * 39 + [60], [False] * 39 + [True])
    found = summaries({"hit": hit, "spared": spared})
    assert (found["hit"]["n"], found["hit"]["p99_ns"], found["hit"]["disturbed"], found["hit"]["left_out"]) == (20, 100, 20, 20)
    assert (found["spared"]["n"], found["spared"]["p99_ns"], found["spared"]["left_out"]) == (39, 50, 1)


def test_a_few_disturbances_are_the_machines_own_and_stay() -> None:
    found = summaries({"a": _timed([100] * 98 + [9000] * 2, [False] * 98 + [True] * 2)})["a"]
    assert (found["n"], found["disturbed"], found["left_out"]) == (100, 2, 0)
    assert found["p99_ns"] > 8000


def test_nothing_is_left_out_where_too_little_would_be_left() -> None:
    found = summaries({"a": _timed([100] * 4 + [9000] * 20, [False] * 4 + [True] * 20), "b": _timed([50] * 40, [False] * 40)})
    assert [found[k]["left_out"] for k in "ab"] == [0, 0]
    assert found["a"]["disturbed"] == 20


def _quiet(samples: list[int], **more: Any) -> Timed:
    return Timed(samples, [False] * len(samples), [len(samples)], 7, **more)


def _noise(seed: int, n: int, centre: float, spread: float = 0.02) -> list[int]:
    return [round(v) for v in centre * np.exp(np.random.default_rng(seed).normal(0, spread, n))]


def test_a_warm_up_that_the_bursts_did_not_see_is_left_out() -> None:
    found = summaries({"a": _quiet(_noise(1, 100, 200_000) + _noise(2, 900, 100_000))})["a"]
    assert (found["regime"], found["n"]) == ("warm_up", 1000 - found["unsettled"])
    assert 90 <= found["unsettled"] <= 130
    assert found["p99_ns"] < 120_000


def test_of_a_sustained_load_the_settled_part_counts() -> None:
    samples = _noise(1, 300, 100_000) + _noise(2, 1200, 160_000)
    sustained = summaries({"a": _quiet(samples)}, "sustained")["a"]
    assert sustained["regime"] == "slowdown"
    assert 280 <= sustained["unsettled"] <= 350
    assert sustained["p50_ns"] == pytest.approx(160_000, rel=0.01)
    paced = summaries({"a": _quiet(samples)}, "paced")["a"]
    assert (paced["regime"], paced["unsettled"], paced["n"]) == ("slowdown", 0, 1500)


def test_steady_samples_are_flat_whatever_their_number() -> None:
    for n in (200, 60_000):
        found = summaries({"a": _quiet(_noise(3, n, 100_000))})["a"]
        assert (found["regime"], found["unsettled"], found["n"]) == ("flat", 0, n)


def test_few_samples_tell_no_regime() -> None:
    assert summaries({"a": _quiet([100, 101, 99])})["a"]["regime"] == "too_short"


def test_inputs_of_different_length_are_no_unsteadiness() -> None:
    mixed = [v for pair in zip(_noise(1, 600, 100_000), _noise(2, 600, 300_000)) for v in pair]
    assert summaries({"a": _quiet(mixed, cycle=2)})["a"]["regime"] == "flat"
    assert summaries({"a": _quiet(mixed)})["a"]["regime"] != "flat"


def test_a_server_is_judged_by_its_inferences_and_says_how_much_it_served() -> None:
    served = _noise(1, 500, 100_000)
    waits = np.random.default_rng(2).exponential(200_000, 500).astype(int).tolist()
    timed = _quiet([s + w for s, w in zip(served, waits)], served=served, elapsed_ns=2 * 10**9)
    found = summaries({"a": timed}, "server")["a"]
    assert (found["regime"], found["samples_per_s"]) == ("flat", 250.0)
    timed.overloaded = True
    assert summaries({"a": timed}, "server")["a"]["regime"] == "overload"


def test_the_best_batch_gives_the_numbers_of_a_contender_per_row() -> None:
    timed = Timed(
        [100] * 10 + [160] * 10 + [600] * 10, [False] * 30, [], 3, sizes=[1] * 10 + [2] * 10 + [4] * 10,
        batch_lengths={1: [5, 5], 2: [4, 6], 4: [10]}, refused={8: "input 'x' takes no 8"},
    )  # fmt: skip
    found = summaries({"a": timed}, "offline")["a"]
    assert (found["n"], found["mean_ns"], found["p50_ns"], found["burst_p50_ns"]) == (10, 80.0, 80, [80, 80])
    assert found["samples_per_s"] == pytest.approx(1e9 / 80)
    rows = {row["batch_size"]: (row["n"], row["p50_ns"], row["unavailable"]) for row in found["batches"]}
    assert rows == {1: (10, 100, ""), 2: (10, 160, ""), 4: (10, 600, ""), 8: (0, 0, "input 'x' takes no 8")}


def test_the_median_of_a_burst_is_that_of_its_undisturbed_inferences() -> None:
    samples, disturbed = [100, 9000, 102, 9000, 9000, 9000] * 3, [False, True, False, True, True, True] * 3
    found = summaries({"a": Timed(samples, disturbed, [3] * 6, 1)})["a"]
    assert found["burst_p50_ns"] == [101, 9000] * 3, "a burst without any has that of all: bursts are compared one by one"


def test_the_minimum_of_a_burst_is_that_of_its_undisturbed_inferences() -> None:
    samples, disturbed = [100, 90, 102, 9000, 8000, 9000] * 3, [False, True, False, True, True, True] * 3
    found = summaries({"a": Timed(samples, disturbed, [3] * 6, 1)})["a"]
    assert found["burst_min_ns"] == [100, 8000] * 3, "as the median is"


def test_minima_are_of_as_many_inferences_of_each_contender() -> None:
    """The shortest of eight is shorter than the shortest of four, of one and the same model."""
    short = Timed([20, 30, 10, 10, 20, 10], [False] * 6, [4, 2], 1)
    long = Timed([60, 50, 70, 40, 40], [False] * 5, [2, 3], 1)
    found = summaries({"short": short, "long": long})
    assert (found["short"]["burst_min_ns"], found["long"]["burst_min_ns"]) == ([20, 10], [50, 40])
    assert found["short"]["burst_p50_ns"] == [15, 15], "medians are of all"


def test_inputs_of_different_shapes_have_no_shortest_inference() -> None:
    found = summaries({"a": Timed([100, 300] * 4, [False] * 8, [4, 4], 1, cycle=2)})["a"]
    assert (found["burst_p50_ns"], found["burst_min_ns"]) == ([200, 200], [])


def test_a_stretch_has_equal_parts_of_what_counts_in_it() -> None:
    found = summaries({"a": Timed(list(range(1, 81)), [False] * 80)}, "server")["a"]
    assert found["burst_min_ns"] == [], "the parts of a stretch are not compared one by one"
    assert found["burst_p50_ns"] == [round(np.median(np.arange(1, 11) + 10 * i)) for i in range(8)]


def test_disturbed_batches_are_left_out_of_their_size() -> None:
    disturbed = [i % 2 == 1 for i in range(20)]
    timed = Timed([100, 900] * 10, disturbed, [], 3, sizes=[2] * 20, batch_lengths={2: [20]})
    found = summaries({"a": timed}, "offline")["a"]
    assert (found["n"], found["left_out"], found["p99_ns"], found["batches"][0]["mean_ns"]) == (10, 10, 50, 100.0)


@pytest.mark.parametrize("kind", ["paced", "sustained", "server", "offline"])
def test_every_summary_is_one_that_the_supervisor_takes(kind: str) -> None:
    timed = _quiet(_noise(1, 40, 1000), served=_noise(1, 40, 900), elapsed_ns=10**6)
    if kind == "offline":
        timed = _quiet(_noise(1, 40, 1000), sizes=[2] * 40, batch_lengths={2: [40]})
    found = summaries({"a": timed}, kind)["a"]
    assert _fit(json.loads(json.dumps(found)), SHAPES["launch"]["contenders"].shape, "a") == found

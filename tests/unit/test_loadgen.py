"""A model under LoadGen: what it is told, how its queries are answered, what its summary says."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agent.runner import loadgen
from agent.runner.lanes import Feeds, Lane
from agent.runner.loadgen import Settings, read_summary, run
from agent.runtimes import RuntimeFailure
from edgefarm.model import FailureKind

_VALID = """================================================
MLPerf Results Summary
================================================
SUT name : PySUT
Scenario : SingleStream
Mode     : PerformanceOnly
90.0th percentile latency (ns) : 743128
Result is : VALID
  Min duration satisfied : Yes
  Min queries satisfied : Yes
  Early stopping satisfied: Yes
Early Stopping Result:
 * Processed at least 64 queries (2275).
 * Early stopping 90.0th percentile estimate: 756913

================================================
Additional Stats
================================================
QPS w/ loadgen overhead         : 1488.05
Mean latency (ns)               : 661234
50.00 percentile latency (ns)   : 648831
90.00 percentile latency (ns)   : 743128
99.00 percentile latency (ns)   : 1136712
"""
_INVALID = """Scenario : Server
Completed samples per second    : 93.88
Result is : INVALID
  Performance constraints satisfied : NO
  Min duration satisfied : Yes
  Early stopping satisfied: NO
Recommendations:
 * Reduce target QPS to improve latency.
Early Stopping Result:
 * Run unsuccessful.
 * Processed 190 queries.

================================================
50.00 percentile latency (ns)   : 1005721
"""


def test_a_valid_summary_gives_its_numbers() -> None:
    found = read_summary(_VALID)
    assert (found["result"], found["reasons"]) == ("VALID", [])
    assert found["numbers"] == {"n": 2275, "mean_ns": 661234, "p50_ns": 648831, "p90_ns": 743128, "p99_ns": 1136712}


def test_an_invalid_one_gives_its_reasons() -> None:
    found = read_summary(_INVALID)
    assert found["result"] == "INVALID"
    assert found["reasons"][:3] == [
        "Performance constraints satisfied : NO", "Early stopping satisfied: NO", "Reduce target QPS to improve latency.",
    ]  # fmt: skip
    assert found["numbers"] == {"n": 190, "samples_per_s": 93.88, "p50_ns": 1005721}


@pytest.mark.parametrize("text", ["", "MLPerf Results Summary\n"])
def test_what_is_no_summary_is_said(text: str) -> None:
    with pytest.raises(RuntimeFailure, match="LoadGen left no result"):
        read_summary(text)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(RuntimeFailure, match=r"pip install 'edgefarm\[loadgen\]'"):
        run(Lane(lambda feeds: None, [{}]), Settings("paced", 100, 64), tmp_path)


class FakeLoadGen:
    """Asks for `asked`, query by query, in the way of a scenario, and leaves a summary. Only what is used of the real one is here."""

    TestScenario = SimpleNamespace(SingleStream="SingleStream", Offline="Offline", Server="Server")
    TestMode = SimpleNamespace(PerformanceOnly="PerformanceOnly")
    TestSettings = LogSettings = staticmethod(lambda: SimpleNamespace(log_output=SimpleNamespace()))

    def __init__(self, asked: list[list[int]]) -> None:
        self.asked, self.answered, self.destroyed = asked, [], []
        self.told: Any = None

    def QuerySampleResponse(self, id: int, data: int, size: int) -> int:
        return id

    def QuerySamplesComplete(self, responses: list[int]) -> None:
        self.answered += responses

    def ConstructFastSUT(self, issue: Any, flush: Any) -> Any:
        return issue

    def ConstructQSL(self, count: int, fits: int, load: Any, unload: Any) -> int:
        return count

    def DestroyQSL(self, library: Any) -> None:
        self.destroyed.append("library")

    def DestroyFastSUT(self, system: Any) -> None:
        self.destroyed.append("system")

    def StartTestWithLogSettings(self, issue: Any, library: int, told: Any, log: Any, audit: str) -> None:
        self.told = told
        number = 1
        for query in self.asked:
            issue(list(range(number, number + len(query))), query)
            number += len(query)
        (Path(log.log_output.outdir) / "mlperf_log_summary.txt").write_text(_VALID)


@pytest.fixture
def seen() -> list[list[float]]:
    return []


def _lane(seen: list[list[float]], axes: dict[str, int | None] | None = None) -> Lane:
    def infer(feeds: Feeds) -> list[Any]:
        seen.append(feeds["x"][:, 0].tolist())
        return [feeds["x"]]

    return Lane(infer, [{"x": np.full((1, 2), float(i))} for i in range(4)], axes or {"x": None})


def _run(fake: FakeLoadGen, lane: Lane, settings: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", fake)
    monkeypatch.setattr(Lane, "warm_up", lambda lane, plan: setattr(lane, "typical_ns", 2_000_000))
    return run(lane, settings, folder)


@pytest.mark.parametrize("kind", ["paced", "server"])
def test_samples_are_run_as_they_are_asked_for(kind: str, seen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeLoadGen([[2], [0], [3], [3]])
    found = _run(fake, _lane(seen), Settings(kind, 1500, 64, 50.0, target_latency_ns=7, seed=3), tmp_path, monkeypatch)
    assert (seen, fake.answered, found["result"]) == ([[2], [0], [3], [3]], [1, 2, 3, 4], "VALID")
    assert fake.destroyed == ["library", "system"]
    assert (fake.told.min_duration_ms, fake.told.min_query_count, fake.told.schedule_rng_seed) == (1500, 64, 3)
    if kind == "paced":
        assert (fake.told.scenario, fake.told.single_stream_expected_latency_ns) == ("SingleStream", 500_000)
    else:
        assert (fake.told.scenario, fake.told.server_target_qps, fake.told.server_target_latency_ns) == ("Server", 50.0, 7)


def test_offline_queries_are_run_in_batches(seen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeLoadGen([[0, 1, 2, 3, 0, 1, 2]])
    _run(fake, _lane(seen), Settings("offline", 1, 1, batch_size=3), tmp_path, monkeypatch)
    assert seen[-3:] == [[0, 1, 2], [3, 0, 1], [2]]
    assert {len(batch) for batch in seen[:-3]} == {3}, "tries, to tell LoadGen what to expect"
    assert len(fake.answered) == 7
    assert fake.told.offline_expected_qps > 0


def test_a_fixed_batch_can_not_be_another(seen: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeFailure, match="batch size 3: input 'x' takes batches of 1, no others") as caught:
        _run(FakeLoadGen([[0]]), _lane(seen, {"x": 1}), Settings("offline", 1, 1, batch_size=3), tmp_path, monkeypatch)
    assert caught.value.kind is FailureKind.UNSUPPORTED_OP


@pytest.mark.parametrize("kind", ["paced", "server"])
def test_an_error_of_the_model_ends_as_that_error(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []

    def infer(feeds: Feeds) -> None:
        runs.append(1)
        raise ValueError("no")

    fake = FakeLoadGen([[0], [1], [0]])
    with pytest.raises(ValueError, match="no"):
        _run(fake, Lane(infer, [{"x": np.ones((1, 1))}] * 2), Settings(kind, 1, 1, 5.0), tmp_path, monkeypatch)
    assert (len(runs), fake.answered) == (1, [1, 2, 3]), "LoadGen waits for every answer"


def test_each_scenario_has_its_name_at_loadgen() -> None:
    assert loadgen.SCENARIOS == {"paced": "SingleStream", "offline": "Offline", "server": "Server"}

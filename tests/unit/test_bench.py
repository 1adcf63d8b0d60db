"""The supervisor's decisions in one launch, with runners that follow a script."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.bench import latency, session
from agent.bench.latency import measure_latency
from agent.bench.memory import measure_memory
from agent.bench.passes import measure_accuracy
from agent.bench.site import Measured, Site
from agent.runner.process import Cancelled, Reply, RunnerFailed
from edgefarm import hostlock
from edgefarm.model import (
    AccuracyWork,
    Artifact,
    BatchResult,
    Candidate,
    Contender,
    Failure,
    FailureKind,
    FileEntry,
    Io,
    LatencyResult,
    LatencyWork,
    Limits,
    MemoryResult,
    MemoryWork,
    Scenario,
    Stage,
    TensorMap,
)

_CRASH = Failure(FailureKind.CRASH, "killed by SIGSEGV", Stage.RUN)


class FakeRunners:
    """Makes FakeRunners and remembers what was asked of each. `misbehave(request, loaded)` may give a failure."""

    def __init__(self) -> None:
        self.asked: list[list[dict[str, Any]]] = []
        self.misbehave: Callable[[dict[str, Any], list[str]], Failure | None] = lambda request, loaded: None
        self.not_finite: dict[str, int] = {}
        self.first_ns = 7
        self.provider = ""

    def __call__(self, limits: Limits, scratch: Path, **how: Any) -> FakeRunner:
        self.asked.append([])
        return FakeRunner(self, self.asked[-1], limits, scratch)

    def requests(self, kind: str) -> list[dict[str, Any]]:
        return [request for runner in self.asked for request in runner if request["do"] == kind]


class FakeRunner:
    """Answers as a runner would."""

    pid = os.getpid()

    def __init__(self, parent: FakeRunners, asked: list[dict[str, Any]], limits: Limits, folder: Path) -> None:
        self._parent, self._asked, self.limits, self.folder = parent, asked, limits, folder
        self.alive = True
        self.loaded: list[str] = []

    def __enter__(self) -> FakeRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self.alive = False

    def call(self, request: Mapping[str, Any], timeout_ns: int, stage: Stage) -> Reply:
        request = dict(request)
        self._asked.append({**request, "timeout_ns": timeout_ns, "stage": stage})
        failure = self._parent.misbehave(request, self.loaded)
        if failure is not None:
            raise RunnerFailed(failure)
        return getattr(self, request.pop("do").replace("import", "import_"))(**request)  # type: ignore[no-any-return]

    def import_(self, runtime: str) -> Reply:
        return Reply({"version": "9.9"})

    def load(self, key: str, *, rest: bool, **_: Any) -> Reply:
        self.loaded.append(key)
        resting = {"spin_us": 5} if rest else {}
        return Reply({"load_ns": 5, "chosen": {}, "provider": self._parent.provider, "resting": resting, "inputs": [], "outputs": []})

    def first(self, key: str, inputs: str) -> Reply:
        return Reply({"first_inference_ns": self._parent.first_ns, "not_finite": self._parent.not_finite.get(key, 0), "samples": 5})

    def launch(self, keys: list[str], inputs: str, plan: dict[str, Any]) -> Reply:
        summary = {
            "n": 3, "mean_ns": 2.0, "p50_ns": 2, "p90_ns": 3, "p99_ns": 3, "warmup_inferences": 4, "burst_p50_ns": [2],
            "burst_min_ns": [1], "regime": "flat", "unsettled": 1, "samples_per_s": 9.0,
            "batches": [{"batch_size": size, "n": 3, "mean_ns": 2.0, "p50_ns": 2, "unavailable": ""} for size in plan["batch_sizes"]],
        }  # fmt: skip
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **{key: np.array([1, 2, 3], np.uint64) for key in keys})
        return Reply({"contenders": dict.fromkeys(keys, summary)}, buffer.getvalue())

    def placement(self, key: str, inputs: str) -> Reply:
        return Reply({"placement": {"CPUExecutionProvider": 12}})

    def memory(self, key: str | None, inputs: str, inferences: int, runtime: str = "", options: Mapping[str, Any] | None = None) -> Reply:
        assert (key is None) == (runtime == "onnxruntime")
        size = 150 if key else 100 if len(self._parent.asked) > 1 else 70  # the very first one brings libraries into the page cache
        return Reply({"peak_rss_bytes": size, "pss_bytes": size - 20, "private_bytes": size - 40, "model_file_bytes": 9 if key else 0})

    def profile(self, key: str, inputs: str, inferences: int) -> Reply:
        rows = [["c", "Conv", "CPUExecutionProvider", 5.5, 1, "f32"]]
        return Reply({"operators": rows, "whole_ns": 7.5, "source": f"{inferences} runs", "unavailable": ""})

    def evaluate(self, outputs: str, golden: str, **_: Any) -> Reply:
        Path(outputs).write_bytes(b"outputs")
        Path(golden).write_bytes(b"golden")
        return Reply({"n": 6})


@pytest.fixture
def runners(monkeypatch: pytest.MonkeyPatch) -> FakeRunners:
    fake = FakeRunners()
    monkeypatch.setattr(session, "RunnerProcess", fake)
    return fake


@pytest.fixture
def place(tmp_path: Path) -> Site:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "inputs.npz").write_bytes(b"inputs")
    return Site(scratch, threads=2, lock=tmp_path / "lock")


def _contender(key: str, size: int = 1000, **options: Any) -> Contender:
    artifact = Artifact("sha256:" + "0" * 64, size, "onnx", (FileEntry("model.onnx", "sha256:" + "0" * 64, size),))
    return Contender(key, Candidate(artifact, "onnxruntime", options))


def _work(*keys: str, launches: tuple[int, ...] = (0, 1), **changes: Any) -> LatencyWork:
    return LatencyWork(tuple(map(_contender, keys)), Scenario(), "", launches, **changes)


def _measure(work: LatencyWork, place: Site, launch: int = 0, limits: Limits | None = None) -> Measured:
    models = {c.key: place.scratch / f"{c.key}.onnx" for c in work.contenders}
    return measure_latency(work, launch, models, place.scratch.parent / "inputs.npz", limits or Limits(), place)


def _result(measured: Measured) -> LatencyResult:
    assert isinstance(measured.outcome, LatencyResult)
    return measured.outcome


def _kinds(result: LatencyResult) -> dict[str, FailureKind | None]:
    return {c.key: c.failure.kind if c.failure else None for c in result.contenders}


def test_all_contenders_share_one_fresh_runner(runners: FakeRunners, place: Site) -> None:
    measured = _measure(_work("a", "b", "c"), place)
    result = _result(measured)
    assert len(runners.asked) == 1
    assert [c.key for c in result.contenders] == ["a", "b", "c"]
    assert result.resident_together
    first = result.contenders[0]
    assert (first.n, first.p50_ns, first.load_ns, first.first_inference_ns) == (3, 2, 5, 7)
    assert (first.burst_p50_ns, first.burst_min_ns) == ((2,), (1,))
    assert first.placement == {"CPUExecutionProvider": 12}
    with np.load(measured.blobs["samples"]) as archive:
        assert sorted(archive.files) == ["a", "b", "c"]
    assert measured.conditions.settings["onnxruntime"] == "9.9"


def test_the_time_outs_are_those_of_their_phase(runners: FakeRunners, place: Site) -> None:
    _measure(_work("a", "b"), place, limits=Limits(load_ns=11, run_ns=22_000))
    assert {r["timeout_ns"] for r in runners.requests("load")} == {11}
    assert {r["stage"] for r in runners.requests("load")} == {Stage.LOAD}
    assert {r["timeout_ns"] for r in runners.requests("launch") + runners.requests("first")} == {22_000}


@pytest.mark.parametrize(
    ("first_ns", "launch_ns", "evaluate_ns"), [(1, 1000, 1000), (50, 3 * 33 * 2 * 50, 3 * 10 * 50), (2000, 12_000, 12_000)]
)
def test_a_slow_model_gets_the_time_that_its_first_inference_asks_for(
    runners: FakeRunners, place: Site, first_ns: int, launch_ns: int, evaluate_ns: int
) -> None:
    runners.first_ns, limits = first_ns, Limits(run_ns=1000)
    _measure(_work("a", "b"), place, limits=limits)  # 2 contenders of one inference, and 8 bursts of 1 + 3
    assert [r["timeout_ns"] for r in runners.requests("launch")] == [launch_ns]
    shards = [place.scratch.parent / "inputs.npz"] * 2
    measure_accuracy(AccuracyWork(_contender("a"), ("", "")), place.scratch / "a.onnx", shards, limits, place)
    assert [r["timeout_ns"] for r in runners.requests("evaluate")] == [evaluate_ns]
    assert {r["timeout_ns"] for r in runners.requests("first")} == {1000}


def test_the_launch_index_seeds_every_order(runners: FakeRunners, place: Site) -> None:
    for launch in (*range(12), 3):
        _measure(_work("a", "b", "c", "d"), place, launch)
    orders = [tuple(r["key"] for r in asked if r["do"] == "load") for asked in runners.asked]
    assert len(set(orders)) > 3
    assert orders[3] == orders[-1]
    seeds = [r["plan"]["seed"] for r in runners.requests("launch")]
    assert len(set(seeds)) == 12
    assert seeds[3] == seeds[-1]


def test_placement_is_asked_once_per_order_and_after_the_timing(runners: FakeRunners, place: Site) -> None:
    _measure(_work("a", "b", launches=(4, 5)), place, 4)
    kinds = [request["do"] for request in runners.asked[0]]
    assert kinds[-3:] == ["launch", "placement", "placement"]
    result = _result(_measure(_work("a", "b", launches=(4, 5)), place, 5))
    assert "placement" not in [request["do"] for request in runners.asked[1]]
    assert result.contenders[0].placement == {}


def test_without_an_answer_to_placement_the_numbers_stand(runners: FakeRunners, place: Site) -> None:
    runners.misbehave = lambda request, loaded: _CRASH if request["do"] == "placement" else None
    measured = _measure(_work("a"), place)
    assert _kinds(_result(measured)) == {"a": None}
    assert measured.conditions.unavailable["placement of a"] == "killed by SIGSEGV"


@pytest.mark.parametrize("phase", ["load", "first"])
def test_a_contender_that_fails_is_left_out_and_the_launch_repeated(runners: FakeRunners, place: Site, phase: str) -> None:
    failure = Failure(FailureKind.LOAD, f"cannot read {place.scratch / 'b.onnx'}", Stage.LOAD)
    runners.misbehave = lambda request, loaded: failure if (request["do"], request.get("key")) == (phase, "b") else None
    result = _result(_measure(_work("a", "b", "c"), place))
    assert _kinds(result) == {"a": None, "b": FailureKind.LOAD, "c": None}
    assert result.contenders[1].failure is not None
    assert result.contenders[1].failure.detail == "cannot read model.onnx"
    assert result.contenders[1].n == 0
    assert runners.requests("launch")[-1]["keys"] == ["a", "c"]
    assert result.resident_together


def test_the_reference_may_fail_too(runners: FakeRunners, place: Site) -> None:
    runners.misbehave = lambda request, loaded: _CRASH if (request["do"], request.get("key")) == ("load", "a") else None
    assert _kinds(_result(_measure(_work("a", "b"), place))) == {"a": FailureKind.CRASH, "b": None}


def test_all_may_fail(runners: FakeRunners, place: Site) -> None:
    runners.misbehave = lambda request, loaded: _CRASH if request["do"] == "load" else None
    measured = _measure(_work("a", "b", "c"), place)
    assert set(_kinds(_result(measured)).values()) == {FailureKind.CRASH}
    assert "samples" not in measured.blobs


def test_a_crash_in_the_schedule_is_traced_to_its_culprit(runners: FakeRunners, place: Site) -> None:
    runners.misbehave = lambda request, loaded: _CRASH if request["do"] == "launch" and "b" in loaded else None
    result = _result(_measure(_work("a", "b", "c"), place))
    assert _kinds(result) == {"a": None, "b": FailureKind.CRASH, "c": None}
    assert result.resident_together
    assert [sorted(r["keys"]) for r in runners.requests("launch")][-1] == ["a", "c"]


def test_when_nobody_crashes_alone_each_is_measured_alone(runners: FakeRunners, place: Site) -> None:
    runners.misbehave = lambda request, loaded: _CRASH if request["do"] == "launch" and len(loaded) > 1 else None
    measured = _measure(_work("a", "b", "c"), place)
    result = _result(measured)
    assert _kinds(result) == {"a": None, "b": None, "c": None}
    assert not result.resident_together
    with np.load(measured.blobs["samples"]) as archive:
        assert {key: archive[key].tolist() for key in archive.files} == {key: [1, 2, 3] for key in "abc"}
    assert len(runners.asked) == 4


def test_contenders_too_large_for_half_of_the_memory_take_turns(runners: FakeRunners, place: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = (place.scratch.parent / "inputs.npz").stat().st_size
    needed = latency.MEMORY_BASE_BYTES + latency.MEMORY_FACTOR * 3000 + inputs
    for available, together in ((2 * needed, True), (2 * needed - 2, False)):
        monkeypatch.setattr(latency, "available_bytes", lambda limit, available=available: available)
        result = _result(_measure(_work("a", "b", "c"), place))
        assert result.resident_together is together
        assert _kinds(result) == {"a": None, "b": None, "c": None}
    assert [len(asked) > 8 for asked in runners.asked] == [True, False, False, False]


def test_taking_turns_survives_a_failure(runners: FakeRunners, place: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "available_bytes", lambda limit: 0)
    runners.misbehave = lambda request, loaded: _CRASH if request["do"] == "launch" and "b" in loaded else None
    assert _kinds(_result(_measure(_work("a", "b", "c"), place))) == {"a": None, "b": FailureKind.CRASH, "c": None}
    assert len(runners.asked) == 3


def test_the_limit_of_the_runner_counts_as_available() -> None:
    assert latency.available_bytes(1000) == 1000
    assert latency.available_bytes(0) > 1000


@pytest.mark.parametrize(
    ("not_finite", "kinds"),
    [
        ({"b": 3}, {"a": None, "b": FailureKind.NUMERIC}),
        ({"a": 1, "b": 3}, {"a": None, "b": None}),  # the source itself gives such values
        ({"a": 1}, {"a": None, "b": None}),
    ],
)
def test_values_that_only_the_variant_spoils_are_its_failure(
    runners: FakeRunners, place: Site, not_finite: dict[str, int], kinds: dict[str, FailureKind | None]
) -> None:
    runners.not_finite = not_finite
    assert _kinds(_result(_measure(_work("a", "b"), place))) == kinds


def test_options_get_the_devices_threads_and_stay_within_them(runners: FakeRunners, place: Site) -> None:
    work = LatencyWork((_contender("a"), _contender("b", threads=1), _contender("c", threads=3)), Scenario(), "", (0,))
    result = _result(_measure(work, place))
    assert {r["key"]: r["options"]["threads"] for r in runners.requests("load")} == {"a": 2, "b": 1}
    assert result.contenders[2].failure is not None
    assert "limit is 2" in result.contenders[2].failure.detail


def test_io_travels_whole(runners: FakeRunners, place: Site) -> None:
    mapping = Io((TensorMap("x", "x:0", (0, 2, 1), 0.5, 3),), (TensorMap("y", "y:0", dtype="int64"),))
    contender = Contender("a", Candidate(_contender("a").candidate.artifact, "onnxruntime", {}, mapping))
    _measure(LatencyWork((contender,), Scenario(), "", (0,)), place)
    assert runners.requests("load")[0]["io"] == {
        "inputs": [{"source": "x", "name": "x:0", "permutation": (0, 2, 1), "scale": 0.5, "zero_point": 3, "dtype": ""}],
        "outputs": [{"source": "y", "name": "y:0", "permutation": (), "scale": None, "zero_point": None, "dtype": "int64"}],
    }


def test_a_scenario_of_a_later_version_is_refused(runners: FakeRunners, place: Site) -> None:
    outcome = _measure(LatencyWork((_contender("a"),), Scenario("swarm", 5.0), "", (0,)), place).outcome
    assert isinstance(outcome, Failure)
    assert "'swarm'" in outcome.detail
    assert runners.asked == []


@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        (Scenario("server"), "needs rate_per_s"),
        (Scenario("paced", 0.0), "rate_per_s 0: must be above 0"),
        (Scenario("server", float("nan")), "rate_per_s nan: must be above 0"),
        (Scenario("offline", batch_sizes=(4, 0)), "batch sizes 4, 0: must be at least 1"),
    ],
)
def test_a_load_that_makes_no_sense_is_refused(runners: FakeRunners, place: Site, scenario: Scenario, said: str) -> None:
    outcome = _measure(LatencyWork((_contender("a"),), scenario, "", (0,)), place).outcome
    assert isinstance(outcome, Failure)
    assert said in outcome.detail
    assert runners.asked == []


def test_what_a_scenario_showed_is_in_the_result(runners: FakeRunners, place: Site) -> None:
    found = _result(_measure(LatencyWork((_contender("a"),), Scenario("offline", batch_sizes=(1, 8)), "", (0,)), place)).contenders[0]
    assert found.batches == (BatchResult(1, 3, 2.0, 2), BatchResult(8, 3, 2.0, 2))
    assert (found.regime, found.unsettled, found.samples_per_s) == ("flat", 1, 9.0)


@pytest.mark.parametrize(
    ("scenario", "duration_ns", "more_ns"),
    [
        (Scenario(), 0, 0),
        (Scenario("paced", 10.0), 0, 2 * 8 * 4 * 10**8),  # two contenders, eight bursts, three and one to discard, 0.1 s apart
        (Scenario("offline", batch_sizes=(1, 8)), 0, 0),
        (Scenario("sustained", duration_ns=60 * 10**9), 60 * 10**9, 2 * 2 * 60 * 10**9),
        (Scenario("sustained"), 160_000_000, 2 * 2 * 160_000_000),
        (Scenario("server", 1000.0), 160_000_000, 2 * 2 * 160_000_000),
        (Scenario("server", 10.0), 6_400_000_000, 2 * 2 * 6_400_000_000),  # 64 requests
        (Scenario("server", 10.0, duration_ns=10**9), 10**9, 2 * 2 * 10**9),
    ],
)
def test_a_launch_gets_the_time_that_its_scenario_takes(
    runners: FakeRunners, place: Site, scenario: Scenario, duration_ns: int, more_ns: int
) -> None:
    work = LatencyWork((_contender("a"), _contender("control")), scenario, "", (0,))
    _measure(work, place, limits=Limits(run_ns=10**9))
    request = runners.requests("launch")[0]
    assert (request["plan"]["kind"], request["plan"]["duration_ns"]) == (scenario.kind, duration_ns)
    assert request["timeout_ns"] == 10**9 + more_ns


def test_the_same_artifact_may_be_there_twice(runners: FakeRunners, place: Site) -> None:
    path = place.scratch / "a.onnx"
    work = LatencyWork((_contender("a"), _contender("b"), _contender("control")), Scenario(), "", (0,))
    models = {"a": path, "b": path, "control": path}
    result = _result(measure_latency(work, 0, models, place.scratch.parent / "inputs.npz", Limits(), place))
    assert _kinds(result) == dict.fromkeys(("a", "b", "control"))
    assert sorted(r["key"] for r in runners.requests("load")) == ["a", "b", "control"]


def test_a_silent_fallback_fails_where_the_order_says_so(runners: FakeRunners, place: Site) -> None:
    runners.provider = "CUDAExecutionProvider"
    flagged = _result(_measure(_work("a", "b"), place, 1)).contenders[0]
    assert (flagged.provider, flagged.failure, flagged.placement) == ("CUDAExecutionProvider", None, {})
    failed = _result(_measure(_work("a", "b", fail_on_fallback=True), place, 1)).contenders[0]
    assert failed.failure is not None
    assert (failed.failure.kind, "CUDAExecutionProvider" in failed.failure.detail) == (FailureKind.UNSUPPORTED_OP, True)


def test_a_rate_reaches_the_schedule(runners: FakeRunners, place: Site) -> None:
    _measure(LatencyWork((_contender("a"),), Scenario("paced", 25.0), "", (0,)), place)
    assert runners.requests("launch")[0]["plan"]["rate_per_s"] == 25.0


@pytest.mark.parametrize(
    ("keys", "scenario", "rest"),
    [("ab", Scenario(), True), ("ab", Scenario("offline", batch_sizes=(1,)), True), ("a", Scenario(), False),
     ("ab", Scenario("paced", 25.0), False), ("ab", Scenario("sustained"), False), ("ab", Scenario("server", 25.0), False)],
)  # fmt: skip
def test_threads_rest_soon_where_contenders_take_turns_and_it_is_said(
    runners: FakeRunners, place: Site, keys: str, scenario: Scenario, rest: bool
) -> None:
    measured = _measure(LatencyWork(tuple(map(_contender, keys)), scenario, "", (0,)), place)
    assert [r["rest"] for r in runners.requests("load")] == [rest] * len(keys)
    assert ("spin_us" in measured.conditions.settings) == rest


def test_memory_is_taken_from_two_fresh_runners(runners: FakeRunners, place: Site) -> None:
    measured = measure_memory(MemoryWork(_contender("a"), "", 9), place.scratch / "a.onnx", place.scratch / "i", Limits(), place)
    assert measured.outcome == MemoryResult("a", 150, 130, 100, 80, 110, 60, None, "", 9)
    assert "accelerator_bytes" not in measured.conditions.unavailable
    assert [[r["do"] for r in asked] for asked in runners.asked] == [["import", "memory"]] * 2 + [["import", "load", "memory"]]
    assert [r["key"] for r in runners.requests("memory")] == [None, None, "a"]
    assert [r.get("options") for r in runners.requests("memory")] == [{"threads": 2}, {"threads": 2}, None]


def test_a_failure_of_a_pass_is_its_outcome(runners: FakeRunners, place: Site) -> None:
    runners.misbehave = lambda request, loaded: _CRASH if request["do"] in ("memory", "evaluate") else None
    path = place.scratch / "a.onnx"
    assert measure_memory(MemoryWork(_contender("a"), ""), path, path, Limits(), place).outcome == _CRASH
    measured = measure_accuracy(AccuracyWork(_contender("a"), ("",)), path, [place.scratch.parent / "inputs.npz"], Limits(), place)
    assert (measured.outcome, measured.blobs) == (_CRASH, {})


def test_results_outlive_the_measurement_and_nothing_else_does(runners: FakeRunners, place: Site) -> None:
    shards = [place.scratch.parent / "inputs.npz"]
    measured = measure_accuracy(AccuracyWork(_contender("a"), ("",)), place.scratch / "a.onnx", shards, Limits(), place)
    assert {role: path.read_bytes() for role, path in measured.blobs.items()} == {"outputs": b"outputs", "golden": b"golden"}
    assert sorted(place.scratch.iterdir()) == sorted(measured.blobs.values())


def test_the_hosts_lock_is_held_while_measuring(runners: FakeRunners, place: Site) -> None:
    free: list[bool] = []

    def look(request: dict[str, Any], loaded: list[str]) -> None:
        with hostlock.hold(exclusive=False, path=place.lock, cancelled=iter([False, True]).__next__) as held:
            free.append(held)

    runners.misbehave = look
    _measure(_work("a", "b"), place)
    assert free
    assert not any(free)
    look({}, [])
    assert free[-1]


def test_cancelling_while_waiting_for_the_lock(runners: FakeRunners, place: Site) -> None:
    waiting = Site(place.scratch, lock=place.lock, cancelled=iter([False, False, True]).__next__)
    with hostlock.hold(exclusive=True, path=place.lock), pytest.raises(Cancelled):
        _measure(_work("a"), waiting)
    assert runners.asked == []

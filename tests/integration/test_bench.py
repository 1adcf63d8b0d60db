"""Real measurements of small models, in real runners."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from agent.bench.golden import check_golden
from agent.bench.latency import measure_latency
from agent.bench.memory import measure_memory
from agent.bench.passes import measure_accuracy
from agent.bench.site import Measured, Site
from agent.runner.process import Cancelled
from edgefarm import hostlock
from edgefarm.model import (
    AccuracyResult,
    AccuracyWork,
    Artifact,
    Candidate,
    Contender,
    Failure,
    FailureKind,
    FileEntry,
    Golden,
    Io,
    LatencyResult,
    LatencyWork,
    Limits,
    MemoryResult,
    MemoryWork,
    Reduction,
    Scenario,
    Stage,
    TensorMap,
)
from edgefarm.tensors import pack, unpack
from tests import zoo

MIB = 2**20
_QUICK = {"bursts": 2, "burst_ns": 1_000_000, "warmup_ns": 3_000_000}


@pytest.fixture
def place(tmp_path: Path) -> Site:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Site(scratch, threads=1, lock=tmp_path / "lock")


def _candidate(path: Path, io: Io | None = None, **options: Any) -> Candidate:
    digest = "sha256:" + "0" * 64
    artifact = Artifact(digest, path.stat().st_size, "onnx", (FileEntry("model.onnx", digest, path.stat().st_size),))
    return Candidate(artifact, "onnxruntime", options, io)


def _build(name: str, folder: Path) -> Path:
    folder.mkdir()
    return {**zoo.MODELS, **zoo.BROKEN, "not_finite": zoo.not_finite, "greedy": zoo.greedy}[name](folder)


def _latency(models: dict[str, Path], inputs: Path, place: Site, limits: Limits | None = None, **how: Any) -> Measured:
    contenders = tuple(Contender(key, _candidate(path)) for key, path in models.items())
    work = LatencyWork(contenders, Scenario(), "", (0,), **{**_QUICK, **how})
    return measure_latency(work, 0, models, inputs, limits or Limits(), place)


def _children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.mark.parametrize("name", sorted(set(zoo.MODELS) - {f"opset_{n}" for n in (11, 13, 15, 17, 18, 19, 20)}))
def test_every_kind_of_model_is_measured_whole(name: str, tmp_path: Path, place: Site) -> None:
    path = _build(name, tmp_path / "model")
    shard = zoo.write_shard(tmp_path / "inputs.npz", path)
    measured = _latency({"a": path}, shard, place)
    assert isinstance(measured.outcome, LatencyResult)
    (result,) = measured.outcome.contenders
    assert result.failure is None
    assert result.n >= 6
    assert 0 < result.p50_ns <= result.p90_ns <= result.p99_ns
    assert len(result.burst_p50_ns) == 2
    assert min(result.load_ns, result.first_inference_ns, result.warmup_inferences) > 0
    assert set(result.placement) == {"CPUExecutionProvider"}
    contender = Contender("a", _candidate(path))
    accuracy = measure_accuracy(AccuracyWork(contender, ("", ""), golden_samples=3), path, [shard, shard], Limits(), place)
    assert accuracy.outcome == AccuracyResult("a", "", "", 8)
    golden = Golden("", 1e-5, 1e-6)
    assert check_golden(contender.candidate, path, accuracy.blobs["golden"], golden, Limits(), place) is None
    assert _children() == []


def test_a_model_whose_files_are_links_to_another_folder_is_measured(tmp_path: Path, place: Site) -> None:
    """As caches of models keep them. A runner may read the folder of a model, and where its main file leads."""
    kept = _build("external_data", tmp_path / "kept")
    links = tmp_path / "links"
    links.mkdir()
    for file in kept.parent.iterdir():
        (links / file.name).symlink_to(f"../kept/{file.name}")
    (tmp_path / "inputs").symlink_to(zoo.write_shard(tmp_path / "i", kept))
    outcome = _latency({"a": links / kept.name}, tmp_path / "inputs", place).outcome
    assert isinstance(outcome, LatencyResult)
    assert outcome.contenders[0].failure is None


def test_raw_samples_are_what_the_summary_says(tmp_path: Path, place: Site) -> None:
    path = _build("dense", tmp_path / "model")
    measured = _latency({"a": path, "b": path}, zoo.write_shard(tmp_path / "i", path), place, bursts=3)
    assert isinstance(measured.outcome, LatencyResult)
    with np.load(measured.blobs["samples"]) as archive:
        for result in measured.outcome.contenders:
            samples = archive[result.key]
            assert samples.dtype == np.uint64
            used = samples[result.unsettled :]
            if result.left_out:
                used = used[~archive[f"{result.key}.disturbed"][result.unsettled :]]
            assert (len(used), round(float(np.median(used)))) == (result.n, result.p50_ns)
            assert result.mean_ns == pytest.approx(used.mean())
    conditions = measured.conditions
    assert {"python", "affinity", "onnxruntime"} <= set(conditions.settings)
    assert conditions.others_cpu is not None
    assert conditions.others_cpu >= 0
    assert conditions.steal is not None
    assert {t.quantity for t in conditions.traces} >= {"load_1m", "memory_available_bytes"}


def test_contenders_that_cannot_run_do_not_harm_the_others(tmp_path: Path, place: Site) -> None:
    names = ("dense", "truncated", "unknown_operator", "not_finite")
    models = {name: _build(name, tmp_path / name) for name in names}
    outcome = _latency(models, zoo.write_shard(tmp_path / "i", models["dense"]), place).outcome
    assert isinstance(outcome, LatencyResult)
    assert [c.failure.kind if c.failure else None for c in outcome.contenders] == [
        None, FailureKind.LOAD, FailureKind.UNSUPPORTED_OP, FailureKind.NUMERIC,
    ]  # fmt: skip
    failure = outcome.contenders[1].failure
    assert failure is not None
    assert failure.stage is Stage.LOAD
    assert str(tmp_path) not in failure.detail  # a person knows the model by its name, not by its place in a cache
    assert "model.onnx" in failure.detail


def test_a_greedy_contender_is_out_of_memory_alone(tmp_path: Path, place: Site) -> None:
    models = {name: _build(name, tmp_path / name) for name in ("dense", "greedy")}
    shard = zoo.write_shard(tmp_path / "i", models["dense"])
    outcome = _latency(models, shard, place, Limits(memory_bytes=300 * MIB)).outcome
    assert isinstance(outcome, LatencyResult)
    assert [c.failure.kind if c.failure else None for c in outcome.contenders] == [None, FailureKind.OOM]


def test_a_phase_that_takes_too_long_is_named(tmp_path: Path, place: Site) -> None:
    path = _build("dense", tmp_path / "model")
    shard = zoo.write_shard(tmp_path / "i", path)
    outcome = _latency({"a": path}, shard, place, Limits(run_ns=300_000_000), bursts=1, burst_ns=10**10).outcome
    assert isinstance(outcome, LatencyResult)
    failure = outcome.contenders[0].failure
    assert failure == Failure(FailureKind.TIMEOUT, "run: no answer within 0.3 s", Stage.RUN)
    assert _children() == []


def test_cancelling_a_launch_ends_its_runner(tmp_path: Path, place: Site) -> None:
    path = _build("dense", tmp_path / "model")
    shard = zoo.write_shard(tmp_path / "i", path)
    cancel = threading.Event()
    timer = threading.Timer(1.0, cancel.set)
    timer.start()
    with pytest.raises(Cancelled):
        _latency({"a": path}, shard, Site(place.scratch, lock=place.lock, cancelled=cancel.is_set), bursts=50, burst_ns=10**10)
    timer.join()
    assert _children() == []
    assert list(place.scratch.iterdir()) == []


def test_waiting_for_the_host_is_told_apart_from_measuring(tmp_path: Path, place: Site) -> None:
    path = _build("dense", tmp_path / "model")
    shard = zoo.write_shard(tmp_path / "i", path)
    asked, told = threading.Semaphore(0), list[Measured]()

    def is_cancelled() -> bool:  # asked again and again while it waits
        asked.release()
        return False

    site = Site(place.scratch, lock=place.lock, cancelled=is_cancelled)
    measuring = threading.Thread(target=lambda: told.append(_latency({"a": path}, shard, site)))
    began_ns = time.monotonic_ns()
    with hostlock.hold(exclusive=True, path=place.lock):
        measuring.start()
        assert asked.acquire(timeout=20)
        waits_since_ns = time.monotonic_ns()
        assert all(asked.acquire(timeout=20) for _ in range(5))
        free_ns = time.monotonic_ns()
    measuring.join()
    assert free_ns - waits_since_ns <= told[0].waited_ns
    assert 0 < told[0].duration_ns <= time.monotonic_ns() - free_ns
    assert told[0].waited_ns + told[0].duration_ns <= time.monotonic_ns() - began_ns


@pytest.mark.parametrize(
    ("content", "said"), [(b"no pack", "not a tensor pack"), (pack({"z": np.zeros((2, 1, 16), np.float32)}), "the inputs lack 'x'")]
)
def test_inputs_that_do_not_fit_are_a_failure(content: bytes, said: str, tmp_path: Path, place: Site) -> None:
    path = _build("dense", tmp_path / "model")
    shard = tmp_path / "i"
    shard.write_bytes(content)
    outcome = _latency({"a": path}, shard, place).outcome
    assert isinstance(outcome, LatencyResult)
    failure = outcome.contenders[0].failure
    assert failure is not None
    assert failure.kind is FailureKind.IO_CHANGED
    assert said in failure.detail


def test_memory_grows_with_the_model(tmp_path: Path, place: Site) -> None:
    (tmp_path / "large").mkdir()
    models = {"small": _build("dense", tmp_path / "small"), "large": zoo.dense(tmp_path / "large", width=2**18)}  # 26 MiB of weights
    shard = zoo.write_shard(tmp_path / "i", models["small"])
    extra = {}
    for name, path in models.items():
        outcome = measure_memory(MemoryWork(Contender(name, _candidate(path)), ""), path, shard, Limits(), place).outcome
        assert isinstance(outcome, MemoryResult)
        assert outcome.peak_rss_bytes > outcome.reference_peak_rss_bytes > 10 * MIB
        assert outcome.pss_bytes > outcome.reference_pss_bytes > 0
        extra[name] = outcome.peak_rss_bytes - outcome.reference_peak_rss_bytes
    assert extra["large"] - extra["small"] > 20 * MIB


def test_topk_gives_indices_of_every_sample(tmp_path: Path, place: Site) -> None:
    path = _build("dense", tmp_path / "model")
    shard = zoo.write_shard(tmp_path / "i", path, 7)
    contender = Contender("a", _candidate(path))
    raw = measure_accuracy(AccuracyWork(contender, ("",)), path, [shard], Limits(), place)
    top = measure_accuracy(AccuracyWork(contender, ("",), Reduction("topk", "y", 3)), path, [shard], Limits(), place)
    logits, indices = (np.asarray(unpack(m.blobs["outputs"])["y"]) for m in (raw, top))
    assert indices.dtype == np.int64
    assert np.array_equal(indices, np.argsort(-logits, axis=-1, kind="stable")[..., :3])


def test_the_output_budget_is_a_failure_that_says_so(tmp_path: Path, place: Site) -> None:
    path = _build("dense", tmp_path / "model")
    work = AccuracyWork(Contender("a", _candidate(path)), ("",), output_bytes_limit=50)
    outcome = measure_accuracy(work, path, [zoo.write_shard(tmp_path / "i", path)], Limits(), place).outcome
    assert isinstance(outcome, Failure)
    assert outcome.stage is Stage.RUN
    assert "more than the" in outcome.detail


def test_golden_outputs_catch_another_model(tmp_path: Path, place: Site) -> None:
    path = _build("dense", tmp_path / "model")
    shard = zoo.write_shard(tmp_path / "i", path)
    contender = Contender("a", _candidate(path))
    golden = measure_accuracy(AccuracyWork(contender, ("",)), path, [shard], Limits(), place).blobs["golden"]
    for other, kind in (("not_finite", FailureKind.NUMERIC), ("truncated", FailureKind.LOAD), ("several_inputs", FailureKind.IO_CHANGED)):
        failure = check_golden(contender.candidate, _build(other, tmp_path / other), golden, Golden("", 1e-4, 1e-4), Limits(), place)
        assert failure is not None
        assert failure.kind is kind


def test_io_is_applied_in_the_runner(tmp_path: Path, place: Site) -> None:
    source = _build("convolution", tmp_path / "source")
    variant = _build("channels_last", tmp_path / "variant")
    shard = zoo.write_shard(tmp_path / "i", source)  # NCHW
    io = Io((TensorMap("x", "x", (0, 2, 3, 1)),), (TensorMap("scores", "y"),))
    contender = Contender("a", _candidate(variant, io))
    measured = measure_accuracy(AccuracyWork(contender, ("",)), variant, [shard], Limits(), place)
    outputs, golden = unpack(measured.blobs["outputs"]), unpack(measured.blobs["golden"])
    assert set(outputs) == {"scores"}
    assert np.asarray(golden["input:x"]).shape == (4, 1, 3, 16, 16)
    assert check_golden(contender.candidate, variant, measured.blobs["golden"], Golden("", 1e-6, 1e-6), Limits(), place) is None


def test_a_model_whose_external_data_is_gone_does_not_load(tmp_path: Path, place: Site) -> None:
    path = _build("external_data", tmp_path / "model")
    shard = zoo.write_shard(tmp_path / "i", path)
    moved = tmp_path / "moved"
    moved.mkdir()
    outcome = _latency({"a": Path(shutil.copy(path, moved))}, shard, place).outcome
    assert isinstance(outcome, LatencyResult)
    failure = outcome.contenders[0].failure
    assert failure is not None
    assert failure.kind is FailureKind.LOAD
    assert "weights.bin" in failure.detail

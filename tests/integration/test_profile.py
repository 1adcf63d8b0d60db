"""Profiles and memory by real runners, with each runtime that is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agent.bench.latency import measure_latency
from agent.bench.memory import measure_memory
from agent.bench.passes import measure_pass
from agent.bench.site import Site
from agent.runtimes import is_installed, missing
from edgefarm.digest import artifact_digest, digest_file
from edgefarm.model import (
    Artifact,
    Candidate,
    Contender,
    Failure,
    FailureKind,
    FileEntry,
    LatencyResult,
    LatencyWork,
    Limits,
    MemoryResult,
    MemoryWork,
    ProfileResult,
    ProfileWork,
    Scenario,
    fallen_back,
)
from edgefarm.tensors import pack
from tests import zoo

MIB = 2**20


def _zoo(runtime: str) -> ModuleType:
    if not is_installed(runtime):
        pytest.skip(missing(runtime))
    if runtime == "tflite":
        from tests import zoo_tflite

        return zoo_tflite
    if runtime == "openvino":
        from tests import zoo_openvino

        return zoo_openvino
    return zoo


def _dense(runtime: str, width: int) -> Callable[[Path], Path]:
    module = _zoo(runtime)
    write: Any = zoo.dense if runtime == "openvino" else module.dense
    build: Callable[[Path], Path] = partial(write, width=width)
    return module.converted(build) if runtime == "openvino" else build  # type: ignore[no-any-return]


class Bench:
    """Measures models of the zoos in a folder of its own."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self.site = Site(base / "scratch", threads=1, lock=base / "lock")
        self.site.scratch.mkdir()

    def contender(self, runtime: str, build: Callable[[Path], Path], options: Mapping[str, Any]) -> tuple[Contender, Path, Path]:
        folder = Path(self._base / f"model-{len(list(self._base.iterdir()))}")
        folder.mkdir()
        path = build(folder)
        paths = [path, *sorted(folder.glob("*.bin"))]
        files = tuple(FileEntry(p.name, digest_file(p), p.stat().st_size) for p in paths)
        digest = artifact_digest((f.name, f.digest, f.bytes) for f in files)
        artifact = Artifact(digest, sum(f.bytes for f in files), {".xml": "openvino"}.get(path.suffix, path.suffix[1:]), files)
        shard = folder.with_suffix(".npz")
        shard.write_bytes(pack(_zoo(runtime).samples(path)))
        return Contender("m", Candidate(artifact, runtime, {"threads": 1, **options})), path, shard

    def profile(self, runtime: str, build: Callable[[Path], Path], **options: Any) -> ProfileResult:
        contender, path, shard = self.contender(runtime, build, options)
        outcome = measure_pass(ProfileWork(contender, "", 5), path, shard, Limits(), self.site).outcome
        assert isinstance(outcome, ProfileResult), outcome
        return outcome

    def memory(self, runtime: str, build: Callable[[Path], Path], **options: Any) -> MemoryResult:
        contender, path, shard = self.contender(runtime, build, options)
        outcome = measure_memory(MemoryWork(contender, ""), path, shard, Limits(), self.site).outcome
        assert isinstance(outcome, MemoryResult), outcome
        return outcome


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize(
    ("runtime", "provider", "kind", "kernel"),
    [("onnxruntime", "CPUExecutionProvider", "Conv", ""), ("openvino", "CPU", "Convolution", "_")],
)
def test_operators_are_told_longest_first(runtime: str, provider: str, kind: str, kernel: str, bench: Bench) -> None:
    module = _zoo(runtime)
    result = bench.profile(runtime, module.MODELS["convolution"])
    times = [o.mean_ns for o in result.operators]
    assert times == sorted(times, reverse=True)
    assert all(ns > 0 and o.calls == 1 for ns, o in zip(times, result.operators))
    assert {o.provider for o in result.operators} == {provider} == set(result.placement)
    (convolution, *_) = [o for o in result.operators if o.kind == kind]
    assert kernel in convolution.kernel
    assert result.whole_ns > max(times)
    assert (result.unavailable, result.provider, result.fallback_share) == ("", "", None)
    assert "microseconds" in result.source


def test_a_runtime_without_a_profiler_says_so_and_where_it_ran(bench: Bench) -> None:
    result = bench.profile("tflite", _zoo("tflite").MODELS["convolution"])
    assert (result.operators, result.whole_ns, result.source) == ((), 0.0, "")
    assert "tells no times" in result.unavailable
    assert set(result.placement) == {"xnnpack"}


def test_a_provider_that_takes_no_node_is_a_silent_fallback(bench: Bench) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs an execution provider that starts and takes no node")
    result = bench.profile("onnxruntime", zoo.MODELS["convolution"], execution_provider="AzureExecutionProvider")
    assert result.provider == "AzureExecutionProvider"
    assert fallen_back(result.provider, result.placement) == sum(result.placement.values()) > 0
    assert result.fallback_share == 1.0


def test_operators_that_a_delegate_leaves_are_counted(bench: Bench) -> None:
    build = _zoo("tflite").MODELS["partly_delegated"]
    asked, taken = (bench.profile("tflite", build, delegate=delegate) for delegate in ("xnnpack", "none"))
    assert 0 < fallen_back(asked.provider, asked.placement) < sum(asked.placement.values())
    assert fallen_back(taken.provider, taken.placement) == 0


def test_a_silent_fallback_can_be_a_failure(bench: Bench) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs an execution provider that starts and takes no node")
    contender, path, shard = bench.contender("onnxruntime", zoo.dense, {"execution_provider": "AzureExecutionProvider"})
    for fail in (False, True):
        work = LatencyWork((contender,), Scenario(), "", (0,), 2, 1_000_000, warmup_ns=1_000_000, fail_on_fallback=fail)
        outcome = measure_latency(work, 0, {"m": path}, shard, Limits(), bench.site).outcome
        assert isinstance(outcome, LatencyResult)
        (result,) = outcome.contenders
        if fail:
            assert result.failure is not None
            assert result.failure.kind is FailureKind.UNSUPPORTED_OP
            assert "AzureExecutionProvider" in result.failure.detail
        else:
            assert result.failure is None
            assert fallen_back(result.provider, result.placement) == sum(result.placement.values()) > 0


@pytest.mark.parametrize(
    ("file", "more", "said"),
    [
        ("model.onnx", ["--json"], "AzureExecutionProvider"),
        ("model.onnx", [], "FALLBACK: AzureExecutionProvider was asked for"),
        ("model.onnx", ["--inferences", "0"], "must be at least 1"),
        ("absent.onnx", [], "absent.onnx: no such file"),
    ],
)
def test_the_command_prints_it(file: str, more: list[str], said: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs an execution provider that starts and takes no node")
    zoo.convolution(tmp_path)
    command = [
        sys.executable,
        "-m",
        "agent.cli",
        "profile",
        str(tmp_path / file),
        "--measure-lock",
        str(tmp_path / "lock"),
        "--threads",
        "1",
    ]
    command += ["--option", "execution_provider=AzureExecutionProvider", *more]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert said in done.stdout + done.stderr
    assert done.returncode == (2 if "--inferences" in more or file == "absent.onnx" else 0)
    if "--json" in more:
        report = json.loads(done.stdout)
        assert report["fallback"] == {"asked": "AzureExecutionProvider", "nodes": sum(report["placement"].values()), "time_share": 1.0}
        assert sum(o["share"] for o in report["operators"]) == pytest.approx(1)
        assert report["whole_ns"] > 0
        assert report["unavailable"] == {}
    elif done.returncode == 0:
        assert "Conv" in done.stdout


def test_a_model_that_does_not_load_is_a_failure(bench: Bench) -> None:
    contender, path, shard = bench.contender("onnxruntime", zoo.dense, {})
    path.write_bytes(path.read_bytes()[:100])
    outcome = measure_pass(ProfileWork(contender, ""), path, shard, Limits(), bench.site).outcome
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.LOAD


@pytest.mark.parametrize("runtime", ["onnxruntime", "tflite", "openvino"])
def test_memory_is_the_models_in_every_runtime(runtime: str, bench: Bench) -> None:
    small, big = (bench.memory(runtime, _dense(runtime, width)) for width in (64, 2**18))
    weights = 26 * MIB  # float32[16, 2^18] and float32[2^18, 10]
    for result in (small, big):
        assert result.peak_rss_bytes >= result.private_bytes > 0
        assert result.reference_private_bytes > 0
        assert result.pss_bytes > result.reference_pss_bytes
        assert (result.accelerator_bytes, result.accelerator) == (None, "")
    assert abs(big.reference_peak_rss_bytes - small.reference_peak_rss_bytes) < 2 * MIB
    for part in ("peak_rss_bytes", "pss_bytes", "private_bytes"):
        assert getattr(big, part) - getattr(small, part) > 0.8 * weights, part
    if runtime == "onnxruntime":  # it reads a model into memory of its own
        assert big.model_file_bytes == 0
    else:
        assert big.model_file_bytes - small.model_file_bytes > 0.9 * weights

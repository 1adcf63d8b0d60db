"""Every scenario with a real runtime in a real runner, through `edge-agent bench`, and under the real LoadGen."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.bench.latency import measure_latency
from agent.bench.site import Site
from edgefarm.digest import digest_file
from edgefarm.model import (
    Artifact,
    Candidate,
    Contender,
    FileEntry,
    LatencyResult,
    LatencyWork,
    Limits,
    Scenario,
)
from edgefarm.tensors import pack
from tests import zoo


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """zoo.convolution: any batch."""
    return zoo.convolution(tmp_path_factory.mktemp("model"))


def bench(model: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    lock = str(model.parent / "lock")
    command = [sys.executable, "-m", "agent.cli", "bench", str(model), "--threads", "1", "--measure-lock", lock]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120)


def report(model: Path, *arguments: str) -> dict[str, Any]:
    done = bench(model, "--json", *arguments)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_launch_of_each_scenario_keeps_its_samples(model: Path, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs.npz"
    inputs.write_bytes(pack({"x": [np.ones((1, 3, 16, 16), np.float32)] * 4}))
    digest, size = digest_file(model), model.stat().st_size
    candidate = Candidate(Artifact(digest, size, "onnx", (FileEntry(model.name, digest, size),)), "onnxruntime", {"threads": 1})
    both = (Contender("a", candidate), Contender("control", candidate))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for scenario in (
        Scenario("paced", 200.0),
        Scenario("offline", batch_sizes=(1, 4)),
        Scenario("sustained", duration_ns=10**8),
        Scenario("server", 500.0),
    ):
        work = LatencyWork(both, scenario, "", (0,), bursts=3)
        measured = measure_latency(work, 0, {"a": model, "control": model}, inputs, Limits(), Site(scratch, lock=tmp_path / "lock"))
        assert isinstance(measured.outcome, LatencyResult)
        with np.load(measured.blobs["samples"]) as archive:
            assert ("control.batch" in archive.files) == (scenario.kind == "offline")
            for contender in measured.outcome.contenders:
                assert contender.failure is None
                whole = archive[contender.key]
                if scenario.kind == "offline":
                    assert set(archive[f"{contender.key}.batch"].tolist()) == {1, 4}
                else:
                    assert contender.n + contender.left_out + contender.unsettled == len(whole)
                assert archive[f"{contender.key}.disturbed"].sum() == contender.disturbed


def test_batches_are_compared_and_the_best_counts(model: Path) -> None:
    found = report(model, "--scenario", "offline", "--batch-sizes", "1,8", "--launches", "2")
    assert [(b["batch_size"], b["unavailable"]) for b in found["batches"]] == [(1, ""), (8, "")]
    assert found["scenario"] == {"kind": "offline", "batch_sizes": [1, 8]}
    best = max(b["samples_per_s"] for b in found["batches"])
    assert found["throughput_per_s"]["value"] == pytest.approx(best, rel=0.2)  # launches may differ in their best
    assert "  batch 8: " in found["summary"]


def test_a_fixed_batch_says_why(tmp_path: Path) -> None:
    found = report(zoo.stateful(tmp_path), "--scenario", "offline", "--batch-sizes", "1,2", "--launches", "2")
    assert found["batches"][1]["samples_per_s"] is None
    assert found["batches"][1]["unavailable"] == "input 'x' takes batches of 1, no others"
    assert found["batches"][0]["samples_per_s"] > 0


def test_a_sustained_load_tells_its_regimes(model: Path) -> None:
    found = report(model, "--scenario", "sustained", "--duration", "0.3", "--launches", "2")
    assert found["scenario"] == {"kind": "sustained", "duration_s": 0.3}
    assert sum(found["regimes"].values()) == 2
    assert found["latency_ns"]["p99"] is not None


def test_a_server_that_can_not_keep_up_says_so_and_gives_no_latency(model: Path) -> None:
    found = report(model, "--scenario", "server", "--rate", "900000", "--duration", "0.2", "--launches", "2")
    assert found["latency_ns"]["p50"] is None
    assert "900000 requests per second came" in found["unavailable"]["latency_ns"]
    assert found["throughput_per_s"]["value"] < 900000
    assert "overloaded" in found["summary"]


def test_percentiles_are_given_where_the_count_carries_them(model: Path) -> None:
    found = report(model, "--scenario", "server", "--rate", "100", "--duration", "0.2", "--launches", "2")
    assert found["latency_ns"]["n"] < 64
    assert found["latency_ns"]["p50"] is not None
    assert (found["latency_ns"]["p90"], found["latency_ns"]["p99"]) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--scenario", "swarm"], "--scenario swarm: unknown; known are paced, offline, sustained, server"),
        (["--scenario", "server"], "--scenario server needs --rate"),
        (["--rate", "-3"], "--rate -3.0: must be above 0"),
        (["--batch-sizes", "2"], "--batch-sizes does not go with --scenario paced, only with offline"),
        (["--duration", "2", "--scenario", "offline"], "--duration does not go with --scenario offline"),
        (["--batch-sizes", "0,2", "--scenario", "offline"], "--batch-sizes [0, 2]: must be above 0"),
        (["--batch-sizes", "a", "--scenario", "offline"], "expected whole numbers"),
        (["--loadgen"], "--loadgen needs --out DIR"),
        (["--loadgen", "--out", "x", "--rate", "5"], "--loadgen knows paced without --rate"),
        (["--loadgen", "--out", "x", "--scenario", "sustained"], "--loadgen knows paced without --rate"),
        (["--loadgen", "--out", "x", "--scenario", "server", "--rate", "5"], "needs --target-latency-ms"),
        (["--loadgen", "--out", "x", "--scenario", "offline", "--batch-sizes", "1,2"], "--loadgen takes one batch size"),
    ],
)
def test_what_a_user_can_do_wrong(model: Path, arguments: list[str], said: str) -> None:
    done = bench(model, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("mlperf_loadgen") is None, reason="needs: pip install 'edgefarm[loadgen]'")
@pytest.mark.parametrize(
    ("scenario", "named"),
    [
        (["paced"], "SingleStream"),
        (["offline", "--batch-sizes", "4"], "Offline"),
        (["server", "--rate", "100", "--target-latency-ms", "10000"], "Server"),
    ],
)
def test_the_real_loadgen_judges_the_same_runner(model: Path, tmp_path: Path, scenario: list[str], named: str) -> None:
    out = tmp_path / "logs"
    found = report(model, "--loadgen", "--out", str(out), "--duration", "0.3", "--scenario", *scenario)
    assert (found["result"], found["reasons"]) == ("VALID", [])
    assert f"Scenario : {named}" in (out / "mlperf_log_summary.txt").read_text()
    assert (out / "mlperf_log_detail.txt").stat().st_size > 0
    assert "VALID" in found["summary"]
    if named != "Offline":
        assert found["numbers"]["p50_ns"] > 0

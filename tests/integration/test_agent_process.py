"""The whole agent as a process, measuring a real model for a controller over a real socket."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.probe import emulation
from edgefarm.digest import digest_file
from edgefarm.model import (
    AccuracyResult,
    AccuracyWork,
    Artifact,
    Attempt,
    AttemptId,
    Candidate,
    Contender,
    Deployment,
    DeploymentState,
    DeploymentStatus,
    FileEntry,
    Golden,
    Heartbeat,
    Hello,
    LatencyResult,
    LatencyWork,
    MemoryResult,
    MemoryWork,
    Order,
    OrderEnded,
    Probed,
    Scenario,
)
from edgefarm.tensors import pack
from tests.fakes.controller import FakeController
from tests.integration.agent_process import AgentProcess

MODEL = Path(__file__).parents[2] / "agent" / "runtimes" / "probe.onnx"  # x: float32[2, 2] -> y = x @ x + 1
DIGEST, SIZE = digest_file(MODEL), MODEL.stat().st_size
CANDIDATE = Candidate(Artifact(DIGEST, SIZE, "onnx", (FileEntry("net.onnx", DIGEST, SIZE),)), "onnxruntime", {"threads": 1})
CONTENDER = Contender(CANDIDATE.key, CANDIDATE)
X = np.arange(4, dtype=np.float32).reshape(2, 2)


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[FakeController]:
    with FakeController(tmp_path) as made:
        made.put(MODEL.read_bytes())
        made.put(pack({"x": [X, X + 1]}))
        yield made


def inputs(farm: FakeController) -> str:
    return next(d for d in farm.blobs if d != DIGEST)


def started(farm: FakeController, folder: Path, *arguments: str, **how: str) -> AgentProcess:
    """An agent that need not try what else is installed."""
    return AgentProcess(farm.address, folder / "dev", "--runtimes", "onnxruntime", *arguments, **how)


def latency(farm: FakeController, order: str, launches: int, burst_ns: int = 1_000_000) -> Order:
    work = LatencyWork((CONTENDER,), Scenario(), inputs(farm), tuple(range(launches)), bursts=2, burst_ns=burst_ns, warmup_ns=1_000_000)
    return Order(order, "run", "net", "class", work)


def golden_of(farm: FakeController, wrong: bool = False) -> Golden:
    return Golden(farm.put(pack({"input:x": [X], "output:y": [X @ X + 1 + wrong]})), 1e-3, 1e-3)


def test_measures_and_activates(farm: FakeController, tmp_path: Path) -> None:
    with AgentProcess(farm.address, tmp_path / "dev", "--label", "room=lab") as agent:
        (hello,) = farm.wait(Hello)
        assert (hello.device.name, hello.device.threads, hello.device.labels["room"]) == ("dev", 1, "lab")
        device = farm.wait(Probed)[0].device
        assert any(c.available and (c.runtime, c.provider) == ("onnxruntime", "CPUExecutionProvider") for c in device.capabilities)
        assert device.id == hello.device.id
        farm.send(latency(farm, "l", 2))
        farm.send(Order("m", "run", "net", "class", MemoryWork(CONTENDER, inputs(farm), 2)))
        farm.send(Order("a", "run", "net", "class", AccuracyWork(CONTENDER, (inputs(farm),))))
        farm.wait(OrderEnded, 3)
        outcomes = {(a.order, a.index): a.outcome for a in farm.of(Attempt)}
        assert {k: type(o) for k, o in outcomes.items()} == {
            ("l", 0): LatencyResult, ("l", 1): LatencyResult, ("m", 0): MemoryResult, ("a", 0): AccuracyResult,
        }  # fmt: skip
        accuracy = outcomes["a", 0]
        assert isinstance(accuracy, AccuracyResult)
        assert {accuracy.outputs, accuracy.golden} <= set(farm.blobs)
        golden = Golden(accuracy.golden, 1e-3, 1e-3)
        farm.send(Deployment("d1", "dev", "net", 1, "v", CANDIDATE, golden=golden))
        committed = farm.wait(DeploymentStatus, matching=lambda s: s.state is DeploymentState.COMMITTED)[0]
        assert Path(committed.path).read_bytes() == MODEL.read_bytes()
        farm.send(Deployment("d2", "dev", "net", 2, "v", CANDIDATE, golden=golden_of(farm, wrong=True)))
        failed = farm.wait(DeploymentStatus, matching=lambda s: s.state is DeploymentState.FAILED)[0]
        assert failed.reason.startswith("numeric")
        assert Path(committed.path).read_bytes() == MODEL.read_bytes()
        farm.wait(Heartbeat, 3)
        assert agent.terminate() == 0
    assert list((tmp_path / "dev" / "journal").iterdir()) == []
    assert list((tmp_path / "dev" / "scratch").iterdir()) == []


def test_the_idle_supervisor_has_neither_numpy_nor_a_runtime(farm: FakeController, tmp_path: Path) -> None:
    with started(farm, tmp_path) as agent:
        farm.wait(Probed)
        maps = Path(f"/proc/{agent.process.pid}/maps").read_text()
        assert "cygrpc" in maps
        assert "numpy" not in maps
        assert "onnxruntime" not in maps
        assert agent.terminate() == 0
    code = "import sys, agent.cli, agent.supervisor, agent.offline; print([m for m in sys.modules if m.split('.')[0] in sys.argv[1:]])"
    heavy = ["numpy", "onnxruntime", "onnx", "torch", "pydantic", "typer", "sqlalchemy", "prometheus_client", "controller", "optimizer"]
    seen = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, timeout=60)
    assert seen.stdout.strip() == "[]", seen.stderr


def test_the_idle_supervisor_has_nothing_of_what_only_measuring_needs(farm: FakeController, tmp_path: Path) -> None:
    """It may idle for months on a board with little memory; the benchmark of its footprint says what that is worth."""
    with started(farm, tmp_path) as agent:
        farm.wait(Probed)
        maps = Path(f"/proc/{agent.process.pid}/maps").read_text()
        assert agent.terminate() == 0
    assert "_socket" in maps, "this Python has its modules built in: nothing is seen here"
    assert not [name for name in ("_decimal", "_statistics") if name in maps]
    code = "import sys, agent.cli, agent.supervisor; print([m for m in sys.argv[1:] if m in sys.modules])"
    needless = ["statistics", "decimal", "fractions", "edgefarm.statistics", "edgefarm.energy", "agent.offline"]
    needless += [f"agent.bench.{name}" for name in ("session", "latency", "energy", "memory", "passes", "profile", "conditions")]
    seen = subprocess.run([sys.executable, "-c", code, *needless], capture_output=True, text=True, timeout=60)
    assert seen.stdout.strip() == "[]", seen.stderr


def test_killed_in_the_middle_of_a_round_it_loses_nothing_and_repeats_nothing(farm: FakeController, tmp_path: Path) -> None:
    farm.acknowledge = False
    with started(farm, tmp_path) as agent:
        farm.wait(Probed)
        farm.send(latency(farm, "o", 40, burst_ns=20_000_000))
        farm.wait(Attempt, 2)
        children = psutil.Process(agent.process.pid).children(recursive=True)
        agent.process.send_signal(signal.SIGKILL)
        agent.wait()
    assert not psutil.wait_procs(children, timeout=20)[1]  # no runner is left behind
    before = {(a.order, a.index) for a in farm.of(Attempt)}
    farm.acknowledge = True
    with started(farm, tmp_path, secret="5ec4e7") as again:
        hello = farm.wait(Hello, 2)[1]
        held = {(a.order, a.index) for a in hello.unacknowledged}
        assert before <= held
        assert hello.device.id == farm.of(Hello)[0].device.id
        assert hello.instance != farm.of(Hello)[0].instance
        assert hello.probed
        farm.received.clear()
        last = len(held) + 1
        farm.send(latency(farm, "o", last + 1, burst_ns=1_000_000))
        farm.wait(OrderEnded)
        indices = [a.index for a in farm.of(Attempt)]
        assert sorted(indices) == list(range(last + 1))
        assert AttemptId("o", last) not in hello.unacknowledged
        assert again.terminate() == 0


@pytest.mark.parametrize("how", ["terminate", "parent"])
def test_it_stops_at_once_and_takes_its_runner_with_it(farm: FakeController, tmp_path: Path, how: str) -> None:
    with started(farm, tmp_path) as agent:
        farm.wait(Probed)
        farm.send(latency(farm, "o", 1, burst_ns=20_000_000_000))
        farm.wait(Heartbeat, matching=lambda b: b.order == "o")
        process = psutil.Process(agent.process.pid)
        while not (children := process.children(recursive=True)):
            farm.wait(Heartbeat, len(farm.of(Heartbeat)) + 1)
        if how == "terminate":
            agent.process.send_signal(signal.SIGTERM)
        else:
            agent.close_pipe()
        assert agent.wait() == 0
        assert not psutil.wait_procs(children, timeout=20)[1]
    assert farm.of(Attempt) == []


def test_a_wrong_secret_ends_it_with_the_reason(farm: FakeController, tmp_path: Path) -> None:
    with started(farm, tmp_path, secret="00ff") as agent:
        assert agent.wait() == 2
        assert "does not accept this device's secret" in agent.output
        assert "Traceback" not in agent.output


def test_it_ends_with_a_message_when_it_can_work_no_more(farm: FakeController, tmp_path: Path) -> None:
    with started(farm, tmp_path) as agent:
        farm.wait(Probed)
        (tmp_path / "dev" / "models").rename(tmp_path / "elsewhere")
        assert agent.wait() == 6
        assert "/models: No such file or directory" in agent.output
        assert "Traceback" not in agent.output


def test_one_agent_per_state_folder(farm: FakeController, tmp_path: Path) -> None:
    with started(farm, tmp_path):
        farm.wait(Hello)
        status = cli("status", "--state", str(tmp_path / "dev"), "--json")
        assert json.loads(status.stdout)["running"] is True
        (tmp_path / "second.log").touch()
        with started(farm, tmp_path, name="second") as second:
            assert second.wait() == 2
            assert "another agent uses this state folder" in second.output


def test_metrics_page(farm: FakeController, tmp_path: Path) -> None:
    with started(farm, tmp_path, "--metrics", "127.0.0.1:0"):
        device = farm.wait(Probed)[0].device
        farm.send(latency(farm, "o", 1))
        farm.send(Order("m", "run", "net", "class", MemoryWork(CONTENDER, inputs(farm), 2)))
        farm.wait(OrderEnded, 2)
        farm.send(Deployment("d1", "dev", "net", 1, "v", CANDIDATE, golden=golden_of(farm)))
        farm.wait(DeploymentStatus, matching=lambda s: s.state is DeploymentState.COMMITTED)
        with urllib.request.urlopen(device.metrics_address, timeout=20) as reply:
            families = {f.name: f for f in text_string_to_metric_families(reply.read().decode())}
    assert all(s.labels["device"] == "dev" for f in families.values() for s in f.samples)
    assert all(f.documentation for f in families.values())
    assert {s.labels["outcome"]: s.value for s in families["edgefarm_trials"].samples if s.value} == {"ok": 2}
    assert {s.labels["direction"] for s in families["edgefarm_artifact_transfer_bytes"].samples} == {"fetch", "push"}
    collectors = {s.labels["collector"]: s.value for s in families["edgefarm_collector_success"].samples}
    assert collectors["cpu"] == collectors["memory"] == 1
    (runs,) = families["edgefarm_deployment_info"].samples
    assert runs.labels == {
        "device": "dev", "model": "net", "variant": "v", "runtime": "onnxruntime", "digest": DIGEST, "generation": "1",
    }  # fmt: skip
    outcomes = {a.order: a.outcome for a in farm.of(Attempt)}
    assert isinstance(outcomes["o"], LatencyResult)
    assert isinstance(outcomes["m"], MemoryResult)
    latencies = {s.labels["stat"]: s.value for s in families["edgefarm_trial_latency_seconds"].samples}
    assert latencies["p50"] == pytest.approx(outcomes["o"].contenders[0].p50_ns / 1e9)
    (memory,) = families["edgefarm_trial_memory_bytes"].samples
    assert (memory.labels["model"], memory.value) == ("net", outcomes["m"].peak_rss_bytes)
    assert families["edgefarm_disk_free_bytes"].samples[0].value > 0
    assert "edgefarm_build_info" in families


def test_a_metrics_port_in_use(farm: FakeController, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with started(farm, tmp_path, "--metrics", address) as agent:
            assert agent.wait() == 2
            assert f"--metrics {address}: Address already in use" in agent.output


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "agent.cli", *arguments], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["pause", "--state", "{state}/none"], 2, "no agent has run with this state folder"),
        (["run", "--controller", "farm.example:7443", "--name", "x", "--state", "{state}"], 2, "has not enrolled"),
        (["run", "--config", "{state}/agent.toml"], 2, "agent.toml: No such file"),
        (["run", "--state", "{state}"], 2, "has not enrolled"),
        (["run", "--controller", "unix:/x", "--name", "x", "--threads", "0"], 2, "--threads 0"),
        (["probe", "--runtimes", "onnx"], 2, "runtimes onnx: unknown"),
        (["run", "--controller", "unix:/x", "--name", "x", "--runtimes", "onnx"], 2, "runtimes onnx: unknown; known are onnxruntime"),
        (["run", "--controller", "unix:/x", "--name", "x", "--metrics", "9090", "--state", "{state}"], 2, "expected HOST:PORT"),
        (["run", "--controller", "unix:/x", "--name", "x", "--state", "/proc/no"], 6, "needs a writable state folder"),
        (["run", "--controller", "unix:/x", "--name", "x", "--secret-fd", "77"], 2, "--secret-fd 77"),
        (["run", "--unknown"], 2, "--unknown"),
        (["bench", "missing.onnx"], 2, "missing.onnx: no such file"),
        (["bench", __file__], 2, "no runtime opens .py"),
        (["bench", str(MODEL), "--runtime", "onnx"], 2, "--runtime onnx: unknown"),
        (["bench", str(MODEL), "--launches", "0"], 2, "--launches 0"),
        (["bench", str(MODEL), "--inputs", "missing.npz"], 2, "missing.npz: no such file"),
        (["bench", str(MODEL), "--option", "no_such=1"], 2, "no_such"),
        (["status", "--state", "{state}"], 2, "no agent has run"),
        (["rollback", "--state", "{state}"], 2, "nothing was ever deployed"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_a_user_can_do_wrong(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    ended = cli(*(a.format(state=tmp_path) for a in arguments))
    assert (ended.returncode, ended.stdout) == (code, "")
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_state_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "device.json").write_text('{"id": "x"}')
    (tmp_path / "journal" / "x.attempt").mkdir(parents=True)
    ended = cli("status", "--state", str(tmp_path))
    assert ended.stderr == f"edge-agent: {tmp_path}/journal/x.attempt: Is a directory\n"
    assert (ended.returncode, ended.stdout) == (6, "")


def test_bench_offline(tmp_path: Path) -> None:
    lock = ["--measure-lock", str(tmp_path / "lock")]
    report = json.loads(cli("bench", str(MODEL), "--threads", "1", "--launches", "2", "--json", *lock).stdout)
    assert report["inputs"] == "random values"
    assert report["launches"] == 2
    low, high = report["latency_ns"]["p50"]["ci95"]
    assert low <= report["latency_ns"]["p50"]["value"] <= high
    shard = tmp_path / "inputs.npz"
    shard.write_bytes(pack({"x": [X]}))
    text = cli("bench", str(MODEL), "--threads", "1", "--launches", "1", "--inputs", str(shard), *lock)
    assert f"fed with {shard}" in text.stdout


def test_bench_runs_no_code_that_lies_beside_a_model(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('planted')")
    shutil.copy(MODEL, tmp_path / "net.onnx")
    arguments = ["bench", "net.onnx", "--threads", "1", "--launches", "1", "--measure-lock", str(tmp_path / "lock")]
    ended = subprocess.run([sys.executable, "-m", "agent.cli", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, "net.onnx: " in ended.stdout) == (0, True), ended.stderr


def test_probe_tells_what_runs() -> None:
    found = json.loads(cli("probe", "--json", "--threads", "1").stdout)
    assert {"runtime": "onnxruntime", "available": True}.items() <= found["capabilities"][0].items()
    assert found["fingerprint"]["threads"] == "1"
    assert found["emulated"] == bool(emulation())
    shown = cli("probe", "--runtimes", "onnxruntime").stdout
    assert "yes  onnxruntime" in shown
    assert f"emulated       {emulation() or 'no'}" in shown
    assert f"memory         {found['runner_limits']['memory']}" in shown


def test_rollback_and_status_while_the_agent_runs(farm: FakeController, tmp_path: Path) -> None:
    state = str(tmp_path / "dev")
    with started(farm, tmp_path):
        farm.wait(Probed)
        other = Candidate(CANDIDATE.artifact, "onnxruntime", {"threads": 1, "graph_optimization_level": "basic"})
        for generation, candidate in ((1, CANDIDATE), (2, other)):
            farm.send(Deployment(f"d{generation}", "dev", "net", generation, "v", candidate, golden=golden_of(farm)))
        farm.wait(DeploymentStatus, 2, matching=lambda s: s.state is DeploymentState.COMMITTED)
        ended = cli("rollback", "--state", state)
        assert (ended.returncode, ended.stderr) == (0, "")
        assert "net: back to generation 1" in ended.stdout
        rolled = farm.wait(DeploymentStatus, matching=lambda s: s.state is DeploymentState.ROLLED_BACK)[0]
        assert rolled.id == "d2"
        deployments = json.loads(cli("status", "--state", state, "--json").stdout)["deployments"]
        assert [(d["id"], d["state"]) for d in deployments] == [("d2", "rolled_back"), ("d1", "committed")]
        assert cli("rollback", "--state", state).returncode == 2
    assert os.readlink(tmp_path / "dev" / "models" / "net" / "current") in ("a", "b")

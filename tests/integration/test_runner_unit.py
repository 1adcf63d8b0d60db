"""Runners that a service manager starts: the same answers as from a child, the same failures, nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from agent import probe
from agent.bench.golden import check_golden
from agent.bench.latency import measure_latency
from agent.bench.memory import measure_memory
from agent.bench.passes import measure_accuracy
from agent.bench.profile import measure_profile
from agent.bench.site import Site
from agent.runner.process import Cancelled, RunnerFailed, RunnerProcess
from agent.runner.unit import isolation
from edgefarm.errors import Unreachable
from edgefarm.model import (
    AccuracyResult,
    AccuracyWork,
    Artifact,
    Candidate,
    Contender,
    FailureKind,
    FileEntry,
    Golden,
    LatencyResult,
    LatencyWork,
    Limits,
    MemoryResult,
    MemoryWork,
    ProfileResult,
    ProfileWork,
    Scenario,
    Stage,
)
from edgefarm.tensors import pack
from tests import zoo
from tests.fakes.service_manager import FakeServiceManager

S = 10**9
_DO = "import ctypes, os, signal, sys, time\nfrom agent.runner import requests\n"
# A runner whose request `probe` does something bad.
_BAD = _DO + "def bad(self, runtime):\n    {deed}\nrequests.Bench.probe = bad\nfrom agent.runner import child\nchild.main()"

# A warden that starts such a runner instead of the real one.
_WARDEN = """
import agent.runner.warden as warden, subprocess
real = subprocess.Popen
subprocess.Popen = lambda command, **how: real([command[0], {bad!r}, command[-1]], **how)
warden.main()
"""


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[FakeServiceManager]:
    folder = tmp_path / "manager"
    folder.mkdir()
    with FakeServiceManager(folder) as running:
        yield running


@pytest.fixture
def place(tmp_path: Path, manager: FakeServiceManager) -> Site:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return Site(scratch, threads=1, lock=tmp_path / "lock", unit_socket=manager.path)


def _contender(path: Path, key: str = "a") -> Contender:
    files = tuple(FileEntry(str(p.relative_to(path.parent)), "sha256:0", p.stat().st_size) for p in path.parent.rglob("*") if p.is_file())
    return Contender(key, Candidate(Artifact("sha256:0", path.stat().st_size, "onnx", files), "onnxruntime", {}))


def _model(name: str, folder: Path) -> Path:
    folder.mkdir()
    return {**zoo.MODELS, **zoo.BROKEN}[name](folder)


def _ended(manager: FakeServiceManager) -> None:
    """Waits until no unit is left."""
    for unit in manager.units:
        unit.wait(20)


@pytest.mark.parametrize("name", ["dense", "external_data", "external_data_below", "several_inputs", "stateful"])
def test_a_model_is_measured_whole(name: str, tmp_path: Path, place: Site, manager: FakeServiceManager) -> None:
    path = _model(name, tmp_path / "model")
    shard = zoo.write_shard(tmp_path / "inputs.npz", path)
    contender = _contender(path)
    work = LatencyWork((contender,), Scenario(), "", (0,), bursts=2, burst_ns=1_000_000, warmup_ns=3_000_000)
    outcome = measure_latency(work, 0, {"a": path}, shard, Limits(), place).outcome
    assert isinstance(outcome, LatencyResult)
    assert outcome.contenders[0].failure is None
    assert outcome.contenders[0].n >= 6
    memory = measure_memory(MemoryWork(contender, ""), path, shard, Limits(), place).outcome
    assert isinstance(memory, MemoryResult)
    assert memory.peak_rss_bytes >= memory.private_bytes > memory.reference_private_bytes > 0
    profile = measure_profile(ProfileWork(contender, "", 3), path, shard, Limits(), place).outcome
    assert isinstance(profile, ProfileResult)
    assert profile.operators
    assert len(manager.units) >= 2
    _ended(manager)


def test_mapped_weights_are_told_through_handed_files(tmp_path: Path, place: Site) -> None:
    pytest.importorskip("ai_edge_litert")
    from tests import zoo_tflite

    (tmp_path / "model").mkdir()
    path = zoo_tflite.dense(tmp_path / "model", width=2**12)
    shard = tmp_path / "inputs.npz"
    shard.write_bytes(pack(zoo_tflite.samples(path)))
    contender = _contender(path)
    contender = replace(contender, candidate=replace(contender.candidate, runtime="tflite"))
    for site in (place, replace(place, unit_socket=None)):
        memory = measure_memory(MemoryWork(contender, ""), path, shard, Limits(), site).outcome
        assert isinstance(memory, MemoryResult)
        assert memory.model_file_bytes > 0


def test_outputs_are_the_same_bytes_as_from_a_child(tmp_path: Path, place: Site, manager: FakeServiceManager) -> None:
    path = _model("dense", tmp_path / "model")
    shards = [zoo.write_shard(tmp_path / f"inputs-{i}.npz", path) for i in range(2)]
    contender = _contender(path)
    work = AccuracyWork(contender, ("", ""), golden_samples=3)
    found = [measure_accuracy(work, path, shards, Limits(), site) for site in (place, replace(place, unit_socket=None))]
    assert [m.outcome for m in found] == [AccuracyResult("a", "", "", 8)] * 2
    for role in ("outputs", "golden"):
        assert found[0].blobs[role].read_bytes() == found[1].blobs[role].read_bytes()
    assert check_golden(contender.candidate, path, found[0].blobs["golden"], Golden("", 1e-5, 1e-6), Limits(), place) is None
    assert len(manager.units) == 2


def test_more_files_than_one_message_takes(tmp_path: Path, place: Site) -> None:
    path = _model("dense", tmp_path / "model")
    first = zoo.write_shard(tmp_path / "0.npz", path)
    shards = [first, *(tmp_path / f"{i}.npz" for i in range(1, 450))]
    for shard in shards[1:]:
        os.link(first, shard)
    measured = measure_accuracy(AccuracyWork(_contender(path), ("",) * 450), path, shards, Limits(), place)
    assert measured.outcome == AccuracyResult("a", "", "", 1800)


def test_a_failure_names_the_file_of_the_device(tmp_path: Path, manager: FakeServiceManager) -> None:
    path = _model("truncated", tmp_path / "model")
    load = {"do": "load", "key": "a", "path": str(path), "runtime": "onnxruntime", "options": {"threads": 1}, "io": None}
    with RunnerProcess(Limits(), tmp_path, unit_socket=manager.path) as runner, pytest.raises(RunnerFailed) as caught:
        runner.call(load, 20 * S, Stage.LOAD)
    assert caught.value.failure.kind is FailureKind.LOAD
    assert f" {path} " in caught.value.failure.detail
    assert str(manager.path.parent) not in caught.value.failure.detail


@pytest.mark.parametrize(
    ("deed", "kind", "detail"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", FailureKind.CRASH, "killed by SIGKILL"),
        ("print('last words', flush=True); ctypes.string_at(0)", FailureKind.CRASH, "killed by SIGSEGV; it said:\nlast words"),
        ("os._exit(3)", FailureKind.CRASH, "exited with status 3"),
        ("time.sleep(600)", FailureKind.TIMEOUT, "load: no answer within 1 s"),
        ("bytearray(1 << 40)", FailureKind.OOM, "out of memory"),
        ("x = bytearray(400 << 20); time.sleep(600)", FailureKind.OOM, "the limit is 200 MiB"),
    ],
)
def test_it_fails_as_a_child_does(deed: str, kind: FailureKind, detail: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(_BAD.format(deed=deed))
    program = _WARDEN.format(bad=str(bad))
    timeout_ns = S if kind is FailureKind.TIMEOUT else 30 * S
    with (
        FakeServiceManager(tmp_path, ("-c", program)) as manager,
        RunnerProcess(Limits(memory_bytes=200 * 2**20), tmp_path, unit_socket=manager.path) as runner,
    ):
        with pytest.raises(RunnerFailed) as caught:
            runner.call({"do": "probe", "runtime": "onnxruntime"}, timeout_ns, Stage.LOAD)
        assert caught.value.failure.kind is kind
        assert detail in caught.value.failure.detail
        runner.kill()
        assert not psutil.pid_exists(runner.pid)
        _ended(manager)


def test_the_kernel_s_word_for_want_of_memory_is_passed_on(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(_BAD.format(deed="os.kill(os.getpid(), signal.SIGKILL)"))
    events = tmp_path / "memory.events"
    events.write_text("low 0\nmax 7\noom 1\noom_kill 1\n")
    program = _WARDEN.format(bad=str(bad)).replace("warden.main()", f"warden._CGROUPS = warden.Path({str(tmp_path)!r})\n")
    program += "warden._control_group = lambda: warden.Path()\nwarden.main()"
    with (
        FakeServiceManager(tmp_path, ("-c", program)) as manager,
        RunnerProcess(Limits(), tmp_path, unit_socket=manager.path) as runner,
        pytest.raises(RunnerFailed, match="the kernel killed the runner for want of memory") as caught,
    ):
        runner.call({"do": "probe", "runtime": "onnxruntime"}, 30 * S, Stage.RUN)
    assert caught.value.failure.kind is FailureKind.OOM


def test_a_cancelled_request_ends_the_unit(tmp_path: Path, manager: FakeServiceManager) -> None:
    with RunnerProcess(Limits(), tmp_path, unit_socket=manager.path, cancelled=lambda: True) as runner, pytest.raises(Cancelled):
        runner.call({"do": "probe", "runtime": "onnxruntime"}, 30 * S, Stage.LOAD)
    assert not psutil.pid_exists(runner.pid)


def test_a_unit_ends_with_its_agent(tmp_path: Path, manager: FakeServiceManager) -> None:
    program = f"""
import time
from pathlib import Path
from agent.runner.process import RunnerProcess
from edgefarm.model import Limits
runner = RunnerProcess(Limits(), Path({str(tmp_path)!r}), unit_socket=Path({str(manager.path)!r}))
print(runner.pid, flush=True)
time.sleep(600)
"""
    agent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None
    pid = int(agent.stdout.readline())
    assert psutil.pid_exists(pid)
    agent.kill()
    agent.communicate()
    _ended(manager)
    assert not psutil.pid_exists(pid)


def test_a_unit_that_is_killed_whole_is_a_crash(tmp_path: Path, manager: FakeServiceManager) -> None:
    with RunnerProcess(Limits(), tmp_path, unit_socket=manager.path) as runner:
        os.kill(manager.units[0].pid, signal.SIGKILL)
        with pytest.raises(RunnerFailed, match="killed by SIGKILL") as caught:
            runner.call({"do": "probe", "runtime": "onnxruntime"}, 30 * S, Stage.LOAD)
    assert caught.value.failure.kind is FailureKind.CRASH


def test_a_runner_that_died_before_it_is_handed_a_file_is_a_crash(tmp_path: Path, manager: FakeServiceManager) -> None:
    path = _model("dense", tmp_path / "model")
    load = {"do": "load", "key": "a", "path": str(path), "runtime": "onnxruntime", "options": {"threads": 1}, "io": None}
    with RunnerProcess(Limits(), tmp_path, unit_socket=manager.path) as runner:
        runner.call({"do": "import", "runtime": "onnxruntime"}, 30 * S, Stage.LOAD)
        os.kill(runner.pid, signal.SIGSEGV)
        psutil.Process(manager.units[0].pid).wait(20)
        with pytest.raises(RunnerFailed, match="killed by SIGSEGV") as caught:
            runner.call(load, 30 * S, Stage.LOAD)
    assert caught.value.failure.kind is FailureKind.CRASH


@pytest.mark.parametrize("command", ["pass", "import sys; sys.exit(1)", "import os; os.write(3, b'{}\\n')"])
def test_a_unit_that_does_not_start_is_no_failure_of_the_model(command: str, tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with (
        FakeServiceManager(tmp_path, ("-c", command)) as manager,
        pytest.raises(Unreachable, match=r"runner\.sock: .*; see `systemctl status"),
    ):
        RunnerProcess(Limits(), tmp_path, unit_socket=manager.path)
    assert set(os.listdir("/proc/self/fd")) <= before


def test_where_nobody_listens_it_says_what_to_look_at(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"absent\.sock: No such file or directory; see `systemctl status edge-runner\.socket`"):
        RunnerProcess(Limits(), tmp_path, unit_socket=tmp_path / "absent.sock")


def test_the_probe_proves_in_a_unit_and_tells_what_surrounds_it(manager: FakeServiceManager) -> None:
    found = probe.probe_capabilities(["onnxruntime"], unit_socket=manager.path)
    assert [c.available for c in found if c.runtime == "onnxruntime"] == [True]
    assert len(manager.units) > 1
    told = isolation(manager.path)
    assert told["user"] == f"uid {os.getuid()}"
    assert "lo" in told["interfaces"]
    assert set(told) == {"unit", "user", "interfaces", "memory_max", "tasks_max"}

"""Models that do harm, each measured by the real bench in real runners: a typed failure, nothing left behind, and the next one works."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from agent.bench import session
from agent.bench.latency import measure_latency
from agent.bench.passes import measure_accuracy
from agent.bench.site import Measured, Site
from agent.runner import confine
from agent.runner import limits as limiting
from agent.runner.process import RunnerProcess
from edgefarm.model import (
    AccuracyWork,
    Artifact,
    Candidate,
    Contender,
    Failure,
    FailureKind,
    FileEntry,
    LatencyResult,
    LatencyWork,
    Limits,
    Scenario,
    Stage,
)
from edgefarm.tensors import pack
from tests import hostile, zoo
from tests.fakes import hostile_runtime

S = 10**9
MIB = 2**20
_ROOT = Path(__file__).resolve().parents[2]
_LIMITS = Limits(load_ns=60 * S, run_ns=60 * S)
_IMPATIENT = Limits(load_ns=3 * S, run_ns=2 * S)
_CONFINED = all(not how.startswith("not enforced") for how in confine.in_force().values())


class Bench:
    """Measures in runners that have the hostile runtime too; remembers their process ids."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.pids = folder, []  # type: tuple[Path, list[int]]
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.site = Site(self.scratch, threads=1, lock=folder / "lock", environment={"PYTHONPATH": str(_ROOT)})
        start = functools.partial(RunnerProcess, command=("-m", "tests.fakes.hostile_runtime"))

        def runner(*positional: object, **named: object) -> RunnerProcess:
            process = start(*positional, **named)  # type: ignore[arg-type]
            self.pids.append(process.pid)
            return process

        monkeypatch.setattr(session, "RunnerProcess", runner)

    def measure(self, runtime: str, path: Path, inputs: Path, limits: Limits = _LIMITS) -> Measured:
        """One short launch of the model alone."""
        work = LatencyWork((Contender("a", _candidate(runtime, path)),), Scenario(), "", (0,), bursts=1, burst_ns=10**6, warmup_ns=10**6)
        return measure_latency(work, 0, {"a": path}, inputs, limits, self.site)

    def failure(self, runtime: str, path: Path, inputs: Path, limits: Limits = _LIMITS) -> Failure | None:
        """Why it failed; None if it did not."""
        outcome = self.measure(runtime, path, inputs, limits).outcome
        assert isinstance(outcome, LatencyResult)
        return outcome.contenders[0].failure


def _candidate(runtime: str, path: Path) -> Candidate:
    digest = "sha256:" + "0" * 64
    return Candidate(Artifact(digest, path.stat().st_size, path.suffix[1:], (FileEntry(path.name, digest, path.stat().st_size),)), runtime)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Afterwards a good model is measured in the same supervisor, which has lost nothing and kept nothing."""
    made = Bench(tmp_path, monkeypatch)
    before = _possessions()
    yield made
    assert _possessions() == before
    assert not [pid for pid in made.pids if psutil.pid_exists(pid)]
    for blob in made.scratch.glob("samples-*"):
        blob.unlink()
    assert list(made.scratch.iterdir()) == []
    (tmp_path / "good").mkdir()
    good = zoo.dense(tmp_path / "good")
    assert made.failure("onnxruntime", good, zoo.write_shard(tmp_path / "good.npz", good)) is None
    assert _possessions() == before


def _possessions() -> tuple[int, set[str], set[str], list[int]]:
    """Process id, threads, open files and children (dead ones included) of this process."""
    descriptors = {name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}
    children = [p.pid for p in psutil.Process().children(recursive=True)]
    return os.getpid(), {t.name for t in threading.enumerate()}, descriptors, children


CRASH, OOM, TIMEOUT = FailureKind.CRASH, FailureKind.OOM, FailureKind.TIMEOUT
_PERMITTED = "Operation not permitted"
# Deed of native code -> what it comes to, and what a person is told.
_DEEDS = {
    "segfault": (CRASH, "SIGSEGV"),
    "abort": (CRASH, "SIGABRT"),
    "illegal_instruction": (CRASH, "SIGILL"),
    "bus_error": (CRASH, "SIGBUS"),
    "stack_overflow": (CRASH, "SIGSEGV"),
    "leave": (CRASH, "exited with status 0"),
    "stop_itself": (TIMEOUT, "no answer within"),
    "hang_deaf": (TIMEOUT, "no answer within"),
    "hang_in_native_code": (TIMEOUT, "no answer within"),
    "change_group": (CRASH, _PERMITTED),
    "threads_bomb": (OOM, "threads"),
    "memory_bomb": (OOM, "MiB"),
    "large_file": (CRASH, "File too large"),
    "fill_disk": (OOM, "wrote"),
    "flood_output": (CRASH, "said at the end"),
    "flood_output_for_ever": (OOM, "wrote"),
    "say_garbage": (CRASH, "nonsense: not a frame"),
    "claim_a_large_frame": (CRASH, f"nonsense: frame payload of {2**60} bytes"),
    "send_half_a_frame": (TIMEOUT, "no answer within"),
    "send_without_end": (TIMEOUT, "no answer within"),
    "nest_deeply": (CRASH, "nonsense: frame header is not JSON"),
    "answer_nothing": (CRASH, "nonsense: neither an answer nor a failure"),
    "answer_zero": (CRASH, "nonsense: the answer"),
    "tell_another_failure": (CRASH, "nonsense: not a failure"),
    "answer_with_a_zip_bomb": (CRASH, "no archive of samples"),
    "close_connection": (CRASH, "closed its connection"),
}
_CONFINED_DEEDS = {
    "fork_bomb": _PERMITTED,
    "leave_a_daemon": _PERMITTED,
    "other_program": _PERMITTED,
    "open_sockets": _PERMITTED,
    "kill_supervisor": _PERMITTED,
    "signal_by_descriptor": _PERMITTED,
    "slow_supervisor": _PERMITTED,
    "limit_supervisor": _PERMITTED,
    "write_outside": "Permission denied",
    "remove_outside": "Permission denied",
    "read_outside": "Permission denied",
    "read_the_supervisor": "Permission denied",
    "open_to_all": _PERMITTED,
    "leave_shared_memory": _PERMITTED,
}


def _do(bench: Bench, deed: str, when: str, limits: Limits = _LIMITS) -> Failure:
    inputs = bench.folder / "inputs.npz"
    inputs.write_bytes(pack(hostile_runtime.sample()))
    target = bench.folder / "target"
    target.write_text("mine")
    model = hostile_runtime.write_model(bench.folder / "model/model.json", deed, when, target)
    failure = bench.failure(hostile_runtime.NAME, model, inputs, limits)
    assert target.read_text() == "mine"
    assert failure is not None
    assert failure.stage is (Stage.LOAD if when == "load" else Stage.RUN)
    assert failure.detail == failure.detail.encode("utf-8").decode()
    assert "\x1b" not in failure.detail
    return failure


@pytest.mark.parametrize("deed", _DEEDS)
def test_native_code_that_goes_wrong(deed: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, said = _DEEDS[deed]
    if kind is OOM:
        monkeypatch.setattr(limiting, "WRITTEN_BYTES", 64 * MIB)
    limits = _IMPATIENT if kind is TIMEOUT else replace(_LIMITS, memory_bytes=300 * MIB if deed == "memory_bomb" else 0)
    failure = _do(bench, deed, "run", limits)
    assert (failure.kind, said in failure.detail) == (kind, True), failure


@pytest.mark.parametrize("deed", ["segfault", "hang_deaf", "memory_bomb", "say_garbage"])
def test_native_code_that_goes_wrong_while_it_loads(deed: str, bench: Bench) -> None:
    limits = Limits(load_ns=(2 if deed == "hang_deaf" else 60) * S, memory_bytes=300 * MIB)
    assert _do(bench, deed, "load", limits).kind is _DEEDS[deed][0]


@pytest.mark.skipif(not _CONFINED, reason=f"this kernel cannot confine a runner: {confine.in_force()}")
@pytest.mark.parametrize("deed", _CONFINED_DEEDS)
def test_what_a_confined_runner_cannot_do(deed: str, bench: Bench) -> None:
    failure = _do(bench, deed, "run")
    assert failure.kind is CRASH
    assert _CONFINED_DEEDS[deed] in failure.detail


def test_what_a_model_left_in_its_folder_is_removed(bench: Bench) -> None:
    inputs = bench.folder / "inputs.npz"
    inputs.write_bytes(pack(hostile_runtime.sample()))
    model = hostile_runtime.write_model(bench.folder / "model/model.json", "deep_folders", "load", bench.folder)
    assert bench.failure(hostile_runtime.NAME, model, inputs) is None


def test_samples_are_not_written_through_a_link(bench: Bench) -> None:
    inputs, key = bench.folder / "inputs.npz", bench.folder / "key"
    inputs.write_bytes(pack(hostile_runtime.sample()))
    key.write_text("a key")
    model = hostile_runtime.write_model(bench.folder / "model/model.json", "link_samples", "load", key)
    measured = bench.measure(hostile_runtime.NAME, model, inputs)
    assert key.read_text() == "a key"
    assert isinstance(measured.outcome, LatencyResult)
    assert measured.outcome.contenders[0].failure is None
    assert measured.blobs["samples"].stat().st_size > 0


def test_a_link_is_not_taken_for_outputs(bench: Bench) -> None:
    inputs, secret = bench.folder / "inputs.npz", bench.folder / "secret"
    inputs.write_bytes(pack(hostile_runtime.sample()))
    secret.write_text("a key")
    model = hostile_runtime.write_model(bench.folder / "model/model.json", "link_outputs", "run", secret)
    work = AccuracyWork(Contender("a", _candidate(hostile_runtime.NAME, model)), ("",))
    measured = measure_accuracy(work, model, [inputs], _LIMITS, bench.site)
    assert measured.blobs == {}
    assert isinstance(measured.outcome, Failure)
    assert "left no file of its outputs" in measured.outcome.detail
    assert secret.read_text() == "a key"


@pytest.mark.parametrize("name", hostile.MODELS)
def test_a_hostile_model(name: str, bench: Bench) -> None:
    case = hostile.MODELS[name]
    folder = bench.folder / "hostile"
    folder.mkdir()
    path = case.build(folder)
    inputs = bench.folder / "inputs.npz"
    inputs.write_bytes(pack({"x": [np.ones((1, 16), np.float32)]}))
    limits = Limits(load_ns=case.load_s * S, run_ns=case.run_s * S, memory_bytes=400 * MIB)
    failure = bench.failure("onnxruntime", path, inputs, limits)
    told = "runs" if failure is None else failure.kind.value
    assert told in case.kinds, failure
    assert failure is None or case.said in failure.detail
    assert failure is None or "root:" not in failure.detail


@pytest.mark.long
def test_a_hundred_thousand_nodes(bench: Bench) -> None:
    path = hostile.many_nodes(bench.folder)
    inputs = bench.folder / "inputs.npz"
    inputs.write_bytes(pack({"x": [np.ones((1, 16), np.float32)]}))
    assert bench.failure("onnxruntime", path, inputs) is None

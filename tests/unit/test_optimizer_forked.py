"""How the process of a pass comes about and goes, forked or spawned: what it sees, how it is stopped, what if the fork server is gone."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from optimizer.forked import Forks
from optimizer.process import Child, PassReply, PassRequest, run_pass, spawn
from tests import models_optimizer as zoo

ROOT = Path(__file__).parents[2]
Start = Callable[[Path], Child]


@pytest.fixture
def forks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Forks]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with Forks(tmp_path) as made:
        yield made
    assert _servers() == []


@pytest.fixture(params=["forked", "spawned"])
def start(request: pytest.FixtureRequest, forks: Forks) -> Start:
    return forks.start if request.param == "forked" else spawn


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., PassRequest]:
    source = zoo.save(zoo.conv_net(), tmp_path / "model" / "m.onnx")

    def made(how: str, pass_name: str = "FakePass", timeout_s: float = 60.0) -> PassRequest:
        work = tmp_path / f"{pass_name}-{how}-{time.monotonic_ns()}"
        parameters = {"how": how, "mark": str(tmp_path / how)}
        path = f"tests.fake_passes:{pass_name}"
        return PassRequest(path, parameters, str(source), "", "", str(work), "", str(tmp_path / "cancel"), timeout_s)

    return made


def test_what_a_pass_sees(start: Start, ask: Callable[..., PassRequest], tmp_path: Path) -> None:
    request = ask("print", "FakeWitness")
    assert run_pass(request, start).outcome == "changed"
    seen = json.loads((tmp_path / "print").read_text())
    assert seen["session"] == seen["pid"] != os.getpid()
    assert Path(seen["folder"]) == Path(request.work_dir)
    assert seen["hash_seed"] == [0, "0"]
    assert seen["oom_score"] == 700
    assert (Path(request.work_dir) / "log").read_text() == "seen\na library that talks on standard output\n"
    assert {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"} <= seen["library_threads"].keys()
    assert set(seen["library_threads"].values()) == {"1"}
    assert seen["session_threads"] == [1, 1, 1]


def test_a_forked_pass_holds_nothing_of_others(forks: Forks, ask: Callable[..., PassRequest], tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        other = _hanging(pool, ask("hang", timeout_s=30), forks.start, tmp_path)
        request = ask("print", "FakeWitness")
        assert run_pass(request, forks.start).outcome == "changed"
        (tmp_path / "cancel").touch()
        assert other.result(30).outcome == "cancelled"
    files = json.loads((tmp_path / "print").read_text())["files"]
    assert len([name for name in files if name.startswith("socket:")]) == 1  # its own connection
    assert [name for name in files if name.endswith("/log")] == [str(Path(request.work_dir) / "log")]


@pytest.mark.parametrize("how", ["hang", "freeze"])
def test_a_pass_is_stopped_after_its_time(start: Start, ask: Callable[..., PassRequest], tmp_path: Path, how: str) -> None:
    assert run_pass(ask(how, timeout_s=0.5), start).kind == "timeout"
    assert not psutil.pid_exists(int((tmp_path / how).read_text().split()[0]))


def test_programs_that_a_pass_has_started_end_with_it(start: Start, ask: Callable[..., PassRequest], tmp_path: Path) -> None:
    assert run_pass(ask("program"), start).outcome == "unchanged"
    program = int((tmp_path / "program").read_text())
    assert _until(lambda: not psutil.pid_exists(program) or psutil.Process(program).status() == psutil.STATUS_ZOMBIE)


def test_one_server_forks_all(forks: Forks, ask: Callable[..., PassRequest], tmp_path: Path) -> None:
    parents = set()
    for _ in range(2):
        assert run_pass(ask("print", "FakeWitness"), forks.start).outcome == "changed"
        parents.add(json.loads((tmp_path / "print").read_text())["parent"])
    (server,) = _servers()
    assert parents == {server.pid}
    assert server.num_threads() == 1


@pytest.mark.parametrize("how", ["hang", "freeze"])
def test_a_killed_server_leaves_no_pass_and_is_done_without(
    forks: Forks, ask: Callable[..., PassRequest], tmp_path: Path, how: str
) -> None:
    with ThreadPoolExecutor(1) as pool:
        running = _hanging(pool, ask(how), forks.start, tmp_path)
        (server,) = _servers()
        server.kill()
        assert run_pass(ask("print", "FakeWitness"), forks.start).outcome == "changed"
        assert json.loads((tmp_path / "print").read_text())["parent"] == os.getpid()
        (tmp_path / "cancel").touch()
        assert running.result(30).outcome == "cancelled"
    pid = int((tmp_path / how).read_text().split()[0])
    assert _until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize(
    "at_start",
    ["import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()", "import sys; sys.modules['select'] = None"],
    ids=["has a thread", "does not start"],
)
def test_a_server_that_may_not_fork_is_done_without(
    ask: Callable[..., PassRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_start: str
) -> None:
    (tmp_path / "site").mkdir()
    condition = "any('fork_server' in word for word in __import__('sys').orig_argv)"
    (tmp_path / "site" / "sitecustomize.py").write_text(f"if {condition}:\n    {at_start}\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), str(ROOT)]))
    with Forks(tmp_path) as forks:
        assert run_pass(ask("print", "FakeWitness"), forks.start).outcome == "changed"
    assert json.loads((tmp_path / "print").read_text())["parent"] == os.getpid()


def test_nothing_is_started_for_nothing(tmp_path: Path) -> None:
    with Forks(tmp_path):
        assert _servers() == []
    assert list(tmp_path.iterdir()) == []


def _hanging(pool: ThreadPoolExecutor, request: PassRequest, start: Start, folder: Path) -> Future[PassReply]:
    """Runs a pass that does not end, and waits until it does not."""
    future = pool.submit(run_pass, request, start)
    mark = folder / str(request.parameters["how"])
    assert _until(lambda: mark.exists() and bool(mark.read_text()))
    return future


def _servers() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [child for child in children if sys.executable in child.cmdline() and "optimizer.fork_server" in child.cmdline()]


def _until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether another process made `condition` true in time."""
    end, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        if time.monotonic() > end:
            return False
        pause.wait(0.02)
    return True

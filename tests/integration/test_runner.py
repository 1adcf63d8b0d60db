"""Real runner processes: how they answer, how they die, and what of them is left (nothing)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from agent.runner import limits as limiting
from agent.runner.process import Cancelled, RunnerFailed, RunnerProcess, explain_exit
from edgefarm.model import FailureKind, Limits, Stage
from tests import zoo

S = 10**9
MIB = 2**20

# A child that answers the first request with ok and then, on the second, does something bad.
_CHILD = """
import json, os, signal, socket, subprocess, sys, time
from agent.runner.frames import Decoder, encode
settings = json.loads(sys.argv[1])
channel, decoder = socket.socket(fileno=settings["socket"]), Decoder()
def receive():
    while (frame := decoder.next()) is None:
        chunk = channel.recv(65536)
        if not chunk: sys.exit(0)
        decoder.feed(chunk)
    return frame
receive()
channel.sendall(encode({"ok": {"pid": os.getpid()}}))
receive()
"""
HANG = "time.sleep(600)"


def _fake(scratch: Path, deed: str, limits: Limits | None = None, **how: object) -> RunnerProcess:
    return RunnerProcess(limits or Limits(), scratch, command=("-c", _CHILD + deed), **how)  # type: ignore[arg-type]


def _failure(runner: RunnerProcess, timeout_ns: int = 20 * S) -> RunnerFailed:
    assert runner.call({}, 20 * S, Stage.LOAD).body == {"pid": runner.pid}
    with pytest.raises(RunnerFailed) as caught:
        runner.call({}, timeout_ns, Stage.RUN)
    return caught.value


def _gone(pid: int) -> bool:
    """Waits until a process that is not our child has ended."""
    try:
        psutil.Process(pid).wait(20)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGILL", "SIGBUS", "SIGKILL", "SIGTERM"])
def test_a_signal_is_named_with_the_last_words(name: str, tmp_path: Path) -> None:
    deed = f"print('last words', flush=True); signal.signal(signal.{name}, signal.SIG_DFL) if '{name}' != 'SIGKILL' else 0\n"
    with _fake(tmp_path, deed + f"os.kill(os.getpid(), signal.{name}); {HANG}") as runner:
        failure = _failure(runner).failure
        assert not runner.alive
    assert failure.kind is FailureKind.CRASH
    assert failure.stage is Stage.RUN
    assert f"killed by {name}" in failure.detail
    assert "last words" in failure.detail


def test_a_native_crash_leaves_its_stack(tmp_path: Path) -> None:
    with _fake(tmp_path, "import ctypes\ndef deep(): ctypes.string_at(0)\ndeep()") as runner:
        failure = _failure(runner).failure
    assert "SIGSEGV" in failure.detail
    assert "in deep" in failure.detail


def test_an_exit_status_is_named(tmp_path: Path) -> None:
    with _fake(tmp_path, "sys.exit(3)") as runner:
        assert "exited with status 3" in _failure(runner).failure.detail


def test_a_python_error_is_seen(tmp_path: Path) -> None:
    with _fake(tmp_path, "raise RuntimeError('broken pipe dream')") as runner:
        assert "broken pipe dream" in _failure(runner).failure.detail


def test_no_answer_in_time_names_the_phase_and_kills_the_whole_group(tmp_path: Path) -> None:
    marker = tmp_path / "grandchild"
    deed = f"p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); open({str(marker)!r}, 'w').write(str(p.pid))\n"
    with _fake(tmp_path, deed + HANG) as runner:
        failure = _failure(runner, S).failure
        assert not runner.alive
    assert failure.kind is FailureKind.TIMEOUT
    assert failure.detail == "run: no answer within 1 s"
    assert _gone(int(marker.read_text()))
    assert _gone(runner.pid)


def test_a_grandchild_that_left_the_group_and_holds_the_socket_is_found(tmp_path: Path) -> None:
    marker = tmp_path / "grandchild"
    daemon = f"if (pid := os.fork()) == 0:\n    os.setsid()\n    {HANG}\nopen({str(marker)!r}, 'w').write(str(pid))\nos._exit(0)"
    with _fake(tmp_path, daemon) as runner:
        failure = _failure(runner, 600 * S).failure
        assert not runner.alive
    assert failure.kind is FailureKind.CRASH
    assert "exited with status 0" in failure.detail
    assert _gone(int(marker.read_text()))


def test_a_grandchild_in_a_group_of_its_own_is_found_by_its_session(tmp_path: Path) -> None:
    marker = tmp_path / "grandchild"
    program = "import os, time; os.setpgid(0, 0); print(flush=True); time.sleep(600)"
    deed = f"p = subprocess.Popen([sys.executable, '-c', {program!r}], env={{}}, stdout=subprocess.PIPE); p.stdout.readline()\n"
    with _fake(tmp_path, deed + f"open({str(marker)!r}, 'w').write(str(p.pid)); sys.exit(3)") as runner:
        assert "exited with status 3" in _failure(runner).failure.detail
    assert _gone(int(marker.read_text()))


def test_who_floods_its_output_for_ever_is_still_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiting, "WRITTEN_BYTES", 2**50)
    with _fake(tmp_path, "while True: os.write(2, b'x' * 65536)") as runner:
        assert _failure(runner, S).failure.detail == "run: no answer within 1 s"


def test_who_does_not_read_is_still_timed(tmp_path: Path) -> None:
    deed = f"channel.sendall(encode({{'ok': {{}}}})); {HANG}"
    with _fake(tmp_path, deed) as runner:
        runner.call({}, 20 * S, Stage.LOAD)
        runner.call({}, 20 * S, Stage.RUN)
        with pytest.raises(RunnerFailed) as caught:
            runner.call({"large": "x" * 900_000}, S, Stage.RUN)
    assert caught.value.failure.kind is FailureKind.TIMEOUT


def test_who_closes_the_socket_and_goes_on_is_ended(tmp_path: Path) -> None:
    with _fake(tmp_path, f"channel.close(); print('hm', flush=True); {HANG}") as runner:
        failure = _failure(runner).failure
    assert failure.kind is FailureKind.CRASH
    assert "closed its connection and went on; it said:\nhm" in failure.detail


def test_an_answer_before_the_end_counts(tmp_path: Path) -> None:
    with _fake(tmp_path, "channel.sendall(encode({'ok': {'done': True}})); os._exit(0)") as runner:
        runner.call({}, 20 * S, Stage.LOAD)
        assert runner.call({}, 20 * S, Stage.RUN).body == {"done": True}
        with pytest.raises(RunnerFailed, match="exited with status 0"):
            runner.call({}, 20 * S, Stage.RUN)


def test_threads_and_written_bytes_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deed = "import threading; threading.stack_size(1 << 16)\nfor _ in range(20): threading.Thread(target=time.sleep, args=(600,)).start()\n"
    monkeypatch.setattr(limiting, "MORE_TASKS", 10)
    with _fake(tmp_path, deed + HANG) as runner:
        failure = _failure(runner).failure
    assert (failure.kind, "started 21 threads, the limit is 10" in failure.detail) == (FailureKind.OOM, True)
    monkeypatch.setattr(limiting, "WRITTEN_BYTES", 10 * MIB)
    with _fake(tmp_path, f"open('file', 'wb').write(bytes(20 << 20)); {HANG}") as runner:
        failure = _failure(runner).failure
    assert (failure.kind, "MiB to files and output, the limit is 10 MiB" in failure.detail) == (FailureKind.OOM, True)


def test_resident_memory_above_the_limit_ends_it(tmp_path: Path) -> None:
    with _fake(tmp_path, f"x = bytearray(300 << 20); {HANG}", Limits(memory_bytes=100 * MIB)) as runner:
        failure = _failure(runner).failure
    assert failure.kind is FailureKind.OOM
    assert "the limit is 100 MiB" in failure.detail


def test_more_memory_than_is_there_is_an_error_of_its_own(tmp_path: Path) -> None:
    deed = "from agent.runner import limits; limits.apply(limits.ProcessLimits(**settings['limits'])); x = bytearray(4 << 30)"
    with _fake(tmp_path, deed, Limits(memory_bytes=100 * MIB)) as runner:
        failure = _failure(runner).failure
    assert failure.kind is FailureKind.OOM
    assert "MemoryError" in failure.detail


def test_a_flood_of_output_neither_blocks_nor_is_kept(tmp_path: Path) -> None:
    deed = "sys.stderr.write('x' * (20 << 20)); print('the end', flush=True); channel.sendall(encode({'ok': {'done': True}})); receive()"
    with _fake(tmp_path, deed) as runner:
        runner.call({}, 20 * S, Stage.LOAD)
        assert runner.call({}, 20 * S, Stage.RUN).body == {"done": True}
        assert len(runner.tail) <= 16384


def test_closed_output_does_not_spin_or_end_the_call(tmp_path: Path) -> None:
    deed = "os.close(1); os.close(2); time.sleep(0.3); channel.sendall(encode({'ok': {'done': True}})); receive()"
    ticks: list[int] = []
    with _fake(tmp_path, deed, on_tick=lambda: ticks.append(1)) as runner:
        runner.call({}, 20 * S, Stage.LOAD)
        assert runner.call({}, 20 * S, Stage.RUN).body == {"done": True}
    assert ticks


def test_nonsense_is_a_crash(tmp_path: Path) -> None:
    with _fake(tmp_path, "channel.sendall(b'HTTP/1.1 200 OK, and more than a prefix'); receive()") as runner:
        failure = _failure(runner).failure
        assert not runner.alive
    assert (failure.kind, "nonsense" in failure.detail) == (FailureKind.CRASH, True)


def test_a_half_answer_is_a_crash(tmp_path: Path) -> None:
    with _fake(tmp_path, "channel.sendall(encode({'ok': {}}, b'x' * 100)[:50]); sys.exit(0)") as runner:
        assert _failure(runner).failure.kind is FailureKind.CRASH


def test_cancelling_kills_at_once(tmp_path: Path) -> None:
    cancel = threading.Event()
    with _fake(tmp_path, HANG, cancelled=cancel.is_set) as runner:
        runner.call({}, 20 * S, Stage.LOAD)
        timer = threading.Timer(0.1, cancel.set)
        timer.start()
        with pytest.raises(Cancelled):
            runner.call({}, 600 * S, Stage.RUN)
        timer.join()
        assert not runner.alive
        assert _gone(runner.pid)


def test_a_dead_runner_can_be_killed_again_and_says_so(tmp_path: Path) -> None:
    with _fake(tmp_path, "sys.exit(1)") as runner:
        _failure(runner)
        runner.kill()
        assert not runner.alive
    runner.kill()
    assert not runner.alive


_SUPERVISOR = """
import sys
from pathlib import Path
from agent.runner.process import RunnerProcess
from edgefarm.model import Limits, Stage
with RunnerProcess(Limits(), Path(sys.argv[1])) as runner:
    runner.call({"do": "import", "runtime": "onnxruntime"}, 60 * 10**9, Stage.LOAD)
    print(runner.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _SUPERVISOR, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_runner_dies_with_its_supervisor(how: signal.Signals, supervisor: subprocess.Popen[str]) -> None:
    assert supervisor.stdout is not None
    runner = int(supervisor.stdout.readline())
    assert psutil.pid_exists(runner)
    supervisor.send_signal(how)
    supervisor.wait(20)
    assert _gone(runner)


def test_a_runner_whose_supervisor_is_gone_does_not_start() -> None:
    program = "from agent.runner.limits import die_with; die_with(1 if __import__('os').getppid() != 1 else 2); print('alive')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


_SAY_LIMITS = """
import json, resource, pathlib
from agent.runner import limits
limits.apply(limits.ProcessLimits(**settings["limits"]))
found = {n: resource.getrlimit(getattr(resource, "RLIMIT_" + n)) for n in ("CORE", "FSIZE", "DATA", "NPROC", "AS")}
found["oom"] = int(pathlib.Path("/proc/self/oom_score_adj").read_text())
found["environment"] = dict(os.environ)
found["path"] = sys.path[:1]
try:
    open("large", "wb").truncate((1 << 30) + 1)
except OSError as error:
    found["large"] = error.strerror
channel.sendall(encode({"ok": found})); receive()
"""


def test_the_limits_are_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.setenv("PYTHONPATH", f":{tmp_path}:beside")
    with _fake(tmp_path, _SAY_LIMITS, Limits(memory_bytes=200 * MIB), environment={"EXTRA": "1"}) as runner:
        runner.call({}, 20 * S, Stage.LOAD)
        found = runner.call({}, 20 * S, Stage.RUN).body
    assert found["CORE"] == [0, 0]
    assert found["FSIZE"] == [limiting.FILE_BYTES] * 2
    assert found["DATA"] == [200 * MIB + limiting.DATA_SLACK_BYTES] * 2
    assert found["NPROC"][0] >= limiting.MORE_TASKS
    assert found["large"] == "File too large"
    assert found["oom"] == 1000
    environment = found["environment"]
    assert "SECRET_TOKEN" not in environment
    assert environment["HOME"] == environment["TMPDIR"] == str(runner.folder)
    assert environment["PYTHONPATH"] == f"{tmp_path}:{Path.cwd() / 'beside'}"
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"
    assert (environment["EXTRA"], environment["LANG"]) == ("1", "C.UTF-8")
    assert str(runner.folder) not in found["path"]


def test_limits_are_told_in_words() -> None:
    found = limiting.limits_in_force()
    assert set(found) == {
        "memory", "time", "threads", "file_size", "written", "core_dumps", "lifetime",
        "processes", "network", "file_reads", "file_writes", "privileges",
    }  # fmt: skip
    assert ("runs as root" in found["threads"]) == (os.geteuid() == 0)
    in_unit = limiting.limits_in_force(in_unit=True)
    assert {name for name in found if found[name] != in_unit[name]} == {"file_reads"}


def test_memory_limits_never_exceed_what_is_there() -> None:
    available = psutil.virtual_memory().available
    assert limiting.effective_memory(1000) == 1000
    assert 0 < limiting.effective_memory(0) < available * 1.2
    assert limiting.effective_memory(2**60) < available * 1.2


@pytest.mark.parametrize(
    ("returncode", "tail", "oom_killed", "kind"),
    [
        (-9, "", True, FailureKind.OOM),
        (-9, "", False, FailureKind.CRASH),
        (-6, "terminate called after throwing an instance of 'std::bad_alloc'", False, FailureKind.OOM),
        (1, "Traceback\nMemoryError", False, FailureKind.OOM),
        (-11, "", True, FailureKind.CRASH),
        (-99, "", False, FailureKind.CRASH),
    ],
)
def test_what_an_exit_means(returncode: int, tail: str, oom_killed: bool, kind: FailureKind) -> None:
    assert explain_exit(returncode, tail, Stage.RUN, oom_killed).kind is kind


def _load(runner: RunnerProcess, path: Path, key: str = "a") -> None:
    request = {"do": "load", "key": key, "path": str(path), "runtime": "onnxruntime", "options": {"threads": 1}, "io": None}
    runner.call(request, 60 * S, Stage.LOAD)


def test_a_runner_finds_nothing_that_one_before_it_left(tmp_path: Path) -> None:
    """Code that it would import before it has confined itself."""
    user_site = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    plant = f"""
for folder in ('.', '.local/{user_site}', '{user_site}'):
    os.makedirs(folder, exist_ok=True)
    for name in ('json', 'usercustomize', 'sitecustomize'):
        open(f'{{folder}}/{{name}}.py', 'w').write('print("planted", flush=True); import time; time.sleep(600)')
channel.sendall(encode({{'ok': {{}}}})); receive()
"""
    with _fake(tmp_path, plant) as runner:
        runner.call({}, 20 * S, Stage.LOAD)
        runner.call({}, 20 * S, Stage.RUN)
    with RunnerProcess(Limits(), tmp_path) as second:
        assert second.folder != runner.folder
        assert "version" in second.call({"do": "import", "runtime": "onnxruntime"}, 60 * S, Stage.LOAD).body
        assert second.tail == ""
        assert list(second.folder.iterdir()) == []


def test_a_typed_failure_leaves_the_runner_alive(tmp_path: Path) -> None:
    with RunnerProcess(Limits(), tmp_path, files=[tmp_path]) as runner:
        for build, kind in ((zoo.truncated, FailureKind.LOAD), (zoo.unknown_operator, FailureKind.UNSUPPORTED_OP)):
            path = build(tmp_path)
            with pytest.raises(RunnerFailed) as caught:
                _load(runner, path)
            assert (caught.value.failure.kind, caught.value.failure.stage) == (kind, Stage.LOAD)
        with pytest.raises(RunnerFailed, match="KeyError: 'dance'"):
            runner.call({"do": "dance"}, 20 * S, Stage.RUN)
        _load(runner, zoo.dense(tmp_path))
        assert runner.alive
        assert runner.tail == ""


def test_an_unknown_runtime_is_a_load_failure(tmp_path: Path) -> None:
    with RunnerProcess(Limits(), tmp_path) as runner, pytest.raises(RunnerFailed, match="unknown runtime 'onyx'") as caught:
        runner.call({"do": "import", "runtime": "onyx"}, 20 * S, Stage.LOAD)
    assert caught.value.failure.kind is FailureKind.LOAD


def test_the_runtime_leaves_nothing_in_the_home_folder(tmp_path: Path) -> None:
    with RunnerProcess(Limits(), tmp_path, files=[tmp_path]) as runner:
        _load(runner, zoo.dense(tmp_path))
        threads = psutil.Process(runner.pid).num_threads()
    assert list(runner.folder.iterdir()) == []  # telemetry would have left its store
    assert threads <= 2  # nor is there a thread that sends it; OpenBLAS may keep one

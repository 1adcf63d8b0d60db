"""Hosted mode with processes: start, restart, stop, nothing left behind."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from controller import local_agents
from controller.hosted import Hosted, LocalDevice, driver_lock, driver_of
from controller.looking import look_into
from edgefarm.errors import Busy, DeviceLost, StorageError, UserError

AGENT = Path(__file__).parents[1] / "fakes" / "agent_process.py"
ONE = [LocalDevice("bench-1")]
TWO = [LocalDevice("bench-1"), LocalDevice("bench-2")]


def command(behaviour: str) -> list[str]:
    return [sys.executable, str(AGENT), behaviour]


def pids(state: Path, device: str = "bench-1") -> list[int]:
    return [int(p) for p in (state / "devices" / device / "pids").read_text().split()]


def assert_gone(processes: list[int]) -> None:
    alive = [psutil.Process(p) for p in processes if psutil.pid_exists(p)]
    gone, still = psutil.wait_procs(alive, timeout=20)
    assert still == [], gone


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_agents, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(local_agents, "_LONGEST_PAUSE_S", 0.02)
    monkeypatch.setattr(local_agents, "_STOP_S", 1.0)


def test_devices_are_started_and_stopped(tmp_path: Path) -> None:
    devices = [LocalDevice("bench-1", ("onnxruntime", "x"), 2, {"k": "v"}, "127.0.0.1:0"), LocalDevice("bench-2")]
    with Hosted(tmp_path / "state", devices, command=command("good")) as hosted:
        assert [(s.device.name, s.state) for s in hosted.control.devices()] == [("bench-1", "ready"), ("bench-2", "ready")]
        assert (tmp_path / "state" / "driver.lock").read_text().strip() == str(os.getpid())
        socket = Path((tmp_path / "state" / "runtime-folder").read_text().strip())
        assert socket.is_dir()
        with look_into(tmp_path / "state") as look:  # another command looks meanwhile
            assert [(s.device.name, s.state) for s in look.devices()] == [("bench-1", "in_use"), ("bench-2", "in_use")]
    assert_gone([*pids(tmp_path / "state"), *pids(tmp_path / "state", "bench-2")])
    assert not socket.exists()
    arguments = (tmp_path / "state" / "devices" / "bench-1" / "arguments").read_text()
    for part in ("'--runtimes', 'onnxruntime,x'", "'--threads', '2'", "'--label', 'k=v'", "'--metrics', '127.0.0.1:0'"):
        assert part in arguments
    assert "--threads" not in (tmp_path / "state" / "devices" / "bench-2" / "arguments").read_text()
    with pytest.raises(RuntimeError, match="only there inside"):
        _ = hosted.control


def test_an_agent_that_dies_is_started_again(tmp_path: Path) -> None:
    with Hosted(tmp_path, ONE, command=command("die-once")) as hosted:
        changed = hosted.farm._changed
        with changed:
            assert changed.wait_for(lambda: len(pids(tmp_path)) == 2 and hosted.control.devices()[0].state == "ready", 30)
    assert_gone(pids(tmp_path))


def test_an_agent_that_keeps_dying_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(DeviceLost, match=r"(?s)device 'bench-1': its agent died 6 times within 60 s.*life 6 begins"):
        Hosted(tmp_path, ONE, command=command("die")).__enter__()
    assert len(pids(tmp_path)) == 6


def test_an_agent_that_refuses_is_not_started_again(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)device 'bench-1': its agent refused to start.*port 80 is in use"):
        Hosted(tmp_path, ONE, command=command("refuse")).__enter__()
    assert len(pids(tmp_path)) == 1
    with pytest.raises(UserError) as caught:
        Hosted(tmp_path, ONE, command=command("refuse")).__enter__()
    assert str(caught.value).count("port 80 is in use") == 1, "the log of an earlier command is not told"


def test_a_device_that_does_not_get_ready(tmp_path: Path) -> None:
    with pytest.raises(DeviceLost, match=r"(?s)device 'bench-1': it did not get ready within 5 s.*life 1 begins"):
        Hosted(tmp_path, ONE, start_timeout_s=5.0, command=command("never-probed")).__enter__()
    assert_gone(pids(tmp_path))


BAD = {
    "die": r"(?s)its agent died 6 times within 60 s.*life 6 begins",
    "refuse": r"(?s)its agent refused to start.*bench-2: port 80 is in use",
    "never-probed": r"(?s)it did not get ready within 5 s.*life 1 begins",
}


@pytest.mark.parametrize("behaviour", BAD)
def test_the_others_go_on_without_a_device_that_does_not_start(tmp_path: Path, behaviour: str) -> None:
    timeout_s = 5.0 if behaviour == "never-probed" else 60.0
    with Hosted(tmp_path, TWO, start_timeout_s=timeout_s, command=command(f"good,bench-2={behaviour}")) as hosted:
        good, bad = hosted.control.devices()
        assert (good.device.name, good.state, good.reason) == ("bench-1", "ready", "")
        assert (bad.device.name, bad.state) == ("bench-2", "lost")
        assert re.search(BAD[behaviour], bad.reason)
    assert_gone([*pids(tmp_path), *pids(tmp_path, "bench-2")])


def test_where_no_device_starts_each_one_is_told(tmp_path: Path) -> None:
    with pytest.raises(DeviceLost) as caught:
        Hosted(tmp_path, TWO, command=command("die")).__enter__()
    for name in ("bench-1", "bench-2"):
        assert f"device '{name}': its agent died 6 times" in str(caught.value)


def test_a_command_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(DeviceLost, match=r"device 'bench-1': its agent can't be started: .*no-such-program"):
        Hosted(tmp_path, ONE, command=["/no-such-program"]).__enter__()


def test_an_agent_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    with Hosted(tmp_path, ONE, command=command("stubborn")):
        started = pids(tmp_path)
    assert_gone(started)


def test_nothing_is_left_when_the_command_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from controller.hosted import Hosted, LocalDevice\n"
        f"with Hosted(Path({str(tmp_path)!r}), [LocalDevice('bench-1')], command={command('good')!r}):\n"
        "    print('ready', flush=True)\n"
        "    threading.Event().wait()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    left = Path((tmp_path / "runtime-folder").read_text().strip())
    with pytest.raises(Busy, match=f"driven by another command already .process {process.pid}."):
        Hosted(tmp_path, []).__enter__()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert_gone(pids(tmp_path))
    assert left.exists()
    with Hosted(tmp_path, ONE, command=command("good")) as hosted:
        assert [s.state for s in hosted.control.devices()] == ["ready"]
    assert not left.exists()


def test_looking_for_the_driver_is_in_nobodys_way(tmp_path: Path) -> None:
    assert driver_of(tmp_path) == ""
    assert list(tmp_path.iterdir()) == []
    with driver_lock(tmp_path):
        assert driver_of(tmp_path) == str(os.getpid())
    assert driver_of(tmp_path) == ""
    with (tmp_path / "driver.lock").open() as looking:  # caught in the middle of a look
        fcntl.flock(looking, fcntl.LOCK_SH)
        leaves = threading.Timer(0.02, fcntl.flock, (looking, fcntl.LOCK_UN))
        leaves.start()
        with driver_lock(tmp_path):
            leaves.join()
            assert driver_of(tmp_path) == str(os.getpid())


def test_one_driver_at_a_time(tmp_path: Path) -> None:
    with driver_lock(tmp_path), pytest.raises(Busy, match=f"process {os.getpid()}"), driver_lock(tmp_path):
        pass
    with driver_lock(tmp_path):
        pass


def test_a_state_that_can_t_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another place with --state"):
        Hosted(tmp_path / "file", ONE).__enter__()
    with pytest.raises(UserError, match="no run was started there yet"), look_into(tmp_path / "absent"):
        pass
    assert not (tmp_path / "absent").exists()


def test_no_devices_no_processes(tmp_path: Path) -> None:
    before = threading.active_count()
    with Hosted(tmp_path, []) as hosted:
        assert hosted.control.devices() == []
        assert threading.active_count() == before

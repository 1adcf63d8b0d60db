"""The units for real: a booted Debian, installed by the script without internet, enrolled over TLS, killed, hung, rebooted, upgraded."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import zoo
from tests.e2e.command import environment
from tests.e2e.machine import Machine, Network, require

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
SOURCES = ("agent", "controller", "optimizer", "proto", "deploy", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
_PYTHON = "/opt/edgefarm/current/bin/python"
# What a runner's unit lets a program do, told over its connection.
_TRIES = """
import json, os, pathlib, socket
def can(what):
    try:
        what()
        return "yes"
    except OSError as error:
        return error.strerror
def dial(family, *address):
    socket.socket(family).connect(*address)
tries = {
    "configuration": lambda: open("/etc/edgefarm/agent.toml"), "state": lambda: os.listdir("/var/lib/edgefarm"),
    "home": lambda: os.listdir("/root"), "agent_memory": lambda: open(f"/proc/{agent}/mem"),
    "controller": lambda: dial(socket.AF_INET, ("10.76.0.1", 7443)),
    "other_runners": lambda: dial(socket.AF_UNIX, "/run/edgefarm/runner.sock"),
    "system": lambda: open("/etc/x", "w"), "environment": lambda: open("/opt/edgefarm/current/x", "w"),
    "disk": lambda: open("/tmp/x", "w"), "log": lambda: open("/var/tmp/x", "w"), "own": lambda: open("x", "w"),
    "kill": lambda: os.kill(agent, 9), "raw": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW), "dev": lambda: open("/dev/kmsg"),
}
agent = int(socket.socket(fileno=os.dup(3)).recv(64))
os.write(3, json.dumps({name: can(what) for name, what in tries.items()}).encode())
"""
_DIAL = """
import socket, sys
unit = socket.socket(socket.AF_UNIX)
unit.connect("/run/edgefarm/runner.sock")
unit.send(sys.argv[1].encode())
print(unit.recv(9999).decode())
"""
_MEASURE = """
import json, sys
from pathlib import Path
from agent.bench.golden import check_golden
from agent.bench.latency import measure_latency
from agent.bench.passes import measure_accuracy
from agent.bench.site import Site
from edgefarm.model import *
folder = Path(sys.argv[1])
site = Site(folder, 1, folder / "lock", unit_socket=Path("/run/edgefarm/runner.sock"))
def contender(name, runtime="onnxruntime"):
    path = folder / name / "model.onnx"
    entry = FileEntry("model.onnx", "sha256:0", path.stat().st_size)
    return Contender(name, Candidate(Artifact("sha256:0", entry.bytes, "onnx", (entry,)), runtime, {})), path
def latency(*names, **limits):
    known = [contender(name) for name in names]
    work = LatencyWork(tuple(c for c, _ in known), Scenario(), "", (0,), bursts=2, burst_ns=1_000_000, warmup_ns=3_000_000)
    outcome = measure_latency(work, 0, {c.key: p for c, p in known}, folder / "inputs.npz", Limits(**limits), site).outcome
    return {c.key: c.failure.kind.value if c.failure else c.n for c in outcome.contenders}
one, path = contender("dense")
accuracy = measure_accuracy(AccuracyWork(one, ("",), golden_samples=2), path, [folder / "inputs.npz"], Limits(), site)
golden = check_golden(one.candidate, path, accuracy.blobs["golden"], Golden("", 1e-5, 1e-6), Limits(), site)
print(json.dumps({
    "together": latency("dense", "truncated"), "greedy": latency("greedy", memory_bytes=300 << 20),
    "n": accuracy.outcome.n, "outputs_bytes": accuracy.blobs["outputs"].stat().st_size, "golden": golden is None,
}))
"""


@dataclass
class Controller:
    """A running `controller serve`."""

    socket: Path

    def __call__(self, *arguments: str) -> Any:
        command = [sys.executable, "-m", "controller.cli", *arguments, "--controller", f"unix:{self.socket}", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def state(self) -> str:
        """What it says of the only device."""
        devices = self("devices")["devices"]
        return str(devices[0]["state"]) if devices else "none"


@dataclass
class Device:
    """The booted machine with its agent."""

    machine: Machine
    controller: Controller

    @property
    def agent(self) -> int:
        """The agent's process id, as the machine sees it."""
        return int(self.machine.property("MainPID"))

    def is_ready(self) -> bool:
        return self.controller.state() == "ready"

    def comes_back(self, what: str, do: Callable[[], object]) -> None:
        """`do` ends the agent; another process of it attaches."""
        before = self.agent
        assert before
        do()
        self.machine.wait(lambda: self.agent not in (0, before), f"{what}: restarted")
        self.machine.wait(self.is_ready, f"{what}: attached again")


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require()
    return _wheelhouse(tmp_path_factory.mktemp("wheels"), None)


def _wheelhouse(folder: Path, version: str | None, sabotage: str = "") -> Path:
    """Made by deploy/wheelhouse.sh from a copy of the sources, with another version, also in its unit, if one is given."""
    copy = folder / "sources"
    copy.mkdir()
    for name in SOURCES:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, copy / name)
    if version is not None:
        module = copy / "proto/edgefarm/__init__.py"
        module.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', module.read_text()))
        unit = copy / "deploy/systemd/edge-agent.service"
        unit.write_text(unit.read_text().replace("Description=", f"Description={version} "))
    if sabotage:
        (copy / "agent/supervisor.py").write_text(sabotage)
    made = subprocess.run(
        ["sh", str(copy / "deploy/wheelhouse.sh"), str(folder / "wheelhouse")], capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHON": sys.executable},
    )  # fmt: skip
    if made.returncode != 0 and "No matching distribution" in made.stderr:
        pytest.skip(f"NOT TESTED: the units in a booted system: no wheels for this Python: {made.stderr[-500:]}")
    assert made.returncode == 0, made.stderr
    return folder / "wheelhouse"


@pytest.fixture(scope="module")
def device(wheelhouse: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    folder = tmp_path_factory.mktemp("device")
    with Network() as network, Machine(folder, network.inside) as machine:
        serve = [
            "ip", "netns", "exec", network.outside, sys.executable, "-m", "controller.cli", "serve", "--state", str(folder / "controller"),
            "--listen", f"{network.address}:7443",
        ]  # fmt: skip
        with (folder / "controller.log").open("wb") as log:
            process = subprocess.Popen(serve, stdout=log, stderr=log, env=environment())
        try:
            controller = Controller(folder / "controller/private/control.sock")
            machine.wait(controller.socket.exists, "the controller listens")
            yield Device(machine, controller)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _bring(device: Device, wheelhouse: Path) -> None:
    shutil.rmtree(device.machine.root / "srv/wheelhouse", ignore_errors=True)
    shutil.copytree(wheelhouse, device.machine.root / "srv/wheelhouse")


def test_it_is_installed_enrolled_and_attached(device: Device, wheelhouse: Path) -> None:
    machine = device.machine
    _bring(device, wheelhouse)
    machine("sh /srv/wheelhouse/install.sh --enable 2>&1", timeout_s=300)
    assert machine.property("ActiveState") == "inactive"  # it knows no controller yet
    verified = machine("cd /etc/systemd/system && systemd-analyze verify edge-agent.service edge-runner.socket edge-runner@.service 2>&1")
    assert verified == ""
    token = device.controller("token", "create")["token"]
    machine(f"edge-agent enroll --controller 10.76.0.1:7443 --token {token} --name dev1")
    machine("systemctl enable --now edge-runner.socket edge-agent.service")
    machine.wait(device.is_ready, "attached and probed")
    assert machine("cd /var/lib/edgefarm && stat -c %U:%a . identity cache journal scratch").split() == [
        "edgefarm:710", *["edgefarm:700"] * 4
    ]  # fmt: skip
    assert machine(f"ps -o user= -p {device.agent}").strip() == "edgefarm"
    assert "attached to 10.76.0.1" in machine.property("StatusText")
    before = device.agent
    machine("sh /srv/wheelhouse/install.sh 2>&1", timeout_s=300)  # again: nothing is lost
    machine.wait(device.is_ready, "attached after a second installation")
    assert device.agent != before


def test_it_says_how_runners_are_isolated(device: Device) -> None:
    told = json.loads(device.machine("edge-agent probe --json"))["runner_limits"]
    assert told["interfaces"] == "lo"
    assert told["unit"].startswith("edge-runner@")
    assert told["user"] != f"uid {device.machine('id -u edgefarm').strip()}"
    assert told["tasks_max"] == "600" or "not enforced" in told["tasks_max"]


def test_what_a_runner_s_unit_keeps_a_model_from(device: Device) -> None:
    machine = device.machine
    (machine.root / "opt/edgefarm/tries.py").write_text(_TRIES)
    (machine.root / "opt/edgefarm/dial.py").write_text(_DIAL)
    with machine.override("edge-runner@.service", f"[Service]\nExecStart=\nExecStart={_PYTHON} -I /opt/edgefarm/tries.py\n"):
        may = json.loads(machine(f"{_PYTHON} /opt/edgefarm/dial.py {device.agent}"))
    assert may.pop("own") == "yes"
    assert [name for name, answer in may.items() if answer == "yes"] == []
    assert len(may) == 13


def test_models_are_measured_in_units(device: Device, tmp_path: Path) -> None:
    place = device.machine.root / "var/lib/edgefarm/measured"
    place.mkdir()
    for name, build in {"dense": zoo.dense, "truncated": zoo.truncated, "greedy": zoo.greedy}.items():
        (tmp_path / name).mkdir()
        shutil.copytree(build(tmp_path / name).parent, place / name)
    zoo.write_shard(place / "inputs.npz", place / "dense/model.onnx")
    (device.machine.root / "srv/measure.py").write_text(_MEASURE)
    device.machine("chown -R edgefarm: /var/lib/edgefarm/measured && chmod -R go= /var/lib/edgefarm/measured")
    user = "setpriv --reuid edgefarm --regid edgefarm --clear-groups"
    found = json.loads(device.machine(f"{user} {_PYTHON} -I /srv/measure.py /var/lib/edgefarm/measured"))
    assert found["together"]["truncated"] == "load"
    assert found["together"]["dense"] >= 6
    assert found["greedy"] == {"greedy": "oom"}
    assert (found["n"], found["golden"]) == (4, True)
    assert found["outputs_bytes"] > 0
    device.machine.wait(lambda: device.machine("systemctl list-units --no-legend 'edge-runner@*'") == "", "no unit is left")


def test_a_killed_agent_is_started_again(device: Device) -> None:
    before = int(device.machine.property("NRestarts"))
    device.comes_back("SIGKILL", lambda: device.machine("systemctl kill -s KILL edge-agent"))
    assert int(device.machine.property("NRestarts")) > before


def test_a_hung_agent_is_started_again(device: Device) -> None:
    machine = device.machine
    with machine.override("edge-agent.service", "[Service]\nWatchdogSec=3\n"):
        device.comes_back("the shorter watchdog", lambda: machine("systemctl restart edge-agent"))
        before = int(machine.property("NRestarts"))
        device.comes_back("SIGSTOP", lambda: machine(f"kill -STOP {device.agent}"))
        assert int(machine.property("NRestarts")) > before
    assert "Watchdog timeout" in machine("journalctl --no-pager -o cat -u edge-agent")


def test_without_its_controller_it_waits_and_is_not_restarted(device: Device) -> None:
    machine = device.machine
    before = device.agent
    machine.plug(False)
    machine("systemctl restart edge-agent")
    assert machine.property("ActiveState") == "active"
    assert "not attached; looking for 10.76.0.1" in machine.property("StatusText")
    machine.plug(True)
    machine.wait(device.is_ready, "attached when the network is back")
    assert device.agent != before
    assert machine.property("NRestarts") == "0"


def test_a_pause_outlives_the_agent_and_is_told(device: Device) -> None:
    machine = device.machine
    machine("edge-agent pause")
    machine.wait(lambda: device.controller.state() == "paused", "told")
    machine("systemctl restart edge-agent")
    machine.wait(lambda: device.controller.state() == "paused", "told again")
    assert "paused since 2" in machine("edge-agent status")
    machine("edge-agent pause --resume")
    machine.wait(device.is_ready, "resumed")


def test_it_attaches_after_a_reboot(device: Device) -> None:
    device.machine.power_off()
    device.machine.wait(lambda: device.controller.state() == "lost", "lost")
    device.machine.boot()
    device.machine.wait(device.is_ready, "attached")
    assert device.machine.property("ActiveState") == "active"


def test_it_is_upgraded_and_goes_back(device: Device, tmp_path: Path) -> None:
    machine = device.machine
    version = machine("readlink /opt/edgefarm/current").strip()
    machine("mkdir /opt/edgefarm/0.0.1 /opt/edgefarm/mine && touch /opt/edgefarm/0.0.1/.complete")
    _bring(device, _wheelhouse(tmp_path, "9.9.9"))
    device.comes_back("upgraded", lambda: machine("sh /srv/wheelhouse/install.sh --upgrade 2>&1", timeout_s=300))
    assert machine("edge-agent --version").strip() == "edge-agent 9.9.9"
    assert machine.property("Description").startswith("9.9.9 ")
    left = set(machine("ls /opt/edgefarm").split())
    assert ({"9.9.9", version, "mine"} <= left, "0.0.1" in left) == (True, False)
    device.comes_back("back", lambda: machine("sh /srv/wheelhouse/install.sh --back 2>&1"))
    assert machine("readlink /opt/edgefarm/current /opt/edgefarm/previous").split() == [version, "9.9.9"]
    assert machine.property("Description").startswith("edgefarm agent")


def test_an_upgrade_that_does_not_start_is_taken_back(device: Device, tmp_path: Path) -> None:
    machine = device.machine
    version = machine("readlink /opt/edgefarm/current").strip()
    _bring(device, _wheelhouse(tmp_path, "9.9.10", sabotage="raise SystemExit('broken on purpose')"))
    said = machine("sh /srv/wheelhouse/install.sh --upgrade 2>&1; echo status $?", timeout_s=300)
    assert f"edge-agent 9.9.10 does not start; {version} is current again" in said
    assert said.endswith("status 1\n")
    assert machine("readlink /opt/edgefarm/current /opt/edgefarm/previous").split() == [version, "9.9.9"]
    assert machine.property("Description").startswith("edgefarm agent")
    machine.wait(device.is_ready, "the old version serves")


def test_it_is_removed(device: Device) -> None:
    machine = device.machine
    machine("sh /srv/wheelhouse/install.sh --remove 2>&1")
    assert machine("ls -d /var/lib/edgefarm /etc/edgefarm /opt/edgefarm 2>/dev/null; true").split() == [
        "/etc/edgefarm",
        "/var/lib/edgefarm",
    ]
    machine("sh /srv/wheelhouse/install.sh --remove --purge 2>&1")
    left = machine(
        "ls -d /var/lib/edgefarm /etc/edgefarm /opt/edgefarm /etc/systemd/system/edge-* /usr/local/bin/edge-agent 2>/dev/null; true"
    )
    assert left == ""
    assert machine("getent passwd edgefarm; true") == ""
    assert machine("pgrep -f [e]dge-agent; true") == ""

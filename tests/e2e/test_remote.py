"""A running controller with enrolled agents, driven by the real command over TLS: users, roles, breaks, leases."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

from controller.login import connected
from tests import zoo
from tests.e2e.command import TIMEOUT_S, Done, controller, environment, start
from tests.e2e.zoo_fleets import write_fleet

DEVICES = ("a", "b")
pytestmark = pytest.mark.long


@dataclass
class FakeLab:
    """A controller and two agents as processes of their own, users with configuration folders of their own."""

    folder: Path
    join: str = ""
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    logs: list[IO[str]] = field(default_factory=list)

    @property
    def socket(self) -> str:
        return f"unix:{self.folder}/c/private/control.sock"

    def environment(self, user: str) -> dict[str, str]:
        return {"XDG_CONFIG_HOME": str(self.folder / "config" / user)}

    def run(self, user: str, *words: str) -> Done:
        """What a user types; `root` is the administrator of the controller's machine."""
        where = self.socket if user == "root" else self.join
        return controller(*words, "--controller", where, "--json", cwd=self.folder, changes=self.environment(user))

    def told(self, user: str, *words: str) -> dict[str, Any]:
        done = self.run(user, *words)
        assert done.code == 0, done.stderr
        return done.document

    def start(self, name: str, *words: str, stdout: int | IO[str] = subprocess.DEVNULL) -> subprocess.Popen[str]:
        log = (self.folder / f"{name}.log").open("a")
        self.logs.append(log)
        self.processes[name] = subprocess.Popen(
            [sys.executable, "-m", *words], cwd=self.folder, env=environment(), stdout=stdout, stderr=log, text=True
        )
        return self.processes[name]

    def serve(self) -> None:
        """On any free ports; on the same ones when it is started again."""
        words = ("serve", "--state", str(self.folder / "c"), "--listen", "127.0.0.1:0", "--json")
        serving = self.start("controller", "controller.cli", *words, stdout=subprocess.PIPE)
        assert serving.stdout is not None
        ready = json.loads(serving.stdout.readline() or "{}")
        assert ready, (self.folder / "controller.log").read_text()[-3000:]
        self.join = ready["join"]

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].communicate()

    def enroll(self, name: str, token: str) -> None:
        words = [sys.executable, "-m", "agent.cli", "enroll", "--controller", self.join, "--token", token, "--name", name]
        subprocess.run([*words, "--state", str(self.folder / name)], check=True, env=environment(), cwd=self.folder, capture_output=True)
        lock = str(self.folder / "measure.lock")
        self.start(name, "agent.cli", "run", "--state", str(self.folder / name), "--measure-lock", lock)

    def wait_until_ready(self) -> None:
        """Until the devices have proved what they run."""
        end, pause = time.monotonic() + TIMEOUT_S, threading.Event()
        with connected(self.socket, self.folder / "fetched", 20.0) as client:
            while {s.state for s in client.devices()} != {"ready"}:
                assert time.monotonic() < end, client.devices()
                pause.wait(0.1)

    def log_in(self, user: str, role: str) -> None:
        token = self.told("root", "user", "add", user, "--role", role)["token"]
        assert self.told(user, "login", "--token", token)["name"] == user

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=20)
            process.kill()
            process.communicate()
        for log in self.logs:
            log.close()


@contextlib.contextmanager
def running_lab(folder: Path) -> Iterator[FakeLab]:
    """With two devices, an operator anna and a viewer vera."""
    made = FakeLab(folder)
    try:
        made.serve()
        token = made.told("root", "token", "create", "--uses", "2", "--expires", "1h", "--label", "site=lab")["token"]
        for name in DEVICES:
            made.enroll(name, token)
        made.wait_until_ready()
        made.log_in("anna", "operator")
        made.log_in("vera", "viewer")
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeLab]:
    with running_lab(tmp_path_factory.mktemp("lab")) as made:
        yield made


def fleet_of(lab: FakeLab, name: str) -> Path:
    folder = lab.folder / name
    folder.mkdir()
    path = write_fleet(folder, zoo.dense(folder), name=name)
    document = json.loads(path.read_text())
    document["controller"] = lab.join
    document["devices"] = [{"name": "a"}, {"selector": {"site": "lab"}, "count": 1}]
    path.write_text(json.dumps(document))
    return path


def drive(lab: FakeLab, fleet: Path) -> subprocess.Popen[str]:
    lab.processes[str(fleet)] = driver = start(("deploy", "--fleet", str(fleet), "--json"), fleet.parent, lab.environment("anna"))
    return driver


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if words in line:
            return
    raise AssertionError(f"the command never said {words!r}:\n{''.join(seen)[-3000:]}")


def test_a_killed_controller_only_delays_the_driver(lab: FakeLab) -> None:
    fleet = fleet_of(lab, "killed")
    driver = drive(lab, fleet)
    wait_for(driver, ": screen: ")
    second = controller("deploy", "--fleet", str(fleet), "--json", "--state", str(lab.folder / "s"), cwd=fleet.parent,
                        changes=lab.environment("anna"))  # fmt: skip
    assert (second.code, second.document["error"]["code"]) == (2, "busy")
    assert f"process {driver.pid}" in second.document["error"]["message"]
    lab.kill("controller")
    lab.serve()
    out, error = driver.communicate(timeout=240)
    assert driver.returncode == 0, error[-3000:]
    report = json.loads(out)
    assert [d["name"] for d in report["devices"]] == ["a", "b"]
    assert {d["deployment"]["state"] for d in report["devices"]} == {"committed"}
    assert report["owner"] == "anna"
    assert sorted(p.name for p in (fleet.parent / ".edgefarm" / "killed").iterdir()) == ["driver.lock", "fetched", "variants"]
    (run,) = [r for r in lab.told("vera", "runs")["runs"] if r["run"] == "killed@1"]
    assert (run["state"], run["owner"]) == ("done", "anna")
    assert lab.told("vera", "show", "killed@1")["stages"]["compare"]["done"] >= 1
    assert lab.told("vera", "report", "killed")["run"] == "killed@1"
    again = controller("deploy", "--fleet", str(fleet), "--json", cwd=fleet.parent, changes=lab.environment("anna"))
    assert again.code == 0
    assert "nothing had to be done again" in again.document["summary"]


def test_a_viewer_looks_and_does_not_touch(lab: FakeLab) -> None:
    fleet = fleet_of(lab, "viewed")
    assert {d["name"] for d in lab.told("vera", "devices")["devices"]} == set(DEVICES)
    done = controller("deploy", "--fleet", str(fleet), "--json", cwd=fleet.parent, changes=lab.environment("vera"))
    assert (done.code, done.document["error"]["code"]) == (2, "denied")
    assert "user 'vera', a viewer, may not" in done.document["error"]["message"]
    for words in (("lease", "a", "--for", "1h"), ("drain", "a"), ("cancel", "killed@1"), ("token", "create"), ("device", "revoke", "a")):
        refused = lab.run("vera", *words)
        assert (refused.code, refused.document["error"]["code"]) == (2, "denied"), words
    operators = lab.run("anna", "user", "add", "eve")
    assert (operators.code, operators.document["error"]["code"]) == (2, "denied")
    stranger = lab.run("eve", "devices")
    assert (stranger.code, stranger.document["error"]["code"]) == (2, "user")
    assert "log in first: controller login" in stranger.document["error"]["message"]


def test_leases_drains_and_labels(lab: FakeLab) -> None:
    (lease,) = lab.told("anna", "lease", "a", "--for", "1h")["holds"]
    assert (lease["device"], lease["kind"], lease["holder"]) == ("a", "lease", "anna")
    assert lab.run("root", "lease", "site=lab", "--for", "1h").document["error"]["code"] == "busy"
    reasons = {d["name"]: d["reason"] for d in lab.told("vera", "devices")["devices"]}
    assert reasons["a"].startswith("leased to anna until ")
    assert lab.told("root", "release", "a")["released"] == ["a"]
    lab.told("anna", "drain", "site=lab")
    assert {d["state"] for d in lab.told("vera", "devices")["devices"]} == {"draining"}
    assert lab.told("anna", "release", "site=lab")["released"] == ["a", "b"]
    lab.told("root", "device", "label", "b", "shelf=3", "site-")
    labels = {d["name"]: d["labels"] for d in lab.told("vera", "devices")["devices"]}
    assert (labels["b"].get("shelf"), "site" in labels["b"]) == ("3", False)
    unknown = lab.run("root", "device", "revoke", "c")
    assert (unknown.code, unknown.document["error"]["message"]) == (2, f"controller {lab.socket}: no device 'c' has enrolled")
    assert lab.run("anna", "drain", "site=x").document["error"]["message"].startswith("no device has the labels site=x")
    lab.told("root", "device", "label", "b", "shelf-", "site=lab")


def test_a_cancelled_run_ends_its_driver(lab: FakeLab) -> None:
    fleet = fleet_of(lab, "cancelled")
    lab.told("root", "lease", "site=lab", "--for", "1h")  # so that its orders wait
    driver = drive(lab, fleet)
    wait_for(driver, ": screen: ")
    assert lab.told("anna", "cancel", "cancelled@1") == {"run": "cancelled@1", "state": "cancelled"}
    out, _ = driver.communicate(timeout=60)
    assert (driver.returncode, json.loads(out)["error"]["code"]) == (130, "cancelled")
    assert lab.told("root", "release", "site=lab")["released"] == ["a", "b"]


def test_a_driver_that_is_interrupted_leaves_a_run_that_waits(lab: FakeLab) -> None:
    fleet = fleet_of(lab, "interrupted")
    driver = drive(lab, fleet)
    wait_for(driver, "run interrupted@1")
    driver.send_signal(signal.SIGTERM)
    driver.communicate(timeout=60)
    assert driver.returncode == 130
    (run,) = [r for r in lab.told("vera", "runs")["runs"] if r["run"] == "interrupted@1"]
    assert run["state"] == "waiting_for_driver"
    done = controller("deploy", "--fleet", str(fleet), "--until", "measure", "--json", cwd=fleet.parent, changes=lab.environment("anna"))
    assert done.code == 0, done.stderr
    assert done.document["run"] == "interrupted@1"


def test_what_is_not_there_is_told_before_anything_runs(lab: FakeLab) -> None:
    fleet = fleet_of(lab, "wrong")
    text = fleet.read_text()
    fleet.write_text(text.replace('{"name": "a"}', '{"name": "aa"}'))
    done = controller("deploy", "--fleet", str(fleet), "--json", cwd=fleet.parent, changes=lab.environment("anna"))
    assert (done.code, done.document["error"]["code"]) == (2, "fleet-file")
    assert f"no device 'aa' is enrolled at {lab.join}; did you mean 'a'?" in done.document["error"]["message"]


def test_a_controller_that_is_not_there_is_exit_code_6(tmp_path: Path) -> None:
    done = controller("devices", "--controller", f"unix:{tmp_path}/control.sock", "--json", cwd=tmp_path)
    assert (done.code, done.document["error"]["code"]) == (6, "unreachable")
    assert f"controller unix:{tmp_path}/control.sock could not be reached" in done.document["error"]["message"]
    assert list(tmp_path.iterdir()) == []


def test_the_identity_is_for_its_user_s_eyes_only(lab: FakeLab) -> None:
    files = [p for p in (lab.folder / "config" / "anna").rglob("*") if p.is_file() and "fetched" not in p.parts]
    assert len(files) >= 2
    assert {oct(os.stat(p).st_mode & 0o777) for p in files} == {"0o600"}

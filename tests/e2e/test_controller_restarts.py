"""A controller that is stopped or killed, and started again: in every phase of a run, and while devices and users join. Nothing is lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgefarm.enrolment import enroll
from tests.e2e.command import TIMEOUT_S, environment
from tests.e2e.restarts import RestartedFarm, events

DEVICES = ("a", "b")
MIDDLE_OF_SOURCE, MIDDLE_OF_REPORT = 1_400_000, 20_000  # bytes
STOPPED, KILLED = signal.SIGTERM, signal.SIGKILL
HOW = pytest.mark.parametrize("number", [STOPPED, KILLED], ids=["stopped", "killed"])
pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[RestartedFarm]:
    with RestartedFarm(tmp_path / "farm") as made:
        made.add_agents(*DEVICES)
        made.log_in("anna", "operator")
        made.log_in("root-elsewhere", "admin")
        yield made


@HOW
def test_in_every_phase_of_a_run(farm: RestartedFarm, number: signal.Signals) -> None:
    fleet = farm.write_fleet("cut", DEVICES)
    driver = farm.drive("anna", fleet)

    def told(**fields: Any) -> Callable[[], bool]:
        return lambda: any(fields.items() <= event.items() for event in events(fleet))

    phases: dict[str, Callable[[], Callable[[], bool]]] = {
        "optimize": lambda: told(event="pass", kind="started"),
        "upload": lambda: farm.line.hold(lambda up, passed: up and passed > MIDDLE_OF_SOURCE).reached.is_set,
        "fetch": lambda: farm.line.hold(lambda up, passed: not up and passed > MIDDLE_OF_SOURCE).reached.is_set,
        "screen": lambda: lambda: farm.under_way("screen"),
        "accuracy": lambda: lambda: farm.under_way("accuracy"),
        "compare": lambda: lambda: farm.under_way("compare", 2),
        "memory": lambda: lambda: farm.under_way("memory"),
        "rollout": lambda: farm.activating,
        "report": lambda: farm.line.hold(lambda up, passed: up and passed > MIDDLE_OF_REPORT).reached.is_set,
    }
    for phase, watched in phases.items():
        began = time.monotonic()
        farm.until(watched(), driver)
        print(f"{phase}: reached after {time.monotonic() - began:.1f} s", file=sys.stderr)
        farm.restart(number)
    assert farm.query("select count(*) from runs") == [(1,)]
    report = farm.ended(driver)
    (digest,) = set(farm.is_won(report))
    farm.nothing_was_lost_or_done_twice()
    farm.everything_is_whole()
    again = farm.ended(farm.drive("anna", fleet))
    assert again["summary"].startswith("nothing had to be done again")
    undisturbed = farm.ended(farm.drive("anna", farm.write_fleet("undisturbed", DEVICES)))
    assert set(farm.is_won(undisturbed)) == {digest}


@HOW
def test_while_nothing_is_done(farm: RestartedFarm, number: signal.Signals) -> None:
    join = farm.told("root", "token", "create", "--uses", "2", "--label", "site=lab")["token"]
    welcome = farm.told("root", "user", "add", "vera", "--role", "viewer")["token"]
    enroll(farm.join_line.address, join, "c", farm.folder / "c-device")
    farm.told("anna", "lease", "a", "--for", "1h")
    farm.told("root-elsewhere", "drain", "b")
    with farm.client() as client:
        holds = client.holds()
    assert [(h.kind.value, h.name, h.holder) for h in holds] == [("drain", "b", "root-elsewhere"), ("lease", "a", "anna")]
    farm.until(lambda: _relayed(farm) == set(DEVICES))

    farm.restart(number)

    farm.until(lambda: farm.attached() == set(DEVICES))
    with farm.client() as client:
        assert client.holds() == holds
    refused = farm.run("root-elsewhere", "lease", "a", "--for", "1h")
    assert (refused.code, refused.document["error"]["code"]) == (2, "busy")
    assert farm.told("anna", "release", "a")["released"] == ["a"]
    farm.until(lambda: _relayed(farm) == set(DEVICES))
    enroll(farm.join_line.address, join, "d", farm.folder / "d-device")
    farm.told("vera", "login", "--token", welcome)
    assert {d["name"] for d in farm.told("vera", "devices")["devices"]} >= set(DEVICES)
    assert all(agent.process.poll() is None for agent in farm.agents.values())


def _relayed(farm: RestartedFarm) -> set[str]:
    """Devices whose telemetry the controller shows."""
    with urllib.request.urlopen(f"{farm.controller.metrics}/metrics", timeout=20) as reply:
        page = reply.read().decode()
    return {name for name in DEVICES if f'edgefarm_disk_free_bytes{{device="{name}"}}' in page}


@HOW
@pytest.mark.parametrize("lost", ["request", "answer"])
def test_while_an_agent_enrolls(farm: RestartedFarm, number: signal.Signals, lost: str) -> None:
    token = farm.told("root", "token", "create")["token"]
    state = farm.folder / "late"
    words = ["enroll", "--controller", farm.join_line.address, "--token", token, "--name", "late", "--state", str(state)]
    command = [sys.executable, "-m", "agent.cli", *words]

    def is_lost(up: bool, passed: int) -> bool:
        return (up and passed > 1000) if lost == "request" else (not up and "'late' enrolled" in farm.controller.log.read_text())

    hold = farm.join_line.hold(is_lost)
    enrolling = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    farm.until(hold.reached.is_set)
    farm.restart(number)
    _, error = enrolling.communicate(timeout=TIMEOUT_S)
    assert enrolling.returncode == 6, error
    assert f"controller {farm.join_line.address}" in error
    again = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S)
    assert again.returncode == 0, again.stderr
    farm.start_agent("late")
    farm.until(lambda: farm.attached() >= {*DEVICES, "late"})
    assert farm.query("select uses from tokens where kind = 'device' order by expires_unix_ms desc limit 1") == [(0,)]


@HOW
def test_while_a_token_is_made(farm: RestartedFarm, number: signal.Signals) -> None:
    farm.until(lambda: farm.attached() == set(DEVICES))
    tokens = "select secret_hash from tokens"
    before = set(farm.query(tokens))
    hold = farm.line.hold(lambda up, _: not up and not set(farm.query(tokens)) <= before)
    asking = farm.starts("root-elsewhere", "token", "create")
    farm.until(hold.reached.is_set, asking)
    farm.restart(number)
    made, error = asking.communicate(timeout=TIMEOUT_S)
    assert asking.returncode == 0, error
    identity = enroll(farm.join_line.address, json.loads(made)["token"], "late", farm.folder / "late" / "identity")
    assert identity.main == farm.line.address


@HOW
def test_while_two_users_wait(farm: RestartedFarm, number: signal.Signals) -> None:
    """The queue outlives it: who asked first is served first, then the other one."""
    farm.log_in("bob", "operator")
    for name in DEVICES:  # of one class, so each may take the orders
        farm.told("root-elsewhere", "drain", name)
    drivers = {}
    for user in ("bob", "anna"):
        name = f"of-{user}"
        drivers[name] = farm.drive(user, farm.write_fleet(name, ["a"]), "--until", "measure")
        farm.until(lambda name=name: bool(farm.query(f"select id from orders where run = '{name}@1' and state = 'queued'")), drivers[name])
    farm.restart(number)
    assert farm.begun() == []
    farm.until(lambda: farm.attached() == set(DEVICES))
    farm.told("root-elsewhere", "release", "a")
    for driver in drivers.values():
        farm.ended(driver)
    served = [order.partition("@")[0] for order in dict.fromkeys(order for order, _ in farm.begun())]
    assert served[:2] == ["of-bob", "of-anna"]
    farm.nothing_was_lost_or_done_twice()

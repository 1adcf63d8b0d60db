"""Real agents that enrolled: attached over TLS, renewing by themselves, with clocks that are wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.serve import Serving
from edgefarm.credentials import load_identity
from tests.integration.serving import EnrolledAgent, enrolled, expired, join_address, serving, settings

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
DAY_MS = 86_400_000


@pytest.fixture
def clock_of_1970() -> dict[str, str]:
    if FAKETIME is None:
        pytest.skip("NOT TESTED: a device with a clock of 1970 comes back: needs libfaketime (apt-get install faketime)")
    return {"LD_PRELOAD": str(FAKETIME), "FAKETIME": "@1970-01-01 00:01:00", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "TZ": "UTC"}


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path / "controller") as made:
        yield made


def edge_agent(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env={**os.environ, **(environment or {})})


def attached(controller: Serving, agent: EnrolledAgent) -> None:
    assert controller.farm.wait_for_devices(["pi"], 60.0) == [], agent.output


def test_from_the_command_line(controller: Serving, tmp_path: Path) -> None:
    token = controller.registry.create_token("me")
    arguments = ("enroll", "--controller", join_address(controller), "--token", token, "--state", str(tmp_path / "pi"))
    done = edge_agent(*arguments, "--name", "pi")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"pi enrolled at {join_address(controller)}; it serves it with: edge-agent run")
    again = edge_agent(*arguments, "--name", "po")
    assert again.returncode == 2
    assert "is device 'pi' at" in again.stderr
    with EnrolledAgent(tmp_path / "pi") as agent:
        attached(controller, agent)
        controller.registry.revoke("pi")
        assert agent.process.wait(30) != 0
        assert "'pi' is revoked" in agent.output


def test_what_does_not_fit_the_identity_is_said(controller: Serving, tmp_path: Path) -> None:
    state = str(tmp_path / "pi")
    none = edge_agent("run", "--state", state)
    assert (none.returncode, "has not enrolled" in none.stderr, "edge-agent enroll" in none.stderr) == (2, True, True)
    elsewhere = edge_agent("run", "--state", state, "--controller", "farm.example:7443", "--name", "pi")
    assert (elsewhere.returncode, "enroll --controller farm.example:7443" in elsewhere.stderr) == (2, True)
    enrolled(controller, tmp_path / "pi" / "identity", "pi")
    for wrong, message in ((("--name", "po"), "enrolled as 'pi'"), (("--controller", "farm.example:7443"), "enrolled at 127.0.0.1")):
        refused = edge_agent("run", "--state", state, *wrong)
        assert (refused.returncode, message in refused.stderr) == (2, True), refused.stderr


def test_an_expired_certificate_is_renewed_by_itself(controller: Serving, tmp_path: Path) -> None:
    folder = tmp_path / "pi" / "identity"
    old = expired(controller, enrolled(controller, folder, "pi"), folder)
    with EnrolledAgent(tmp_path / "pi") as agent:
        attached(controller, agent)
    fresh = load_identity(folder)
    assert fresh is not None
    assert fresh.certificate_pem != old.certificate_pem


def test_a_device_that_was_off_and_has_no_clock_comes_back(controller: Serving, tmp_path: Path, clock_of_1970: dict[str, str]) -> None:
    """Its clock says 1970, and all that it has heard of is a time at which its certificate was fresh: nothing tells it to renew."""
    folder = tmp_path / "pi" / "identity"
    old = expired(controller, enrolled(controller, folder, "pi"), folder)
    (tmp_path / "pi" / "clock").write_text(str(old.not_before_unix_ms + 10 * DAY_MS))
    with EnrolledAgent(tmp_path / "pi", clock_of_1970) as agent:
        attached(controller, agent)
    assert "the certificate was renewed" in agent.output
    assert "1970-01-01 00:01" in agent.output
    assert int((tmp_path / "pi" / "clock").read_text()) > old.not_after_unix_ms


def test_a_device_without_a_clock_enrolls(controller: Serving, tmp_path: Path, clock_of_1970: dict[str, str]) -> None:
    arguments = ("--controller", join_address(controller), "--token", controller.registry.create_token("me"), "--name", "pi")
    done = edge_agent("enroll", *arguments, "--state", str(tmp_path / "pi"), environment=clock_of_1970)
    assert done.returncode == 0, done.stderr
    with EnrolledAgent(tmp_path / "pi", clock_of_1970) as agent:
        attached(controller, agent)


def test_it_renews_in_time_and_stays_attached(tmp_path: Path) -> None:
    with serving(tmp_path / "controller", settings(days=1 / 24 / 60)) as controller:  # of a minute; it began an hour ago: due at once
        folder = tmp_path / "pi" / "identity"
        first = enrolled(controller, folder, "pi")
        welcomed = threading.Event()
        with EnrolledAgent(tmp_path / "pi") as agent:
            attached(controller, agent)
            deadline = time.monotonic() + 60
            while (fresh := load_identity(folder)) is None or fresh.certificate_pem == first.certificate_pem:
                assert time.monotonic() < deadline, agent.output
                welcomed.wait(0.05)
            attached(controller, agent)
            assert agent.process.poll() is None

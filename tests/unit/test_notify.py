"""What the service manager is told: a real socket stands for it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import notify
from agent.notify import Notifier, Pulses


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(20)
        yield listening


def _environment(manager: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": manager.getsockname(), "OTHER": "x", **more}


def _said(manager: socket.socket) -> str:
    return manager.recv(4096).decode()


def test_it_says_ready_status_and_stopping(manager: socket.socket) -> None:
    environment = _environment(manager)
    notifier = Notifier(Pulses(), environment)
    assert environment == {"OTHER": "x"}
    notifier.ready("not attached")
    notifier.status("attached")
    notifier.status("attached")  # not said again
    notifier.stopping()
    assert [_said(manager) for _ in range(3)] == ["READY=1\nSTATUS=not attached", "STATUS=attached", "STOPPING=1"]


def test_an_abstract_socket_is_one_too() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        name = f"edgefarm-test-{os.getpid()}"
        listening.bind("\0" + name)
        listening.settimeout(20)
        Notifier(Pulses(), {"NOTIFY_SOCKET": "@" + name}).stopping()
        assert _said(listening) == "STOPPING=1"


def test_the_watchdog_is_fed_until_the_end(manager: socket.socket) -> None:
    pulses = Pulses()
    pulses.beat("worker")
    notifier = Notifier(pulses, _environment(manager, WATCHDOG_USEC="30000", WATCHDOG_PID=str(os.getpid())))
    notifier.ready("")
    assert _said(manager).startswith("READY=1")
    assert [_said(manager) for _ in range(5)] == ["WATCHDOG=1"] * 5
    notifier.stopping()
    while _said(manager) != "STOPPING=1":
        pass


def test_a_part_that_hangs_ends_the_feeding_and_is_named(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "HANG_S", 0.0)
    pulses = Pulses()
    pulses.beat("link")
    notifier = Notifier(pulses, _environment(manager, WATCHDOG_USEC="30000"))
    notifier.ready("attached")
    assert _said(manager).startswith("READY=1")
    assert _said(manager) == "STATUS=link hangs"
    monkeypatch.setattr(notify, "HANG_S", 60.0)  # it moves again
    assert _said(manager) == "WATCHDOG=1"
    notifier.stopping()


def test_which_part_hangs() -> None:
    pulses = Pulses()
    assert pulses.hanging(1e9) == ""
    pulses.beat("worker")
    assert pulses.hanging() == ""
    assert pulses.hanging(1e12) == "worker"


@pytest.mark.parametrize("more", [{}, {"WATCHDOG_USEC": "many"}, {"WATCHDOG_USEC": "30000", "WATCHDOG_PID": "1"}])
def test_a_watchdog_that_is_not_meant_is_not_fed(manager: socket.socket, more: dict[str, str]) -> None:
    environment = _environment(manager, **more)
    notifier = Notifier(Pulses(), environment)
    assert environment == {"OTHER": "x"}
    notifier.ready("")
    notifier.stopping()
    assert [_said(manager) for _ in range(2)] == ["READY=1\nSTATUS=", "STOPPING=1"]


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": "/nobody/listens"}])
def test_without_a_service_manager_nothing_happens(environment: dict[str, str], manager: socket.socket) -> None:
    notifier = Notifier(Pulses(), environment)
    notifier.ready("")
    notifier.status("x")
    notifier.stopping()
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(1)  # one that it was not told of hears nothing

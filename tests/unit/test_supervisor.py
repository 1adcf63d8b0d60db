"""The agent's parts, put together, without a controller."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import probe
from agent.supervisor import Config, Supervisor
from edgefarm import hostlock
from edgefarm.errors import StorageError, Unreachable
from edgefarm.model import Capability


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Supervisor]:
    made = Supervisor(Config(f"unix:{tmp_path}/nobody.sock", "dev", tmp_path / "dev", 1, lock=tmp_path / "lock"))
    yield made
    made.stop()


def test_it_probes_under_the_lock_that_it_was_told_and_no_other(agent: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    def usual() -> Path:
        raise AssertionError("the host's usual lock was not meant")

    monkeypatch.setattr(hostlock, "default_path", usual)
    monkeypatch.setattr("agent.supervisor._PROBE_AFTER_S", 0.0)
    agent._build()
    agent._probe()
    assert any(c.available for c in agent._device.capabilities)
    assert agent._probed


def test_a_disk_that_refuses_is_no_reason_to_end(agent: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Exception | tuple[Capability, ...]] = [OSError(28, "No space left on device", "/tmp"), Unreachable("no socket"), ()]

    def probed(*_: object, **__: object) -> tuple[Capability, ...]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("agent.supervisor._PROBE_AFTER_S", 0.0)
    monkeypatch.setattr("agent.supervisor._PROBE_AGAIN_S", 0.0)
    agent._build()
    monkeypatch.setattr(probe, "probe_capabilities", probed)
    agent._probe()
    assert agent._probed
    assert answers == []


def test_waiting_to_probe_ends_with_the_agent(agent: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.supervisor._PROBE_AFTER_S", 0.0)
    with hostlock.hold(exclusive=True, path=tmp_path / "lock") as held:
        assert held
        threading.Timer(0.2, agent.stop).start()
        agent.run()
    assert not agent._probed


@pytest.mark.parametrize("emulated", ["", "a virtual machine"])
def test_it_says_whether_it_is_emulated(agent: Supervisor, monkeypatch: pytest.MonkeyPatch, emulated: str) -> None:
    monkeypatch.setattr(probe, "emulation", lambda *_: emulated)
    agent._build()
    assert agent._device.emulated == bool(emulated)
    assert agent._device.fingerprint.get("emulated", "") == emulated


def test_it_ends_when_one_of_its_threads_does(agent: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    build = agent._build

    def sabotaged() -> None:
        build()
        monkeypatch.setattr(agent._slots, "stamp", broken)

    def broken() -> None:
        raise OSError(5, "Input/output error", "ledger.json")

    monkeypatch.setattr(agent, "_build", sabotaged)
    with pytest.raises(StorageError, match=r"ledger\.json: Input/output error"):
        agent.run()


def test_what_a_thread_meets_when_all_end_is_no_error(agent: Supervisor) -> None:
    agent.stop()
    agent._failed(ValueError("the channel is closed"))
    agent.run()
    assert agent._error is None

"""When a device renews its certificate; that it does is tested with real processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agent import renewal
from agent.clock import Clock
from agent.renewal import Renewal
from edgefarm.credentials import Identity, save_identity, save_key

NOW_MS = 1_800_000_000_000
DAY_MS = 86_400_000
FRESH = Identity("device", "pi", "127.0.0.1:1", "127.0.0.1:2", "KEY", "OLD", "CA", NOW_MS - 10 * DAY_MS, NOW_MS + 20 * DAY_MS)
OLD = replace(FRESH, not_before_unix_ms=NOW_MS - 20 * DAY_MS, not_after_unix_ms=NOW_MS + 10 * DAY_MS)


class Device:
    """A device with a renewal in a thread. `child` stands for the process that renews."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.asked, self.renewed, self.hurried = threading.Event(), threading.Event(), threading.Event()
        self.asks = 0
        self.answers = True
        self.on_ask: Callable[[], None] = lambda: None
        self.child: Callable[[], None] = self.succeed
        monkeypatch.setattr(renewal, "_answers", self._answers)
        monkeypatch.setattr(renewal, "_FIRST_PAUSE_S", 0.001)
        self.renewal = Renewal(folder, folder, Clock(folder / "clock", system=lambda: NOW_MS), self.renewed.set, self.hurried.set)
        monkeypatch.setattr(self.renewal, "_renew", lambda: self.child())
        self.thread = threading.Thread(target=self.renewal.run)

    def _answers(self, address: str) -> bool:
        assert address == "127.0.0.1:1"
        self.asks += 1
        self.on_ask()
        self.asked.set()
        return self.answers

    def succeed(self) -> None:
        save_identity(self.folder, replace(FRESH, certificate_pem="NEW"))

    def start(self, identity: Identity) -> None:
        save_key(self.folder, identity.key_pem)
        save_identity(self.folder, identity)
        self.thread.start()


def unwanted() -> None:
    raise AssertionError("nothing is to be renewed")


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    made = Device(tmp_path, monkeypatch)
    yield made
    made.renewal.stop()
    if made.thread.ident is not None:
        made.thread.join(20)
        assert not made.thread.is_alive()


def test_after_two_thirds_of_its_life(device: Device) -> None:
    device.start(OLD)
    assert device.renewed.wait(20)


def test_a_fresh_one_is_renewed_only_after_refusals_in_a_row(device: Device) -> None:
    device.start(FRESH)
    for _ in range(2):
        device.renewal.refused()
    assert not device.asked.wait(0.05)
    device.renewal.attached()
    for _ in range(2):
        device.renewal.refused()
    assert not device.asked.wait(0.05)
    device.renewal.refused()
    assert device.hurried.wait(20), "the network may have been away: the link tries once more"
    assert not device.renewed.is_set()
    device.renewal.refused()
    assert device.renewed.wait(20)


def test_nothing_is_renewed_where_only_the_network_was_away(device: Device) -> None:
    device.answers, device.child = False, unwanted
    device.start(FRESH)
    for _ in range(5):
        device.renewal.refused()
    assert device.asked.wait(20)
    device.answers = True
    assert device.hurried.wait(20)
    device.renewal.attached()
    device.hurried.clear()
    for _ in range(3):
        device.renewal.refused()
    assert device.hurried.wait(20), "a later break is another one"
    assert not device.renewed.is_set()


def test_a_device_that_attached_meanwhile_is_left_alone(device: Device) -> None:
    device.child, device.on_ask = unwanted, lambda: device.renewal.attached()
    device.start(FRESH)
    for _ in range(3):
        device.renewal.refused()
    assert device.asked.wait(20)
    device.renewal.stop()
    device.thread.join(20)
    assert not device.hurried.is_set()


def test_no_process_is_started_where_nobody_answers(device: Device) -> None:
    device.answers, device.child = False, unwanted
    device.start(OLD)
    while device.asks < 3:
        device.asked.clear()
        assert device.asked.wait(20)
    assert device.thread.is_alive()
    assert not device.renewed.is_set()
    device.child, device.answers = device.succeed, True
    assert device.renewed.wait(20)


def test_one_that_failed_is_tried_again(device: Device) -> None:
    tries: list[int] = []

    def third_time() -> None:
        tries.append(1)
        if len(tries) == 3:
            device.succeed()

    device.child = third_time
    device.start(OLD)
    assert device.renewed.wait(20)
    assert len(tries) == 3


def test_who_has_no_identity_any_more_renews_nothing(device: Device) -> None:
    device.thread.start()
    device.thread.join(20)
    assert not device.thread.is_alive()

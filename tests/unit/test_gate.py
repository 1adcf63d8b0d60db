"""When a launch may begin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bench import gate
from agent.bench.gate import Gate, Start, default_limit, hottest_zone
from agent.sensors import Observation, Reading
from tests.fixtures.trees import BARE, LAPTOP, ORIN, PI4, PI5, RK3588, plant


class FakeRoom:
    """A clock and a device whose temperature is a function of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, celsius: Callable[[float], float | None]) -> None:
        self.now = 0.0
        self._celsius = celsius
        monkeypatch.setattr(gate, "collect", self._collect)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 1e-3)

    def _collect(self, root: Path, names: object) -> list[Observation]:
        value = self._celsius(self.now)
        return [] if value is None else [Reading("temperature_celsius", "cpu-thermal", value)]

    def wait(self, gate_: Gate, cancelled: Callable[[], bool] = lambda: False) -> Start | None:
        return gate_.wait(Path("/nowhere"), cancelled)


def _gate(room: FakeRoom, below: float = 60.0, most_s: float = 120.0) -> Gate:
    return Gate(below, most_s, room.clock, room.sleep)


def test_a_cool_device_begins_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    room = FakeRoom(monkeypatch, lambda now: 60.0)
    assert room.wait(_gate(room)) == Start("cool", "cpu-thermal", 60.0, 60.0, 0.0)


def test_a_hot_one_waits_until_it_is_cool(monkeypatch: pytest.MonkeyPatch) -> None:
    room = FakeRoom(monkeypatch, lambda now: 75.0 - now / 2)
    start = room.wait(_gate(room))
    assert start is not None
    assert start.state == "cool"
    assert start.celsius == pytest.approx(60.0, abs=0.51)
    assert start.waited_s == pytest.approx(30.0, abs=1.1)


def test_a_wait_that_ran_out_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    room = FakeRoom(monkeypatch, lambda now: 95.0 - now / 10)
    start = room.wait(_gate(room, most_s=40.0))
    assert start is not None
    assert (start.state, start.detail) == ("hot", "still above the limit after 40 s")
    assert start.waited_s == pytest.approx(40.0, abs=0.1)
    assert start.settings()["start"] == "hot"
    assert start.settings()["start_temperature_celsius"] == "91.0"


def test_it_does_not_wait_for_what_will_not_come_and_remembers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    room = FakeRoom(monkeypatch, lambda now: 72.0)
    guarded = _gate(room)
    first = room.wait(guarded)
    assert first is not None
    assert (first.state, first.detail) == ("hot", "no cooler for 30 s")
    second = room.wait(guarded)
    assert second is not None
    assert (second.state, second.waited_s) == ("hot", 0.0)
    room.now += 3600.0  # by then the room may be another
    third = room.wait(guarded)
    assert third is not None
    assert third.waited_s == pytest.approx(30.0, abs=1.1)


def test_no_temperature_means_no_wait_and_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    room = FakeRoom(monkeypatch, lambda now: None)
    start = room.wait(_gate(room))
    assert start is not None
    assert (start.state, start.celsius, start.waited_s) == ("unknown", None, 0.0)
    assert "without waiting" in start.settings()["start_detail"]


def test_a_wait_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    room = FakeRoom(monkeypatch, lambda now: 90.0)
    assert room.wait(_gate(room), lambda: room.now > 3.0) is None
    assert room.now == pytest.approx(3.0, abs=0.2)


@given(
    temperatures=st.lists(st.floats(20, 110), min_size=1, max_size=20),
    below=st.floats(20, 110),
    most_s=st.floats(0, 200),
    step=st.floats(1, 30),
)
def test_it_always_ends_in_time_and_never_calls_a_hot_device_cool(
    temperatures: list[float], below: float, most_s: float, step: float
) -> None:  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        room = FakeRoom(patch, lambda now: temperatures[min(int(now / step), len(temperatures) - 1)])
        start = room.wait(_gate(room, below, most_s))
    assert start is not None
    assert start.waited_s <= most_s + 0.01
    assert start.celsius is not None
    assert (start.state == "cool") == (start.celsius <= below)


def test_the_limit_lies_below_what_the_device_throttles_at(tmp_path: Path) -> None:
    trees = {"pi4": PI4, "pi5": PI5, "orin": ORIN, "rk3588": RK3588, "bare": BARE}
    limits = {name: default_limit(plant(tree, tmp_path / name)) for name, tree in trees.items()}
    assert limits == {"pi4": 65.0, "pi5": 65.0, "orin": 84.0, "rk3588": 60.0, "bare": 65.0}


def test_the_hottest_chip_counts_not_the_room(tmp_path: Path) -> None:
    assert hottest_zone(plant(LAPTOP, tmp_path / "laptop")) == ("coretemp/Package id 0", 51.0)
    assert hottest_zone(plant(ORIN, tmp_path / "orin")) == ("tj-thermal", 52.625)
    assert hottest_zone(plant(BARE, tmp_path / "bare")) is None
    tree = {"sys/class/thermal/thermal_zone0/type": "battery\n", "sys/class/thermal/thermal_zone0/temp": "61000\n"}
    assert hottest_zone(plant(tree, tmp_path / "battery")) is None
    tree |= {"sys/class/thermal/thermal_zone1/type": "acpitz\n", "sys/class/thermal/thermal_zone1/temp": "44000\n"}
    assert hottest_zone(plant(tree, tmp_path / "acpi")) == ("acpitz", 44.0)

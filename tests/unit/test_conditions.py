"""What surrounded a measurement."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from agent.bench import conditions
from agent.bench.conditions import Watch
from edgefarm.model import Trace
from tests.fixtures.trees import BARE, LAPTOP, PI4, VIRTUAL, plant


class FakeTime:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds

    def monotonic_ns(self) -> int:
        return round(self.seconds * 1e9)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    fake = FakeTime()
    monkeypatch.setattr(conditions, "time", fake)
    monkeypatch.setattr(conditions, "_own_cpu", lambda: 0.0)
    return fake


def _set_temperature(root: Path, milli: int) -> None:
    (root / "sys/class/thermal/thermal_zone0/temp").write_text(f"{milli}\n")


def test_a_runner_that_died_at_once_is_followed_no_further(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    watch = Watch(plant(PI4, tmp_path))
    watch.follow(process.pid)
    watch.leave()
    assert watch.conditions().traces


def test_traces_are_sampled_every_200_ms(tmp_path: Path, clock: FakeTime) -> None:
    watch = Watch(plant(PI4, tmp_path))
    for milli in (60_000, 85_000, 70_000):
        _set_temperature(tmp_path, milli)
        for _ in range(4):
            clock.seconds += 0.05
            watch.tick()
    _set_temperature(tmp_path, 71_000)
    found = watch.conditions()
    assert Trace("temperature_celsius", "cpu-thermal", 5, 80.277, 60.0, 85.0, 71.0) in found.traces
    assert not [t for t in found.traces if t.quantity.endswith(("_total", "_total_bytes")) or t.quantity == "throttled"]


def test_throttling_is_remembered_with_its_reasons(tmp_path: Path, clock: FakeTime) -> None:
    root = plant(LAPTOP, tmp_path)
    watch = Watch(root)
    state = root / "sys/class/thermal/cooling_device0/cur_state"
    for value in ("3\n", "0\n"):  # it ends before the measurement does
        state.write_text(value)
        clock.seconds += 0.3
        watch.tick()
    (root / "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count").write_text("6\n")
    found = watch.conditions()
    assert found.throttled == ("cooling: Processor#0", "cpu0/core: 2 thermal events")
    assert found.settings["governor"] == "performance+powersave"


def test_the_cpu_time_of_others_is_what_is_left(tmp_path: Path, clock: FakeTime) -> None:
    root = plant(VIRTUAL, tmp_path)
    watch = Watch(root)
    # 2 s later: 3 s more of user time, 0.5 s of steal, 0.5 s idle
    (root / "proc/stat").write_text("cpu  1300 50 500 8050 200 30 20 150 0 0\n")
    clock.seconds += 2.0
    watch.follow(os.getpid())
    watch._runners_cpu = 1.0  # what runners of ours took
    found = watch.conditions()
    assert found.others_cpu == pytest.approx((3.0 - 1.0) / 2.0)
    assert found.steal == pytest.approx(0.5 / 4.0)


def test_a_runners_time_is_ours(tmp_path: Path) -> None:
    watch = Watch(plant(VIRTUAL, tmp_path))
    watch.follow(os.getpid())
    watch.leave()
    assert watch._runners_cpu > 0
    watch.leave()
    assert watch._runner is None


def test_what_cannot_be_read_is_said_and_never_zero(tmp_path: Path, clock: FakeTime) -> None:
    found = Watch(plant(BARE, tmp_path)).conditions()
    assert found.others_cpu is None
    assert found.steal is None
    assert {"others_cpu", "steal", "temperature_celsius", "frequency_hertz", "throttled", "governor", "power_source"} <= set(
        found.unavailable
    )
    assert {t.quantity for t in found.traces} == {"disk_free_bytes"}
    assert found.settings["python"]
    assert found.settings["affinity"]


def test_sensors_without_numbers_are_asked_once(tmp_path: Path, clock: FakeTime) -> None:
    watch = Watch(plant(VIRTUAL, tmp_path))
    assert set(watch._sampled) == {"cpu", "memory", "disk"}

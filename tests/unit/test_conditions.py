"""What surrounded a measurement."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from agent.bench import competition, conditions
from agent.bench.affinity import Cores
from agent.bench.conditions import Watch
from edgefarm.model import Trace
from tests.fixtures.trees import BARE, LAPTOP, ORIN, PI4, VIRTUAL, plant


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
    monkeypatch.setattr(competition, "time", fake)
    monkeypatch.setattr(competition, "_own_cpu", lambda: 0.0)
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
    assert found.throttled == ("cooling: Processor#0", "cpu0/core: 2 events")
    assert found.settings["governor"] == "performance+powersave"


def test_the_cpu_time_of_others_is_what_is_left(tmp_path: Path, clock: FakeTime) -> None:
    root = plant(VIRTUAL, tmp_path)
    watch = Watch(root)
    # 2 s later: 3 s more of user time, 0.5 s of steal, 0.5 s idle
    (root / "proc/stat").write_text("cpu  1300 50 500 8050 200 30 20 150 0 0\n")
    clock.seconds += 2.0
    watch._competition._runners_cpu = 1.0  # what runners of ours took
    found = watch.conditions()
    assert found.others_cpu == pytest.approx((3.0 - 1.0) / 2.0)
    assert found.steal == pytest.approx(0.5 / 4.0)


def test_a_runners_time_is_ours(tmp_path: Path) -> None:
    watch = Watch(plant(VIRTUAL, tmp_path))
    watch.follow(os.getpid())
    watch.leave()
    assert watch._competition._runners_cpu > 0
    watch.leave()
    assert watch._competition._runner is None


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
    assert set(watch._told) >= {"cpu", "memory", "disk"}
    assert watch._sampled == []


class FakeProc:
    """The part of /proc that is about one runner."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = root / "of-runner" / str(os.getpid())
        self._folder.mkdir(parents=True)
        monkeypatch.setattr(competition, "_PROC", self._folder.parent)
        self.set()

    def set(self, ran_s: float = 0.0, waited_s: float = 0.0, state: str = "R") -> None:
        (self._folder / "schedstat").write_text(f"{round(ran_s * 1e9)} {round(waited_s * 1e9)} 17\n")
        (self._folder / "stat").write_text(f"{os.getpid()} (a runner) {state} 1 1 1 0\n")


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: FakeTime) -> FakeProc:
    return FakeProc(tmp_path, monkeypatch)


def test_how_long_a_runner_waited_for_a_cpu(tmp_path: Path, clock: FakeTime, runner: FakeProc) -> None:
    watch = Watch(plant(VIRTUAL, tmp_path))
    watch.follow(os.getpid())
    for ran_s, waited_s in ((0.20, 0.00), (0.25, 0.15), (0.45, 0.15)):  # the second window: 50 ms of 200 on a CPU
        clock.seconds += 0.21
        runner.set(ran_s, waited_s)
        watch.tick()
    watch.leave()
    found = watch.conditions()
    assert found.waited == pytest.approx(0.25)
    (windows,) = (t for t in found.traces if t.quantity == "waiting_ratio")
    assert (windows.n, windows.low) == (3, 0.0)
    assert windows.high == pytest.approx(0.75)


def test_a_runner_that_is_stopped_is_seen(tmp_path: Path, clock: FakeTime, runner: FakeProc) -> None:
    def stopped(states: str) -> list[str]:
        watch = Watch(plant(VIRTUAL, tmp_path))
        watch.follow(os.getpid())
        for state in states:
            runner.set(0.1, 0.0, state)
            clock.seconds += 0.05
            watch.tick()
        return [t.quantity for t in watch.conditions().traces if t.quantity == "runner_stopped"]

    assert stopped("RSTRR") == ["runner_stopped"]
    assert stopped("RSRDR") == []


def test_the_worst_window_of_others(tmp_path: Path, clock: FakeTime, runner: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(competition.Competition, "_read", lambda self: None)  # the runner itself takes nothing
    watch = Watch(plant(VIRTUAL, tmp_path))
    watch.follow(os.getpid())
    for user in (1000, 1030, 1030, 1030):  # ticks of 10 ms: 0.3 s of CPU in the second window
        (tmp_path / "proc/stat").write_text(f"cpu  {user} 50 500 8000 200 30 20 100 0 0\n")
        clock.seconds += 0.25
        watch.tick()
    found = watch.conditions()
    assert found.others_cpu_peak == pytest.approx(1.2)
    assert found.others_cpu == pytest.approx(0.3)


def test_the_frequency_of_a_busy_core_is_followed_and_one_glitch_is_no_drop(tmp_path: Path, clock: FakeTime, runner: FakeProc) -> None:
    root = plant(ORIN, tmp_path)
    watch = Watch(root, Cores((2,), "2", pinned=True))
    current = root / "sys/devices/system/cpu/cpu2/cpufreq/scaling_cur_freq"
    watch.follow(os.getpid())
    ran_s = 0.0

    def window(kilohertz: int, busy_s: float = 0.21) -> None:
        nonlocal ran_s
        ran_s += busy_s
        runner.set(ran_s)
        current.write_text(f"{kilohertz}\n")
        clock.seconds += 0.21
        watch.tick()

    for kilohertz in (1510400, 1510400, 755200, 1510400, 1510400):
        window(kilohertz)
    for _ in range(5):
        window(115200, busy_s=0.01)  # it rests
    steady = next(t for t in watch.conditions().traces if t.quantity == "busy_frequency_ratio")
    assert (steady.low, steady.high) == (1.0, 1.0)
    for _ in range(3):
        window(755200)
    dropped = next(t for t in watch.conditions().traces if t.quantity == "busy_frequency_ratio")
    assert (dropped.low, dropped.high) == (0.5, 1.0)


def test_a_firmware_flag_that_rises_meanwhile_is_an_event_and_an_old_one_is_not(tmp_path: Path, clock: FakeTime) -> None:
    root = plant(PI4, tmp_path)
    flags = root / "sys/devices/platform/soc/soc:firmware/get_throttled"
    flags.write_text("10000\n")  # under-voltage before
    (root / "sys/class/thermal/cooling_device0/cur_state").write_text("0\n")
    watch = Watch(root)
    clock.seconds += 0.3
    watch.tick()
    assert watch.conditions().throttled == ()
    for bits in ("0", "10000", "40000"):
        flags.write_text(f"{bits}\n")
        clock.seconds += 0.3
        watch.tick()
    assert watch.conditions().throttled == ("firmware: throttled by firmware: 1 events", "firmware: under-voltage: 1 events")


def test_over_current_events_of_a_jetson_count_from_the_beginning(tmp_path: Path, clock: FakeTime) -> None:
    root = plant(ORIN, tmp_path)
    watch = Watch(root)
    (root / "sys/class/hwmon/hwmon4/oc3_event_cnt").write_text("15\n")
    assert watch.conditions().throttled == ("over-current: oc3: 3 events",)


def test_the_affinity_that_is_recorded_is_the_runners(tmp_path: Path) -> None:
    mine = min(os.sched_getaffinity(0))
    watch = Watch(plant(VIRTUAL, tmp_path), Cores((mine,), "big", pinned=True))
    with subprocess.Popen(["sleep", "60"]) as process:
        os.sched_setaffinity(process.pid, {mine})
        watch.follow(process.pid)
        watch.leave()
        process.kill()
    assert watch.conditions().settings["affinity"] == f"{mine} (big)"
    assert "affinity" not in watch.conditions().unavailable


def test_another_affinity_than_the_wanted_is_said(tmp_path: Path) -> None:
    watch = Watch(plant(VIRTUAL, tmp_path), Cores((4097,), "4097", pinned=True))
    watch.follow(os.getpid())
    watch.leave()
    assert watch.conditions().settings["affinity"] == str(Cores.allowed())
    assert "cores 4097 were asked for" in watch.conditions().unavailable["affinity"]

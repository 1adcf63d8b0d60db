"""What every sensor owes, on several boards: numbers with units, or a reason; never an invented 0, never an exception.

A new sensor: one more line in GIVES.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.sensors import SENSORS, Absent, Observation, Reading, Setting, collect, collect_by_sensor, load_sensor
from tests.fixtures.trees import BARE, LAPTOP, ORIN, PI4, PI5, RK3588, VIRTUAL, plant

# sensor -> all quantities that it gives, or says are absent, everywhere
GIVES: dict[str, set[str]] = {
    "cpu": {"load_1m", "cpu_busy_seconds_total", "cpu_steal_seconds_total"},
    "memory": {"memory_total_bytes", "memory_available_bytes", "swap_free_bytes"},
    "disk": {"disk_free_bytes", "disk_total_bytes"},
    "temperature": {"temperature_celsius"},
    "frequency": {"frequency_hertz", "frequency_limit_hertz", "frequency_max_hertz"},
    "throttling": {"throttled", "throttled_before", "throttle_events_total", "cooling_ratio"},
    "firmware": {"throttled", "throttled_before"},
    "power": {"power_source", "battery_charge_ratio"},
    "rails": {"power_watts", "energy_joules_total"},
    "governor": {"governor", "frequency_driver", "power_profile", "boost"},
}
TREES = {"pi4": PI4, "pi5": PI5, "orin": ORIN, "rk3588": RK3588, "laptop": LAPTOP, "virtual": VIRTUAL, "bare": BARE}
UNITS = ("_total", "_bytes", "_celsius", "_hertz", "_ratio", "_1m", "_watts")


def test_every_row_of_the_table_has_its_contract() -> None:
    assert set(GIVES) == set(SENSORS)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("name", SENSORS)
def test_contract(name: str, tree: str, tmp_path: Path) -> None:
    found = load_sensor(name).read(plant(TREES[tree], tmp_path))
    assert found, "a sensor that has nothing says so"
    assert {o.quantity for o in found} <= GIVES[name]
    for observation in found:
        if isinstance(observation, Absent):
            assert observation.reason
        elif isinstance(observation, Setting):
            assert observation.value
        else:
            assert observation.quantity.endswith(UNITS) or observation.quantity.startswith("throttled")
    numbers = [(o.quantity, o.source) for o in found if isinstance(o, Reading)]
    assert len(numbers) == len(set(numbers)), "two readings of one name cannot be told apart"


@pytest.mark.parametrize("name", [n for n in SENSORS if n != "disk"])
def test_nothing_there_means_absent(name: str, tmp_path: Path) -> None:
    assert all(isinstance(o, Absent) for o in load_sensor(name).read(tmp_path))


@pytest.mark.parametrize("name", SENSORS)
def test_garbage_never_raises(name: str, tmp_path: Path) -> None:
    plant(dict.fromkeys({**PI4, **LAPTOP}, "garbage ::\n"), tmp_path)
    assert list(collect_by_sensor(tmp_path, [name])) == [name]


@pytest.mark.parametrize("name", SENSORS)
def test_this_machine(name: str) -> None:
    assert load_sensor(name).read(Path("/"))


def test_a_sensor_that_fails_is_absent_with_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(root: Path) -> list[Observation]:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(load_sensor("memory"), "read", broken)
    found = collect(tmp_path, ["memory", "disk"])
    assert found[0] == Absent("memory", "OSError: [Errno 5] Input/output error")
    assert len(found) == 3


def _numbers(tree: dict[str, str], root: Path, quantity: str) -> dict[str, float]:
    return {o.source: o.value for o in collect(plant(tree, root)) if isinstance(o, Reading) and o.quantity == quantity}


def _settings(tree: dict[str, str], root: Path) -> dict[str, str]:
    return {o.quantity: o.value for o in collect(plant(tree, root)) if isinstance(o, Setting)}


def test_pi4_values(tmp_path: Path) -> None:
    assert _numbers(PI4, tmp_path, "temperature_celsius") == {"cpu-thermal": 80.277}
    assert _numbers(PI4, tmp_path, "frequency_hertz") == {f"cpu{n}": 1.5e9 for n in range(4)}
    assert _numbers(PI4, tmp_path, "frequency_limit_hertz")["cpu3"] == 1.8e9
    assert _numbers(PI4, tmp_path, "memory_available_bytes") == {"": 2936012 * 1024.0}
    assert _numbers(PI4, tmp_path, "throttled") == {
        "cooling: cpufreq-cpu0#0": 1.0,  # and not the fan
        "firmware: under-voltage": 1.0,
        "firmware: frequency capped": 0.0,
        "firmware: throttled by firmware": 1.0,
        "firmware: soft temperature limit": 0.0,
    }
    assert _numbers(PI4, tmp_path, "throttled_before") == {
        "firmware: under-voltage": 1.0,
        "firmware: frequency capped": 0.0,
        "firmware: throttled by firmware": 1.0,
        "firmware: soft temperature limit": 0.0,
    }
    assert _numbers(PI4, tmp_path, "cooling_ratio") == {"cpufreq-cpu0#0": 2 / 13}
    assert _settings(PI4, tmp_path) == {"governor": "ondemand", "frequency_driver": "cpufreq-dt"}


def test_pi5_values(tmp_path: Path) -> None:
    assert _numbers(PI5, tmp_path, "throttled") == {"rpi_volt: under-voltage": 1.0}
    assert _numbers(PI5, tmp_path, "temperature_celsius") == {"cpu-thermal": 61.7, "cpu_thermal/temp1": 61.7}


def test_orin_values(tmp_path: Path) -> None:
    assert _numbers(ORIN, tmp_path, "throttled") == {"cooling: cpu-throttle-alert#0": 0.0, "cooling: devfreq-17000000.gpu#2": 0.0}
    assert _numbers(ORIN, tmp_path, "throttle_events_total") == {"over-current: oc1": 0.0, "over-current: oc3": 12.0}
    assert _numbers(ORIN, tmp_path, "frequency_max_hertz")["cpu5"] == 1510.4e6


def test_cores_of_one_policy_share_its_files(tmp_path: Path) -> None:
    policy = tmp_path / "sys/devices/system/cpu/cpufreq/policy0"
    plant({"sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1400000\n"}, tmp_path)
    for number in range(4):
        core = tmp_path / f"sys/devices/system/cpu/cpu{number}"
        core.mkdir()
        (core / "cpufreq").symlink_to(policy)
    found = load_sensor("frequency").read(tmp_path)
    assert [o for o in found if isinstance(o, Reading)] == [Reading("frequency_hertz", f"cpu{n}", 1.4e9) for n in range(4)]


_REASONS = ("under-voltage", "frequency capped", "throttled by firmware", "soft temperature limit")


@pytest.mark.parametrize(
    ("answer", "now", "before"),
    [
        ("0x50005", (1, 0, 1, 0), (1, 0, 1, 0)),
        ("0x0", (0, 0, 0, 0), (0, 0, 0, 0)),
        ("0xa0008", (0, 0, 0, 1), (0, 1, 0, 1)),
    ],
)
def test_vcgencmd_is_asked_where_the_kernel_does_not_tell(
    tmp_path: Path, answer: str, now: tuple[int, ...], before: tuple[int, ...]
) -> None:  # fmt: skip
    found = load_sensor("firmware").read(_vcgencmd(tmp_path, f"echo throttled={answer}"))
    for quantity, flags in (("throttled", now), ("throttled_before", before)):
        told = {o.source: o.value for o in found if isinstance(o, Reading) and o.quantity == quantity}
        assert told == {f"firmware: {reason}": float(flag) for reason, flag in zip(_REASONS, flags)}


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo VCHI initialization failed; exit 255", "VCHI initialization failed"),
        ("echo error=1 error_msg=Command not registered", "error=1"),
        ("exit 3", "exit status 3"),
    ],
)
def test_a_vcgencmd_that_fails_is_absent_with_what_it_said(tmp_path: Path, script: str, reason: str) -> None:
    (found,) = load_sensor("firmware").read(_vcgencmd(tmp_path, script))
    assert isinstance(found, Absent)
    assert reason in found.reason


def test_vcgencmd_is_not_started_where_sysfs_tells(tmp_path: Path) -> None:
    _vcgencmd(plant(PI4, tmp_path), f"touch {tmp_path}/started; echo throttled=0x0")
    assert all(isinstance(o, Absent) for o in load_sensor("firmware").read(tmp_path))
    assert not (tmp_path / "started").exists()


def _vcgencmd(root: Path, script: str) -> Path:
    plant({"usr/bin/vcgencmd": f'#!/bin/sh\n[ "$1" = get_throttled ] || exit 9\n{script}\n'}, root)
    (root / "usr/bin/vcgencmd").chmod(0o755)
    return root


def test_laptop_values(tmp_path: Path) -> None:
    assert _numbers(LAPTOP, tmp_path, "temperature_celsius") == {"acpitz#0": 25.0, "coretemp/Package id 0": 51.0}  # -274 °C is no reading
    assert _numbers(LAPTOP, tmp_path, "throttled") == {"cooling: Processor#0": 0.0, "cooling: intel_powerclamp#9": 0.0}
    assert _numbers(LAPTOP, tmp_path, "throttle_events_total") == {"cpu0/core": 4.0, "cpu0/package": 7.0}
    assert _numbers(LAPTOP, tmp_path, "battery_charge_ratio") == {"BAT0": 0.87}  # and not the mouse's
    assert list(_numbers(LAPTOP, tmp_path, "frequency_hertz")) == ["cpu0", "cpu10"]
    assert _settings(LAPTOP, tmp_path) == {
        "governor": "performance+powersave", "power_profile": "balanced", "boost": "on", "power_source": "battery",
    }  # fmt: skip


def test_cpu_times_are_seconds(tmp_path: Path) -> None:
    assert _numbers(VIRTUAL, tmp_path, "cpu_busy_seconds_total") == {"": 16.0}  # 100 ticks a second; idle and steal are not busy
    assert _numbers(VIRTUAL, tmp_path, "cpu_steal_seconds_total") == {"": 1.0}

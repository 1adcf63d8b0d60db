"""Real launches that are disturbed on purpose end in a bad verdict with the right name; others are never called throttled."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from agent.bench.affinity import Cores
from agent.bench.gate import Gate
from agent.bench.site import Surroundings
from controller.doubts import spoilt
from controller.verdicts import verdict
from edgefarm.model import Verdict
from tests.fakes import disturber
from tests.integration.disturbed_place import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_undisturbed_launches_are_not_called_throttled_and_record_their_start(place: Place) -> None:
    launches = place.launches(contextlib.nullcontext)
    found, detail = verdict(launches)
    assert found is not Verdict.THROTTLED, detail
    settings = launches[0].conditions.settings
    assert (settings["start"], settings["start_zone"], settings["start_temperature_celsius"]) == ("cool", "cpu-thermal", "48.0")
    traced = {t.quantity for t in launches[0].conditions.traces}
    assert traced >= {"temperature_celsius", "frequency_hertz", "cooling_ratio", "waiting_ratio"}


def test_a_frequency_that_falls_while_it_measures(place: Place) -> None:
    found, detail = verdict(place.launches(lambda: disturber.falling_frequency(place.root), bursts=100))
    assert found is Verdict.THROTTLED
    assert "frequency fell from 100% to 50%" in detail


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("sys/devices/platform/soc/soc:firmware/get_throttled", "10001\n", "firmware: under-voltage"),
        ("sys/class/thermal/cooling_device0/cur_state", "4\n", "cooling: cpufreq-cpu0#0"),
        ("sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", "3\n", "cpu0/core"),
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "1200000\n", "limit of cpu0's frequency"),
    ],
)
def test_a_flag_that_is_raised_for_a_moment(place: Place, file: str, content: str, reason: str) -> None:
    path = place.root / file
    found, detail = verdict(place.launches(lambda: disturber.raised_flag(path, content, path.read_text(), 0.3, 0.5)))
    assert found is Verdict.THROTTLED
    assert reason in detail


def test_processes_that_take_the_cpu(place: Place) -> None:
    launches = place.launches(disturber.stress)
    found, detail = verdict(launches)
    assert found is Verdict.INTERFERED, detail
    doubt = spoilt(launches[-1])
    assert doubt is not None
    assert doubt.verdict is Verdict.INTERFERED


def test_a_runner_that_is_stopped_for_a_moment(place: Place) -> None:
    launches = place.launches(disturber.stopped_runner)
    found, detail = verdict(launches)
    assert found is Verdict.INTERFERED
    assert "stopped by a signal" in detail


def test_the_runner_measures_on_the_cores_that_were_asked_for(place: Place) -> None:
    core = max(os.sched_getaffinity(0))
    pinned = replace(place.site, surroundings=Surroundings(Cores((core,), "big", pinned=True)))
    assert place.launch(0, pinned).conditions.settings["affinity"] == f"{core} (big)"


def test_a_launch_waits_for_the_device_to_cool_and_that_is_not_its_time(place: Place) -> None:
    zone = place.root / "sys/class/thermal/thermal_zone0/temp"
    zone.write_text("80000\n")

    def cool(seconds: float) -> None:
        zone.write_text("50000\n")

    cooled = replace(place.site, surroundings=Surroundings(gate=Gate(sleep=cool)))
    conditions = place.launch(0, cooled).conditions
    assert (conditions.settings["start"], conditions.settings["start_temperature_celsius"]) == ("cool", "50.0")
    zone.write_text("80000\n")
    impatient = replace(place.site, surroundings=Surroundings(gate=Gate(most_s=0.0)))
    conditions = place.launch(0, impatient).conditions
    assert conditions.settings["start"] == "hot"
    assert "still above the limit" in conditions.settings["start_detail"]


def test_the_governor_is_set_while_it_measures_and_given_back(place: Place, tmp_path: Path) -> None:
    file = place.root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"
    file.write_text("schedutil\n")
    governed = replace(place.site, surroundings=Surroundings(governor="performance", governor_file=tmp_path / "governor.json"))
    conditions = place.launch(0, governed).conditions
    assert conditions.settings["governor"] == "performance"
    assert file.read_text() == "schedutil"
    refused = replace(place.site, surroundings=Surroundings(governor="turbo", governor_file=tmp_path / "governor.json"))
    (file.parent / "scaling_available_governors").write_text("performance schedutil\n")
    assert "is no governor of this device" in place.launch(0, refused).conditions.unavailable["governor_set"]

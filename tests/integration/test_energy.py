"""Real energy passes: a real model in a real runner, a fake current monitor beside it."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent.bench import energy
from agent.bench.energy import measure_energy
from agent.bench.site import Measured, Site
from agent.power import Meter, shelly
from agent.runner.process import Cancelled, Reply, RunnerProcess
from edgefarm.energy.estimate import Progress, Window, estimate
from edgefarm.model import (
    Artifact,
    Candidate,
    Contender,
    EnergyResult,
    EnergyWork,
    Failure,
    FailureKind,
    FileEntry,
    Limits,
    Scenario,
)
from tests import zoo
from tests.fakes.power import BUSY_WATTS, IDLE_WATTS, WRAPS_AT, FakeMonitor
from tests.fakes.web import serving

_SECOND = 10**9


@pytest.fixture
def place(tmp_path: Path) -> Site:
    (tmp_path / "scratch").mkdir()
    return Site(tmp_path / "scratch", lock=tmp_path / "lock", sensors_root=tmp_path / "root")


def _measure(place: Site, folder: Path, build: Any = zoo.dense, limits: Limits | None = None, **how: Any) -> Measured:
    (folder / "model").mkdir()
    (folder / "like it").mkdir()
    path = build(folder / "model")
    digest = "sha256:" + "0" * 64
    artifact = Artifact(digest, path.stat().st_size, "onnx", (FileEntry("model.onnx", digest, path.stat().st_size),))
    shard = zoo.write_shard(folder / "inputs.npz", zoo.dense(folder / "like it"))
    work = EnergyWork(Contender("a", Candidate(artifact, "onnxruntime", {})), "", **{"idle_ns": _SECOND, "window_ns": _SECOND, **how})
    return measure_energy(work, path, shard, limits or Limits(), place)


class _Seen:
    """The windows that an estimate was made of."""

    load: Window
    progress: Progress


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> _Seen:
    noted = _Seen()

    def spy(signal: Any, before: Window, load: Window, after: Window, progress: Progress, **how: Any) -> Any:
        noted.load, noted.progress = load, progress
        return estimate(signal, before, load, after, progress, **how)

    monkeypatch.setattr(energy, "estimate", spy)
    return noted


def _truth_uj(monitor: FakeMonitor, seen: _Seen) -> float:
    return BUSY_WATTS * monitor.cpu_ns(seen.load.begin_ns, seen.load.end_ns) / seen.progress.inferences(seen.load) / 1e3


def _agrees(result: EnergyResult, truth_uj: float) -> bool:
    """Within the interval, or 10 %: where others keep the cores busy, the fake's thread is starved together with its reader."""
    return result.low_uj <= truth_uj <= result.high_uj or abs(result.per_inference_uj / truth_uj - 1) < 0.1


def test_energy_of_a_model_is_what_its_cpu_time_costs(tmp_path: Path, place: Site, seen: _Seen) -> None:
    with FakeMonitor(place.sensors_root) as monitor:
        measured = _measure(place, tmp_path)
        result = measured.outcome
        assert isinstance(result, EnergyResult)
        assert result.unavailable == ""
        truth_uj = _truth_uj(monitor, seen)
    assert _agrees(result, truth_uj)
    assert result.low_uj < result.per_inference_uj < result.high_uj
    assert result.idle_watts == pytest.approx(IDLE_WATTS, abs=0.1)
    assert result.updates >= 100
    assert result.duration_ns > _SECOND  # one second holds 33 updates: it was prolonged
    assert (result.source, result.rail, result.idle_subtracted) == ("hwmon", "VDD_IN", True)
    assert result.includes
    assert measured.conditions.settings["energy_load"] == "one after the other"
    assert "power_watts" in {t.quantity for t in measured.conditions.traces}


@pytest.mark.long
def test_a_counter_that_wraps_meanwhile_misses_nothing(tmp_path: Path, place: Site, seen: _Seen) -> None:
    with FakeMonitor(place.sensors_root) as monitor:
        result = _measure(place, tmp_path, source="rapl/package-0", window_ns=4 * _SECOND).outcome
        assert isinstance(result, EnergyResult)
        assert result.unavailable == ""
        truth_uj = _truth_uj(monitor, seen)
    assert result.load_watts * result.duration_ns / 1e9 > WRAPS_AT
    assert _agrees(result, truth_uj)
    assert (result.source, result.rail) == ("rapl", "package-0")


def test_at_a_rate_the_idle_gaps_cost_nothing(tmp_path: Path, place: Site, seen: _Seen) -> None:
    with FakeMonitor(place.sensors_root) as monitor:
        wide, rate = partial(zoo.dense, width=2**14), Scenario("paced", rate_per_s=200.0)
        result = _measure(place, tmp_path, wide, scenario=rate).outcome
        assert isinstance(result, EnergyResult)
        assert result.unavailable == ""
        truth_uj = _truth_uj(monitor, seen)
    assert _agrees(result, truth_uj)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({}, "no power sensor: hwmon: no INA current monitor"),
        ({"source": "rapl"}, "rapl: no energy counter"),
        ({"source": "flux"}, "no power source 'flux'; known are hwmon, "),
        ({"source": "shelly"}, "shelly: no address; set `url` in [power]"),
    ],
)
def test_what_cannot_be_measured_says_why(how: dict[str, str], reason: str, tmp_path: Path, place: Site) -> None:
    result = _measure(place, tmp_path, **how).outcome
    assert isinstance(result, EnergyResult)
    assert reason in result.unavailable
    assert result.per_inference_uj == 0.0


def test_batches_are_refused(tmp_path: Path, place: Site) -> None:
    FakeMonitor(place.sensors_root)
    result = _measure(place, tmp_path, scenario=Scenario("offline", batch_sizes=(8,))).outcome
    assert isinstance(result, EnergyResult)
    assert "energy of batches" in result.unavailable


def test_a_sensor_that_never_changes_is_refused(tmp_path: Path, place: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_LONGEST_IDLE_NS", _SECOND)
    chip = FakeMonitor(place.sensors_root)._chip  # it is not started
    (chip / "update_interval").write_text("0\n")
    result = _measure(place, tmp_path, idle_ns=_SECOND // 10, window_ns=_SECOND // 2, limits=Limits(run_ns=20 * _SECOND)).outcome
    assert isinstance(result, EnergyResult)
    assert "hwmon/VDD_IN: no update in" in result.unavailable


def test_a_sensor_too_slow_for_the_limit_is_refused_with_its_rate(tmp_path: Path, place: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "_LONGEST_LOAD_NS", _SECOND)
    with FakeMonitor(place.sensors_root):
        result = _measure(place, tmp_path).outcome
    assert isinstance(result, EnergyResult)
    assert re.fullmatch(r"hwmon/VDD_IN: \d+ updates in 1 s of load; 100 would take \d+ s, the limit is 1 s", result.unavailable)


def test_a_runner_that_lies_about_its_inferences_is_not_believed(tmp_path: Path, place: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    call = RunnerProcess.call

    def lie(runner: RunnerProcess, request: dict[str, Any], *rest: Any) -> Reply:
        reply = call(runner, request, *rest)
        return Reply({"marks": [[1, 0], [2, 10**9]]}) if request["do"] == "spend" else reply

    monkeypatch.setattr(RunnerProcess, "call", lie)
    FakeMonitor(place.sensors_root)
    outcome = _measure(place, tmp_path).outcome
    assert isinstance(outcome, Failure)
    assert "contradicts itself" in outcome.detail


def test_it_can_be_cancelled_while_idle(tmp_path: Path, place: Site) -> None:
    cancel = threading.Event()
    timer = threading.Timer(3.0, cancel.set)
    timer.start()
    with FakeMonitor(place.sensors_root), pytest.raises(Cancelled):
        _measure(replace(place, cancelled=cancel.is_set), tmp_path, idle_ns=600 * _SECOND)
    timer.join()
    assert list(place.scratch.iterdir()) == []


def test_a_model_that_does_not_load_is_a_failure(tmp_path: Path, place: Site) -> None:
    with FakeMonitor(place.sensors_root):
        outcome = _measure(place, tmp_path, zoo.BROKEN["truncated"]).outcome
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.LOAD


@pytest.mark.long
def test_a_plug_that_answers_late_is_aligned_first(tmp_path: Path, place: Site, seen: _Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plug as a Shelly is, 200 ms behind, but quicker, so that the test is."""
    late_ns, every_ns = 200_000_000, 80_000_000
    monkeypatch.setattr(shelly._Plug, "poll_ns", 25_000_000)
    monkeypatch.setattr(energy, "_PATTERN_MS", ((700, 400), (300, 600), (500, 900), (800, 300)))

    def answer(path: str) -> str:
        step = (time.monotonic_ns() - late_ns) // every_ns
        flicker = 0.001 * (step % 2)  # the last digit is never quite at rest
        return json.dumps({"id": 0, "apower": monitor.watts((step - 1) * every_ns, step * every_ns) + flicker})

    with FakeMonitor(tmp_path / "elsewhere") as monitor, serving(answer) as url:
        measured = _measure(replace(place, meter=Meter("shelly", url=url)), tmp_path)
        result = measured.outcome
        assert isinstance(result, EnergyResult)
        assert result.unavailable == ""
        truth_uj = _truth_uj(monitor, seen)
    assert (result.source, result.rail) == ("shelly", "wall-0")
    assert _agrees(result, truth_uj)
    told = re.fullmatch(r"(-?\d+) ms \((-?\d+) to (-?\d+)\)", measured.conditions.settings["energy_meter_delay"])
    assert told is not None
    assert int(told[1]) == pytest.approx(late_ns / 1e6, abs=60)

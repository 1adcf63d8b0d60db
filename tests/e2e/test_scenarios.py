"""Load as the fleet file asks for it, and windows of the day, through the whole command."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests import models_optimizer as models
from tests import zoo
from tests.e2e.command import controller, deploy, start
from tests.e2e.test_mixed_runtimes import SCHEMA
from tests.e2e.zoo_fleets import write_fleet

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
RECIPES = [{"name": "int8", "passes": [{"pass": "quantize_static"}]}]
WINDOW = "12:00-13:00"
LONG_S = 120.0


def write(folder: Path, measure: dict[str, Any], select: dict[str, Any] | None = None, model: Path | None = None) -> Path:
    fleet = write_fleet(folder, model or models.save(models.conv_net(), folder / "model.onnx"), name="load", metric="cosine")
    document = json.loads(fleet.read_text())
    document["measure"] = {"accept": ["stable", "noisy", "interfered", "unsteady"], **measure}  # what is looked at is not the numbers
    document["optimize"] = {"recipes": RECIPES, "budget": {"variants": 4}}
    document["select"] = {**document.get("select", {}), **(select or {})}
    fleet.write_text(json.dumps(document))
    return fleet


def only(report: dict[str, Any]) -> dict[str, Any]:
    jsonschema.validate(report, SCHEMA)
    (device,) = report["devices"]
    return dict(device)


@pytest.mark.parametrize(
    "scenario",
    [
        {"kind": "server", "rate_per_s": 100, "duration_s": 0.5},
        {"kind": "sustained", "duration_s": 1},
        {"kind": "paced", "rate_per_s": 100},
    ],
    ids=lambda s: s["kind"],
)
def test_a_winner_is_chosen_under_load(tmp_path: Path, scenario: dict[str, Any]) -> None:
    fleet = write(tmp_path, {"scenario": scenario})
    device = only(deploy(fleet))
    winner = device["winner"]
    assert winner["scenario"]["kind"] == scenario["kind"]
    assert winner["latency_ns"]["n"] > 0
    assert device["deployment"]["state"] == "committed"
    assert deploy(fleet)["summary"].startswith("nothing had to be done again")


def test_the_best_throughput_over_batches_wins(tmp_path: Path) -> None:
    measure = {"scenario": {"kind": "offline", "batch_sizes": [1, 4]}}
    fleet = write(tmp_path, measure, {"objective": "throughput"}, zoo.dynamic_axes(tmp_path))
    device = only(deploy(fleet))
    assert device["winner"]["scenario"]["kind"] == "offline"
    assert device["deployment"]["state"] == "committed"


def test_a_dry_run_tells_of_load_and_window(tmp_path: Path) -> None:
    fleet = write(tmp_path, {"scenario": {"kind": "sustained", "duration_s": 30}, "window": WINDOW, "budget": {"minutes_per_device": 60}})
    done = controller("deploy", "--fleet", str(fleet), "--dry-run", "--json", cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert done.document["measure"]["window"] == "launches begin only from 12:00 to 13:00, by each device's own clock"
    assert done.document["devices"][0]["estimated_seconds"] > 4 * 5 * 30
    text = controller("deploy", "--fleet", str(fleet), "--dry-run", cwd=tmp_path).stdout
    assert "without a pause, 30 s per launch" in text


def clock_at(hour: int, minute: int) -> dict[str, str]:
    """An environment in which it is so late now: local agents inherit it."""
    now = time.gmtime()
    west = (now.tm_hour * 60 + now.tm_min - hour * 60 - minute) % (24 * 60)
    return {"TZ": f"XXX{west // 60:02d}:{west % 60:02d}"}


def test_a_run_waits_for_its_window_and_goes_on_in_it(tmp_path: Path) -> None:
    fleet = write(tmp_path, {"window": WINDOW})
    events = tmp_path / "events"
    process = start(["deploy", "--fleet", str(fleet), "--json", "--events", str(events)], tmp_path, clock_at(20, 0))
    try:
        deadline = time.monotonic() + LONG_S
        while not (told := [e for e in _events(events) if e["event"] == "waits" and e["waits"]]):
            assert process.poll() is None
            assert time.monotonic() < deadline, _events(events)
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=LONG_S)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 130
    (wait,) = told[0]["waits"]
    assert wait["state"] == "window"
    assert wait["until"] is not None
    assert f"its window {WINDOW} is closed: it is 20:0" in wait["reason"]
    report = deploy(fleet, changes=clock_at(12, 5))
    assert report["run"] == "load@1"
    assert only(report)["deployment"]["state"] == "committed"


def _events(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]

"""Variants that are bad in every way: each stands in the report with its true reason, and none wins."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import zoo
from tests.e2e.bad_passes import NAME
from tests.e2e.command import TIMEOUT_S, environment
from tests.e2e.zoo_fleets import write_fleet

REPOSITORY = Path(__file__).parents[2]
ON_THE_HOST = {"same": "copy", "broken": "garbage", "nan": "nan", "lost": "lossy", "slower": "slow"}
ON_THE_DEVICE = {"slipped-broken": "garbage", "slipped-nan": "nan", "slipped-lost": "lossy"}


def deploy_with_bad_passes(fleet: Path) -> dict[str, Any]:
    """The real command with the passes of `bad_passes` in its table."""
    command = [sys.executable, "-m", "tests.e2e.bad_passes", "deploy", "--fleet", str(fleet), "--json"]
    surroundings = environment({"PYTHONPATH": str(REPOSITORY)})
    done = subprocess.run(command, cwd=fleet.parent, env=surroundings, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stderr[-3000:]}"
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The device of a report on a campaign in which every variant is bad."""
    folder = tmp_path_factory.mktemp("bad")
    fleet = write_fleet(folder, zoo.dense(folder, width=4096))
    document = json.loads(fleet.read_text())
    passes = {name: {"pass": NAME, "how": how} for name, how in ON_THE_HOST.items()}
    passes |= {name: {"pass": NAME, "how": how, "unchecked": True} for name, how in ON_THE_DEVICE.items()}
    recipes = [{"name": name, "passes": [step]} for name, step in passes.items()]
    measure = {**document["measure"], "budget": {"minutes_per_device": 0.3}}  # every candidate is to be screened
    fleet.write_text(json.dumps({**document, "optimize": {"recipes": recipes}, "measure": measure}))
    (found,) = deploy_with_bad_passes(fleet)["devices"]
    assert isinstance(found, dict)
    return found


def failures(device: dict[str, Any]) -> dict[str, tuple[str, str, str]]:
    return {f["variant"].partition("/")[0]: (f["stage"], f["kind"], f["detail"]) for f in device["failures"]}


def rejected(device: dict[str, Any]) -> dict[str, str | None]:
    return {c["variant"].partition("/")[0]: c["rejected"] for c in device["candidates"]}


def test_the_baseline_stays_and_is_activated(device: dict[str, Any]) -> None:
    assert device["winner"]["variant"] == "source"
    assert device["deployment"]["state"] == "committed"
    assert device["deployment"]["digest"] == device["baseline"]["artifact"]["digest"]
    assert [c["variant"] for c in device["candidates"] if c["rejected"] is None] == ["source"]
    assert not device["inconclusive"]


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("same", "UNCHANGED", "the same bytes"),
        ("broken", "LOAD", "no model"),
        ("nan", "NUMERIC", "NaN"),
        ("lost", "NUMERIC", "off by"),
    ],
)
def test_the_host_finds_what_is_broken(device: dict[str, Any], name: str, kind: str, words: str) -> None:
    stage, found, detail = failures(device)[name]
    assert (stage, found) == ("optimize", kind)
    assert words in detail
    assert name not in rejected(device), "it never reached the device"


@pytest.mark.parametrize(
    ("name", "stage", "kind", "words"), [("slipped-broken", "load", "LOAD", ""), ("slipped-nan", "run", "NUMERIC", "NaN")]
)
def test_the_device_finds_what_slipped_through(device: dict[str, Any], name: str, stage: str, kind: str, words: str) -> None:
    found = failures(device)[name]
    assert found[:2] == (stage, kind), found
    assert words in found[2]
    assert len(found[2]) > 10, "the detail says what is wrong"
    assert (rejected(device)[name] or "").startswith(f"failed: {kind.lower()}")


def test_a_variant_that_lost_its_accuracy_is_measured_and_rejected(device: dict[str, Any]) -> None:
    lost = next(c for c in device["candidates"] if c["variant"].startswith("slipped-lost/"))
    assert not lost["feasible"]
    assert lost["rejected"].startswith("accuracy_drop")
    assert lost["accuracy"]["value"] < lost["accuracy"]["baseline"] - 0.1
    assert lost["screening"]["speedup"] > 1, "it would have won on speed"


def test_a_slower_variant_is_rejected_with_its_number(device: dict[str, Any]) -> None:
    slower = next(c for c in device["candidates"] if c["variant"].startswith("slower/"))
    assert not slower["feasible"]
    assert "x slower than the baseline" in slower["rejected"]
    assert slower["screening"]["speedup"] < 0.5

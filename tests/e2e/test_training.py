"""`data.train` through the real command: what is trained is made, measured, reported, and not trained again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import zoo
from tests.e2e.command import controller, deploy
from tests.e2e.zoo_fleets import write_fleet

SAMPLES = 96
RECIPES = [
    {
        "name": "pruned",
        "passes": [
            {"pass": "prune_structured", "multiple": 4, "epochs": 2, "batch": 16},
            {"pass": "quantize_static", "per_channel": True},
        ],
    }
]


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    """Fleet file, report and events of a first run."""
    folder = tmp_path_factory.mktemp("training")
    model = zoo.convolution(folder, channels=16)
    fleet = write_fleet(folder, model, metric="agreement", drop=1.0)
    inputs = zoo.samples(model, SAMPLES, seed=3)
    np.savez(folder / "train.npz", **{name: np.concatenate(arrays) for name, arrays in inputs.items()})
    document = json.loads(fleet.read_text())
    document["data"]["train"] = "train.npz"
    document["optimize"] = {"recipes": RECIPES}
    fleet.write_text(json.dumps(document))
    report = deploy(fleet, "--events", "events.jsonl")
    return fleet, report, [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_what_was_trained_stands_in_the_report_with_its_lineage(campaign: tuple[Path, dict[str, Any], list[dict[str, Any]]]) -> None:
    _, report, events = campaign
    (device,) = report["devices"]
    (made,) = [c for c in device["candidates"] if c["variant"].startswith("pruned/")]
    pruning, quantising = made["lineage"]
    assert (pruning["pass"], quantising["pass"]) == ("prune_structured", "quantize_static")
    assert "trained 12 steps, validation loss" in pruning["changed"]
    assert "multiply-adds" in pruning["changed"]
    assert "torch" in pruning["tool_versions"]
    assert made["artifact"]["bytes"] < device["baseline"]["artifact"]["bytes"]
    assert report["not_built"] == []
    assert {e["kind"] for e in events if e["event"] == "pass" and e["passed"] == "prune_structured"} >= {"started", "changed"}


def test_nothing_is_trained_twice(campaign: tuple[Path, dict[str, Any], list[dict[str, Any]]]) -> None:
    again = deploy(campaign[0])
    assert again["summary"].startswith("nothing had to be done again")


def test_other_samples_are_another_run(campaign: tuple[Path, dict[str, Any], list[dict[str, Any]]]) -> None:
    fleet, report, _ = campaign
    with np.load(fleet.parent / "train.npz") as kept:
        fewer = {name: array[: SAMPLES // 2] for name, array in kept.items()}
    np.savez(fleet.parent / "train.npz", **fewer)
    other = deploy(fleet, "--until", "optimize")
    assert other["run"] != report["run"]
    assert {v["artifact"] for v in other["variants"]} != {v["artifact"] for v in report["variants"]}


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"y": np.zeros((4, 3, 8, 8), np.float32)}, "train.npz: no array for the model's input"),
        (None, "data.train: no such file"),
    ],
)
def test_samples_that_do_not_fit_are_named_before_anything_runs(tmp_path: Path, arrays: dict[str, Any] | None, told: str) -> None:
    fleet = write_fleet(tmp_path, zoo.convolution(tmp_path), metric="agreement")
    document = json.loads(fleet.read_text())
    document["data"]["train"] = "train.npz"
    fleet.write_text(json.dumps(document))
    if arrays is not None:
        np.savez(tmp_path / "train.npz", **arrays)
    done = controller("deploy", "--fleet", str(fleet), cwd=tmp_path)
    assert done.code == 2
    assert told in done.stderr
    assert not list(tmp_path.glob(".edgefarm/*/variants/steps/*"))

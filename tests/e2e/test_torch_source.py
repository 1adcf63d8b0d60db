"""A torch module as the source, through the real command: exported, pruned, measured; what is the same network is the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import zoo
from tests.e2e.command import controller, deploy
from tests.e2e.zoo_fleets import write_fleet

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def build():
    torch.manual_seed(SEED)
    return Net(), torch.zeros(1, 3, 16, 16)
"""
RECIPES = [{"name": "pruned", "passes": [{"pass": "prune_structured", "multiple": 4, "epochs": 2, "batch": 16}]}]


def write(folder: Path, *, seed: int = 1, comment: str = "") -> None:
    (folder / "net.py").write_text(comment + NET.replace("SEED", str(seed)))


def torch_fleet(folder: Path) -> Path:
    """A fleet file whose source is `net.py:build`, with samples to train with."""
    model = zoo.convolution(folder)
    fleet = write_fleet(folder, model, metric="agreement", drop=1.0)
    inputs = zoo.samples(model, 96, seed=3)
    np.savez(folder / "train.npz", **{name: np.concatenate(arrays) for name, arrays in inputs.items()})
    model.unlink()
    document = json.loads(fleet.read_text())
    document["model"] = {"path": "net.py:build"}
    document["data"]["train"] = "train.npz"
    document["optimize"] = {"recipes": RECIPES}
    fleet.write_text(json.dumps(document, indent=2))
    write(folder)
    return fleet


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Fleet file and report of a first run."""
    fleet = torch_fleet(tmp_path_factory.mktemp("torch"))
    return fleet, deploy(fleet, "--events", "events.jsonl")


def test_a_module_is_exported_pruned_and_measured(campaign: tuple[Path, dict[str, Any]]) -> None:
    fleet, report = campaign
    assert report["model"]["exported_from"] == "net.py:build"
    assert report["model"]["format"] == "onnx"
    assert report["notes"][0] == "the baseline is the plain float conversion of net.py:build to ONNX"
    (device,) = report["devices"]
    assert device["baseline"]["artifact"]["digest"] == report["model"]["digest"]
    (pruned,) = [c for c in device["candidates"] if c["variant"].startswith("pruned/")]
    assert [step["pass"] for step in pruned["lineage"]] == ["prune_structured"]
    assert pruned["artifact"]["bytes"] < report["model"]["bytes"]
    assert pruned["latency_ns"]["n"] > 0
    assert Path(device["deployment"]["path"]).name == "model.onnx"
    events = [json.loads(line) for line in (fleet.parent / "events.jsonl").read_text().splitlines()]
    (exported,) = [e for e in events if e["event"] == "exported"]
    assert (exported["origin"], exported["fixed"]) == ("net.py:build", None)
    assert Path(exported["path"]).is_relative_to(fleet.parent / ".edgefarm")
    assert {p.name for p in fleet.parent.iterdir() if p.suffix == ".onnx"} == set()


@pytest.mark.long
def test_a_comment_is_no_other_network_but_weights_are(campaign: tuple[Path, dict[str, Any]]) -> None:
    fleet, report = campaign
    write(fleet.parent, comment="# Nothing that computes.\n")
    again = deploy(fleet)
    assert again["run"] == report["run"]
    assert again["summary"].startswith("nothing had to be done again")
    write(fleet.parent, seed=2)
    other = deploy(fleet, "--until", "optimize")
    assert other["run"] != report["run"]
    assert other["model"]["digest"] != report["model"]["digest"]


@pytest.mark.long
def test_looking_ahead_leaves_nothing_behind(tmp_path: Path) -> None:
    fleet = torch_fleet(tmp_path)
    planned = controller("deploy", "--fleet", str(fleet), "--dry-run", "--json", cwd=tmp_path)
    assert (planned.code, [p["name"] for p in planned.document["plans"]]) == (0, ["pruned"]), planned.stderr
    looked = controller("doctor", "--fleet", str(fleet), cwd=tmp_path)
    assert (looked.code, "model and data: net.py:build" in looked.stdout) == (0, True), looked.stdout
    assert not (tmp_path / ".edgefarm").exists()


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def biuld():\n    pass\n", "edge.yaml:5: model.path: net.py:build: the file has no function 'build'; did you mean 'biuld'?"),
        ("def build():\n    raise OSError('no weights.pt')\n", "net.py:build: the function raised OSError at net.py:2: no weights.pt"),
    ],
)
def test_what_is_wrong_is_named_with_field_and_line(tmp_path: Path, code: str, told: str) -> None:
    fleet = torch_fleet(tmp_path)
    (tmp_path / "net.py").write_text(code)
    done = controller("deploy", "--fleet", str(fleet), cwd=tmp_path)
    assert done.code == 2
    assert told in done.stderr
    assert not list(tmp_path.glob(".edgefarm/*/store.db"))

"""`make example-mixed`: three devices of which each has another runtime; its files are those of the example fashion."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from edgefarm.digest import digest_file
from tests.e2e.command import controller
from tests.examples import MIXED

RUNTIMES = {"gateway": "onnxruntime", "phone": "tflite", "camera": "openvino"}
LIBRARIES = {"ai_edge_litert": "tflite", "ai_edge_quantizer": "quantizer", "openvino": "openvino"}
INCONCLUSIVE = 8  # this machine may be too busy to tell candidates apart


def needs_libraries() -> None:
    if missing := [extra for module, extra in LIBRARIES.items() if importlib.util.find_spec(module) is None]:
        pytest.skip(f"the mixed example was NOT run: needs pip install 'edgefarm[{','.join(missing)}]'")


def running(device: dict[str, Any]) -> str:
    """The runtime of what the device was left with, its bytes checked."""
    winner, deployment = device["winner"], device["deployment"]
    files = {f["digest"] for f in winner["artifact"]["files"]}
    assert digest_file(Path(deployment["path"])) in files
    assert winner["feasible"]
    assert winner["accuracy"]["baseline"] - winner["accuracy"]["value"] <= 0.02, "0.01 on the selection split; this is the other"
    return str(winner["runtime"])


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_each_device_gets_a_winner_of_its_own_runtime(tmp_path: Path) -> None:
    needs_libraries()
    arguments = ["deploy", "--fleet", str(MIXED / "edge.yaml"), "--state", str(tmp_path / "state"), "--json"]
    done = controller(*arguments, cwd=tmp_path, timeout_s=900)
    assert done.code in (0, INCONCLUSIVE), done.stderr[-4000:]
    devices = {d["name"]: d for d in done.document["devices"]}
    assert set(devices) == set(RUNTIMES)
    for name, device in devices.items():
        assert {c["runtime"] for c in device["candidates"]} == {RUNTIMES[name]}
    won = {name: running(d) for name, d in devices.items() if d["deployment"] is not None}
    assert won == {name: RUNTIMES[name] for name in won}
    assert len(set(won.values())) >= 2 or done.code == INCONCLUSIVE
    given = [c for c in devices["phone"]["candidates"] if c["variant"].startswith("tflite/")]  # with each delegate
    assert given
    assert all([(m["source"], m["permutation"]) for m in c["io"]["inputs"]] == [("x", [0, 2, 3, 1])] for c in given)

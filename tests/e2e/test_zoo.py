"""Unusual models, each through the whole loop: real agents, real runtime, real activation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgefarm.digest import digest_file
from tests import zoo
from tests.e2e.command import deploy
from tests.e2e.zoo_fleets import write_fleet

MODELS = {**zoo.MODELS, "mixture": zoo.mixture}
_NOW = {"mixture", "stateful", "external_data_below", "opset_9", "opset_21"}  # the others one by one are what these hold together


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in _NOW else [pytest.mark.long]) for n in sorted(MODELS)])
def test_an_unusual_model_goes_through_the_loop(tmp_path: Path, name: str) -> None:
    model = MODELS[name](tmp_path)
    report = deploy(write_fleet(tmp_path, model))
    (device,) = report["devices"]
    assert device["baseline"]["latency_ns"]["n"] > 0
    assert device["winner"] is not None
    assert len(device["candidates"]) + len(device["failures"]) > 1
    path = Path(device["deployment"]["path"])
    assert device["deployment"]["state"] == "committed"
    main = next(f for f in device["winner"]["artifact"]["files"] if f["name"].endswith(".onnx"))
    assert digest_file(path) == main["digest"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    evaluation = np.load(tmp_path / "evaluation.npz")
    assert {i.name for i in session.get_inputs()} <= set(evaluation.files)

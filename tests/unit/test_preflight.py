"""What is refused before a device is used: more outputs than one gives back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from controller import preflight
from controller.config import load_fleet
from controller.workload import load_workload
from edgefarm.errors import UserError
from edgefarm.model import Reduction
from optimizer.source import TensorSpec
from tests import zoo

SAMPLES = 24


def check(folder: Path, metric: Any, shape: list[int | str]) -> None:
    """Preflight of a model x: float32[N, 4] -> mask: float32[shape], small: float32[N, 4]."""
    size = [1 if isinstance(s, str) else s for s in shape]
    nodes = [
        helper.make_node("Relu", ["x"], ["small"]),
        helper.make_node("ReduceMax", ["x"], ["m"], axes=[0, 1], keepdims=0),
        helper.make_node("Expand", ["m", "size"], ["mask"]),
    ]
    outputs = [zoo._value("mask", shape), zoo._value("small", ["N", 4])]
    zoo._save(folder, nodes, [zoo._value("x", ["N", 4])], outputs, {"size": np.array(size, np.int64)})
    x = np.ones((SAMPLES, 4), np.float32)
    target = metric.pop("target", "mask") if isinstance(metric, dict) else "mask"
    np.savez(folder / "evaluation.npz", allow_pickle=False, x=x, **{target: np.zeros((SAMPLES, 1), np.int64)})
    (folder / "metric.py").write_text("def score(outputs, targets):\n    return 0.0\n")
    if isinstance(metric, dict) and "name" in metric:
        metric = metric["name"]
    document = {
        "version": 1, "name": "m", "model": {"path": "model.onnx"}, "data": {"evaluation": "evaluation.npz", "metric": metric},
        "devices": [{"name": "a", "local": {}}],
    }  # fmt: skip
    (folder / "edge.yaml").write_text(json.dumps(document))
    fleet = load_fleet(folder / "edge.yaml")
    preflight.check(fleet, load_workload(fleet))


LARGE: list[int | str] = ["N", 16, 1024, 1024]  # 64 MiB
REFUSED = (
    r"evaluation\.npz: {} needs the outputs of 24 samples from each device, at least 1536 MiB \('mask' float32\[N, 16, 1024, 1024\].*\), "
    r"and a device gives back 256 MiB: end the graph with what the metric needs .* or give at most {} samples$"
)


def test_outputs_that_no_device_gives_back(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=REFUSED.format("metric mse", 4)):
        check(tmp_path, "mse", LARGE)
    with pytest.raises(UserError, match=REFUSED.format(r"the metric metric\.py:score", 3)):
        check(tmp_path, {"function": "metric.py:score"}, LARGE)


def test_outputs_that_fit(tmp_path: Path) -> None:
    fitting: list[tuple[Any, list[int | str]]] = [
        ("mse", ["N", 8, 64, 64]),
        ("mse", ["N", 16, "H", "W"]),  # what is not known is no reason
        ({"name": "mse", "target": "small"}, LARGE),  # the other output stays on the device
    ]
    told = []
    for metric, shape in fitting:
        try:
            check(tmp_path, metric, shape)
        except UserError as error:
            told.append(str(error))
    assert told == []


def test_indices_that_do_not_fit() -> None:
    """Classes on the last axis of a picture: one index for each pixel."""
    spec = TensorSpec("y", "float32", (None, 512, 512, 21))
    assert preflight.least_bytes([spec], Reduction("topk", "y", 5)) == 512 * 512 * 5 * 8
    assert (
        preflight.least_bytes([spec, TensorSpec("t", "str", (1,)), TensorSpec("s", "sequence", (1,))], Reduction("raw")) == 512 * 512 * 84
    )
    assert preflight.least_bytes([TensorSpec("y", "float32", (), ranked=False)], Reduction("topk", "y", 1)) == 8

"""`make example-ocr`, in a copy: the network of a published package, the user's own metric, one limit per device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgefarm.digest import digest_file
from tests.e2e.command import controller
from tests.e2e.prepared import prepared
from tests.examples import OCR, script

LIMITS = {"gate": 0.01, "archive": 0.0}
INCONCLUSIVE = 8  # this machine may be too busy to tell candidates apart; then the baseline stays, and must obey as well


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(OCR, tmp_path_factory.mktemp("examples"))


def accuracy(session: onnxruntime.InferenceSession, folder: Path) -> float:
    """What the example's metric says of a network on the selection split, outside of edgefarm."""
    with np.load(folder / "build" / "selection.npz", allow_pickle=False) as split:
        x, text = split["x"], split["text"]
    classes = np.concatenate([session.run(["classes"], {"x": x[i : i + 1]})[0] for i in range(len(x))])
    return float(script(folder, "metric").score({"classes": classes}, {"text": text}))


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def candidates(device: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [c for c in device["candidates"] if c["variant"].startswith(f"{name}/")]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_each_device_runs_what_its_limit_allows(example: Path) -> None:
    done = controller("deploy", "--fleet", "edge.yaml", "--json", cwd=example, timeout_s=900)
    assert done.code in (0, INCONCLUSIVE), done.stderr[-4000:]
    devices = {d["name"]: d for d in done.document["devices"]}
    assert set(devices) == set(LIMITS)
    float_accuracy = accuracy(session(example / "build" / "model.onnx"), example)
    assert float_accuracy > 0.97
    for name, device in devices.items():
        if device["winner"] is None or device["deployment"] is None:
            assert done.code == INCONCLUSIVE
            continue
        running = Path(device["deployment"]["path"])
        assert digest_file(running) == device["winner"]["artifact"]["digest"]
        assert float_accuracy - accuracy(session(running), example) <= LIMITS[name] + 1e-9
        assert device["winner"]["accuracy"]["n"] == 400
        assert not device["winner"]["accuracy"]["selected_on_same_data"]

    (spoilt,) = candidates(devices["gate"], "int8")  # one scale per tensor
    assert not spoilt["feasible"]
    # Weights that are Constant nodes: without folding them first this pass would have changed nothing.
    assert not onnx.load(example / "build" / "model.onnx").graph.initializer
    (dynamic,) = candidates(devices["gate"], "int8-dynamic-MatMul")
    assert "9 of 13 MatMul quantised" in dynamic["lineage"][-1]["changed"]
    file = example / ".edgefarm" / "ocr" / "variants" / "objects" / dynamic["artifact"]["digest"].removeprefix("sha256:") / "model.onnx"
    assert [n.op_type for n in onnx.load(file).graph.node].count("MatMulInteger") == 9

"""`make example-minilm`, in a copy: a transformer, through the same command as everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgefarm.digest import digest_file
from tests.e2e.command import controller
from tests.e2e.prepared import prepared
from tests.examples import MINILM, script

INCONCLUSIVE = 8  # this machine may be too busy to tell candidates apart; then the baseline stays, and must obey as well
DROP = 0.02


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(MINILM, tmp_path_factory.mktemp("examples"))


def recall(path: Path, folder: Path, split: str) -> float:
    """What the example's metric says of a network, outside of edgefarm."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    with np.load(folder / "build" / f"{split}.npz", allow_pickle=False) as archive:
        arrays = dict(archive)
    rows = [session.run(None, {k: arrays[k][i : i + 1] for k in ("input_ids", "attention_mask")})[0] for i in range(len(arrays["pair"]))]
    return float(script(folder, "metric").score({"embedding": np.concatenate(rows)}, arrays))


def last_step(candidates: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (found,) = [c for c in candidates if c["variant"].startswith(f"{name}/")]
    step: dict[str, Any] = found["lineage"][-1]
    return step


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_transformer_goes_through_the_same_command(example: Path) -> None:
    source = example / "build" / "model.onnx"
    floats = recall(source, example, "selection")
    assert floats > 0.7, "the network as published finds most"
    done = controller("deploy", "--fleet", "edge.yaml", "--json", cwd=example, timeout_s=1500)
    assert done.code in (0, INCONCLUSIVE), done.stderr[-4000:]
    (device,) = done.document["devices"]
    if device["deployment"] is None:
        assert done.code == INCONCLUSIVE
    else:
        running = Path(device["deployment"]["path"])
        assert digest_file(running) == device["winner"]["artifact"]["digest"]
        assert floats - recall(running, example, "selection") <= DROP + 1e-9
        assert device["winner"]["accuracy"]["n"] == 800
    dynamic, narrow = (last_step(device["candidates"], name) for name in ("int8-dynamic", "int4-weights"))
    assert "36 of 48 MatMul quantised" in dynamic["changed"], "the other twelve multiply activations"
    assert narrow["changed"].startswith("36 of 48 MatMul, 0 of 1 Gather in int4")
    assert 0 < dynamic["drift"] < 0.5
    assert 0 < narrow["drift"] < 0.5

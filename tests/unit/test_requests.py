"""What a runner answers, in this process."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from agent.runner.requests import Bench
from edgefarm.tensors import pack, unpack


@pytest.mark.skipif(importlib.util.find_spec("ai_edge_litert") is None, reason="needs ai-edge-litert: pip install 'edgefarm[tflite]'")
@pytest.mark.parametrize("kind", ["hidden_state", "resource_state"])
def test_every_sample_of_an_accuracy_pass_meets_a_fresh_state(kind: str, tmp_path: Path) -> None:
    from tests import zoo_tflite

    path = zoo_tflite.MODELS[kind](tmp_path)
    x = zoo_tflite.samples(path, 2)["x"]
    shard, outputs, golden = tmp_path / "shard.npz", tmp_path / "outputs.npz", tmp_path / "golden.npz"
    shard.write_bytes(pack({"x": [x[0], x[1], x[0], x[0]]}))
    bench = Bench()
    bench.load("k", str(path), "tflite", {"threads": 1}, None)
    bench.first("k", str(shard))  # leaves a state
    how = {"kind": "raw", "output": "", "k": 0, "golden_samples": 4, "output_bytes_limit": 2**20}
    bench.evaluate("k", [str(shard)], str(outputs), str(golden), **how)
    first, second, third, fourth = unpack(outputs)["y"]
    assert np.array_equal(first, third)
    assert np.array_equal(first, fourth)
    assert not np.array_equal(first, second)
    bench.first("k", str(shard))
    bench.golden_check("k", str(golden), 0.0, 0.0)


def test_a_load_tells_what_the_library_chose(tmp_path: Path) -> None:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("needs openvino: pip install 'edgefarm[openvino]'")
    from tests import zoo_openvino

    body, _ = Bench().load("k", str(zoo_openvino.dense(tmp_path)), "openvino", {"threads": 1}, None)
    assert body["chosen"]["inference_precision"] in ("f32", "bf16", "f16")
    body, _ = Bench().load("k", str(zoo_openvino.dense(tmp_path)), "openvino", {"inference_precision": "f32"}, None)
    assert body["chosen"] == {}

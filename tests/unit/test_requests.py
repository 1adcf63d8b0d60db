"""What a runner answers, in this process."""

from __future__ import annotations

import errno
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.runner.child import answer
from agent.runner.frames import Decoder, Frame
from agent.runner.requests import Bench, longest
from edgefarm.model import OperatorTime
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


@given(st.lists(st.builds(OperatorTime, st.text(max_size=2), st.just("Op"), st.sampled_from("ab"), st.floats(0, 1e9))), st.integers(1, 6))
def test_of_many_operators_the_longest_are_kept_and_no_time_is_lost(operators: list[OperatorTime], most: int) -> None:
    kept = longest(operators, most)
    assert len(kept) <= most + 2  # one more for each provider
    assert sum(o.mean_ns for o in kept) == pytest.approx(sum(o.mean_ns for o in operators))
    for provider in "ab":
        assert sum(o.calls for o in kept if o.provider == provider) == sum(o.calls for o in operators if o.provider == provider)
    named = kept[: min(most, len(operators))]
    assert [o.mean_ns for o in named] == sorted((o.mean_ns for o in operators), reverse=True)[:most]


@pytest.mark.skipif(importlib.util.find_spec("ai_edge_litert") is None, reason="needs ai-edge-litert: pip install 'edgefarm[tflite]'")
def test_a_variant_with_other_names_is_placed_and_profiled(tmp_path: Path) -> None:
    from tests import zoo_tflite

    path = zoo_tflite.MODELS["dense"](tmp_path)
    shard = tmp_path / "shard.npz"
    shard.write_bytes(pack({"source_x": zoo_tflite.samples(path, 2)["x"]}))
    io = {
        "inputs": [{"source": "source_x", "name": "x", "permutation": [], "scale": None, "zero_point": None}],
        "outputs": [{"source": "source_y", "name": "y", "permutation": [], "scale": None, "zero_point": None}],
    }
    bench = Bench()
    body, _ = bench.load("k", str(path), "tflite", {"threads": 1, "delegate": "none"}, io)
    assert body["provider"] == "none"
    assert bench.placement("k", str(shard))[0] == {"placement": {"none": 2}}
    assert bench.profile("k", str(shard), 2)[0]["unavailable"]
    assert bench.memory("k", str(shard), 2)[0]["model_file_bytes"] > 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_says_nothing_of_the_model(number: int) -> None:
    def write() -> tuple[dict[str, Any], bytes]:
        raise OSError(number, os.strerror(number), "outputs.npz")

    decoder = Decoder()
    decoder.feed(answer({"write": write}, Frame({"do": "write"}, b"")))
    told = decoder.next()
    assert told is not None
    assert told.header["failure"]["kind"] == "transfer"
    assert told.header["failure"]["detail"].startswith(os.strerror(number))
    assert "free some space on the device" in told.header["failure"]["detail"]

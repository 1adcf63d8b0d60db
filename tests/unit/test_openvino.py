"""What only OpenVINO does: its names, its choice of a precision, its silence."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from agent.runtimes import CUT_OFF_NS, WARM_UP, RuntimeFailure
from edgefarm.model import FailureKind

if importlib.util.find_spec("openvino") is None:
    pytest.skip("needs openvino: pip install 'edgefarm[openvino]'", allow_module_level=True)

from agent.runtimes import openvino as adapter
from tests import zoo_openvino, zoo_tflite


def test_names_are_those_of_the_file_not_of_what_was_compiled(tmp_path: Path) -> None:
    fused = adapter.OpenVino().load(zoo_tflite.int8_inside(tmp_path), {"threads": 1})
    assert [spec.name for spec in (*fused.inputs, *fused.outputs)] == ["x", "y"]
    nodes = [helper.make_node("Identity", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Identity", ["b"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    model = adapter.OpenVino().load(path, {"threads": 1})
    assert [spec.name for spec in (*model.inputs, *model.outputs)] == ["x", "y"]
    assert np.array_equal(model.run({"x": np.array([[-1, 0, 1, 2]], np.float32)})[0], [[0, 0, 1, 2]])


def test_the_precision_that_it_takes_by_itself_is_told(tmp_path: Path) -> None:
    path = zoo_openvino.dense(tmp_path)
    chosen = adapter.OpenVino().load(path, {"threads": 1}).chosen["inference_precision"]
    assert adapter.OpenVino().load(path, {"threads": 1, "inference_precision": chosen}).chosen == {}
    x = {"x": np.random.default_rng(0).normal(size=(1, 16)).astype(np.float32)}
    by_itself, asked = (adapter.OpenVino().load(path, options).run(x)[0] for options in ({}, {"inference_precision": chosen}))
    assert np.array_equal(by_itself, asked)


def test_a_precision_is_obeyed_or_refused(tmp_path: Path) -> None:
    path = zoo_openvino.dense(tmp_path)
    found = {precision: _precision_of(path, precision) for precision in ("f32", "bf16", "f16")}
    assert found["f32"] == "f32", "every device has that"
    for precision, told in found.items():
        assert told == precision or told.startswith(f"load: option 'inference_precision' '{precision}': CPU takes ")


def _precision_of(path: Path, asked: str) -> str:
    try:
        model = adapter.OpenVino().load(path, {"inference_precision": asked})
    except RuntimeFailure as failure:
        return f"{failure.kind.value}: {failure.detail}"
    return str(model._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())


def test_a_precision_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match="'inference_precision' must be one of f32, bf16, f16, got 'int8'"):
        adapter.OpenVino().load(zoo_openvino.dense(tmp_path), {"inference_precision": "int8"})


def test_types_without_a_name_in_numpy_are_refused(tmp_path: Path) -> None:
    from openvino import opset8 as operators

    x = operators.parameter([1, 4], adapter.ov.Type.bf16, name="x")
    x.output(0).set_names({"x"})
    adapter.ov.save_model(adapter.ov.Model([operators.relu(x)], [x]), str(tmp_path / "model.xml"), compress_to_fp16=False)
    with pytest.raises(RuntimeFailure, match="'x' is of type bf16") as caught:
        adapter.OpenVino().load(tmp_path / "model.xml", {})
    assert caught.value.kind is FailureKind.UNSUPPORTED_OP


def test_it_leaves_nothing_at_home_and_opens_no_connection(tmp_path: Path) -> None:
    assert importlib.util.find_spec("openvino") is not None
    program = (
        "import sys, json; seen = []; sys.addaudithook(lambda event, _: seen.append(event)); "
        "from agent.runtimes import load_runtime; load_runtime('openvino'); import openvino.tools.ovc.telemetry_utils as told; "
        "told.init_ovc_telemetry().send_event('a', 'b', 'c'); "
        "print(json.dumps([told.tm.__name__, *(e for e in seen if e.startswith(('socket.', 'subprocess.', 'os.fork', 'os.posix_spawn')))]))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "CI"}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**environment, "HOME": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == ["openvino.tools.ovc.telemetry_stub"]
    assert list(tmp_path.iterdir()) == []


def test_the_probe_model_is_what_the_protocol_promises(tmp_path: Path) -> None:
    path = adapter.OpenVino().probe_model(tmp_path)
    net = ElementTree.parse(path).getroot()
    assert net.get("version") == "11"
    layers = [(layer.get("type"), layer.get("version")) for layer in net.iter("layer")]
    assert layers == [(kind, "opset1") for kind in ("Parameter", "MatMul", "Const", "Add", "Result")]
    assert np.frombuffer(path.with_suffix(".bin").read_bytes(), np.float32).tolist() == [1.0]


@given(st.lists(st.integers(0, 10**6), min_size=WARM_UP, max_size=WARM_UP), st.lists(st.integers(0, 50_000), min_size=1, max_size=30))
def test_means_without_the_warm_up_are_as_exact_as_the_counters(warm: list[int], later: list[int]) -> None:
    """Counters give means so far in microseconds, cut off; `_counted` adds half of one."""
    counted = [sum(times) / len(times) // 1000 * 1000 + CUT_OFF_NS for times in (warm, warm + later)]
    found = adapter.later_mean(*counted, len(later))
    assert found > 0
    assert abs(found - sum(later) / len(later)) <= CUT_OFF_NS * (2 * WARM_UP + len(later)) / len(later) + 1e-3

"""Dynamic quantisation that leaves the most harmful layers in float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgefarm.model import FailureKind
from optimizer import sensitivity
from optimizer.dataset import Dataset
from optimizer.drift import drift
from optimizer.engines import open_model
from optimizer.onnx_wiring import observe
from optimizer.passes import Changed, Context, PassFailure, load_pass
from tests import models_optimizer as zoo

DYNAMIC = load_pass("quantize_dynamic")
WIDTH, LAYERS = 16, 4
SAMPLES = Dataset({"x": np.random.default_rng(3).normal(size=(12, 1, 3, WIDTH)).astype(np.float32)})


def chain(spoilt: int, *, gemm: bool = False, outlier: float = 60.0) -> Any:
    """Products one after the other, of which one has an outlier where its input is zero, so that its other weights lose their digits."""
    random = np.random.default_rng(0)
    nodes, weights, tensor = [], [], "x"
    for index in range(LAYERS):
        w = random.normal(0, 0.5 / WIDTH**0.5, (WIDTH, WIDTH)).astype(np.float32)
        if index == spoilt:
            w[0], w[0, 0] = 0, outlier
        if index == spoilt - 1:
            w[:, 0] = 0
        weights.append(numpy_helper.from_array(np.ascontiguousarray(w.T) if gemm else w, f"w{index}"))
        product = helper.make_node("Gemm" if gemm else "MatMul", [tensor, f"w{index}"], [f"p{index}"], name=f"product{index}")
        if gemm:
            product.attribute.append(helper.make_attribute("transB", 1))
        nodes += [product, helper.make_node("Tanh", [f"p{index}"], [f"t{index}"], name=f"tanh{index}")]
        tensor = f"t{index}"
    if gemm:
        nodes.insert(0, helper.make_node("Flatten", ["x"], ["flat"], axis=2, name="flat"))
        nodes[1].input[0] = "flat"
    ends = (
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, WIDTH])],
        [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, ["M", WIDTH] if gemm else ["N", 3, WIDTH])],
    )
    graph = helper.make_graph(nodes, "chain", *ends, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def quantize(model: Any, folder: Path, calibration: Dataset | None = SAMPLES, **parameters: Any) -> tuple[Changed, Path]:
    folder.mkdir(exist_ok=True)
    source = zoo.save(model, folder / "m.onnx")
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir()
    scratch.mkdir()
    changed = DYNAMIC.run(source, out, DYNAMIC.parameters.model_validate(parameters), calibration, Context(scratch))
    return changed, out / "model.onnx"


def integers(path: Path) -> int:
    return sum(n.op_type == "MatMulInteger" for n in onnx.load(str(path)).graph.node)


def off(model: Any, path: Path, folder: Path) -> float:
    runs = open_model(zoo.save(model, folder / "float.onnx")), open_model(path)
    outputs = [[next(iter(run(SAMPLES.feeds(i)).values())) for i in range(SAMPLES.n)] for run in runs]
    return drift(*outputs)


@pytest.mark.parametrize("spoilt", [1, 2, 3])
@pytest.mark.parametrize("gemm", [False, True])
def test_the_most_harmful_layer_stays_in_float(tmp_path: Path, spoilt: int, gemm: bool) -> None:
    model = chain(spoilt, gemm=gemm)
    changed, path = quantize(model, tmp_path / "mixed", float_layers=1)
    kind = "Gemm" if gemm else "MatMul"
    assert changed.detail.startswith(f"3 of 4 {kind} quantised; left in float, most harmful first: ")
    assert changed.detail.endswith(f"p{spoilt}_gemm" if gemm else f"product{spoilt}")
    assert integers(path) == LAYERS - 1
    whole = quantize(model, tmp_path / "whole")[1]
    assert integers(whole) == LAYERS
    assert off(model, path, tmp_path) < 0.5 * off(model, whole, tmp_path)


@pytest.mark.parametrize(("count", "left"), [(0, 4), (2, 2), (4, 0), (9, 0)])
def test_so_many_layers_and_no_more(tmp_path: Path, count: int, left: int) -> None:
    assert integers(quantize(chain(2), tmp_path / "a", float_layers=count)[1]) == left


@pytest.mark.parametrize("parameters", [{}, {"weight": "s8"}, {"weight": "s8", "per_channel": True}, {"per_channel": True}])
def test_layers_are_rounded_as_the_quantiser_rounds_them(tmp_path: Path, parameters: dict[str, Any]) -> None:
    """All layers' rounding together, in floating point, is what the integers of the quantiser compute."""
    model = chain(1, outlier=2.0)
    whole = onnx.load(str(quantize(model, tmp_path / "q", reduce_range=True, **parameters)[1]))
    weights = sensitivity._rounded_weights(model, whole)
    assert list(weights) == [f"product{i}" for i in range(LAYERS)]
    alone = sensitivity._dynamic_alone(model, weights, list(weights))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    output = f"t{LAYERS - 1}"
    rounded, real = observe(alone, [output], tmp_path / "a"), observe(whole, [output], tmp_path / "b")
    for index in range(SAMPLES.n):
        np.testing.assert_allclose(rounded(SAMPLES.feeds(index))[0], real(SAMPLES.feeds(index))[0], atol=1e-4)


def test_ranking_needs_samples(tmp_path: Path) -> None:
    assert DYNAMIC.parameters.model_validate({"float_layers": 1}).needs_calibration
    assert not DYNAMIC.parameters().needs_calibration
    with pytest.raises(PassFailure, match=r"needs calibration samples \(data.calibration\)") as caught:
        quantize(chain(1), tmp_path / "a", calibration=None, float_layers=1)
    assert caught.value.kind is FailureKind.UNSUPPORTED_OP


def test_weights_that_two_layers_share_are_both_left_or_both_taken_alone(tmp_path: Path) -> None:
    """Each product gets rounded weights of its own name, so one layer's rounding is not the other's."""
    model = chain(1, outlier=2.0)
    model.graph.node[4].input[1] = "w0"
    whole = onnx.load(str(quantize(model, tmp_path / "q")[1]))
    weights = sensitivity._rounded_weights(model, whole)
    alone = sensitivity._dynamic_alone(model, weights, ["product0"])
    products = {n.name: n for n in alone.graph.node}
    assert products["product0"].input[1] == "product0:weight"
    assert products["product2"].input[1] == "w0"
    assert onnxruntime.InferenceSession(alone.SerializeToString(), providers=["CPUExecutionProvider"]).get_inputs()

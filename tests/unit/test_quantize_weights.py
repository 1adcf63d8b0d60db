"""Block-wise weights by hand, and Gemm as MatMul and Add."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from optimizer import checks, gemm_rewrite, onnx_facts
from optimizer.passes import Changed, Context, load_pass
from optimizer.source import inspect_model
from tests import models_optimizer as zoo

RANDOM = np.random.default_rng(11)


def values(*shape: int) -> Any:
    return RANDOM.normal(0, 1, shape).astype(np.float32)


def run(model: Any, **feeds: Any) -> Any:
    content = model if isinstance(model, (str, Path)) else model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def quantised(model: Any, folder: Path, **parameters: Any) -> tuple[Changed, Path]:
    used = load_pass("quantize_weights")
    source = zoo.save(model, folder / "m.onnx")
    for name in ("out", "scratch"):
        (folder / name).mkdir()
    checked = used.parameters.model_validate(parameters)
    return used.run(source, folder / "out", checked, None, Context(folder / "scratch")), folder / "out" / "model.onnx"


def product(weight: Any) -> Any:
    sides = {"x": (TensorProto.FLOAT, ["N", weight.shape[0]])}, {"y": (TensorProto.FLOAT, ["N", weight.shape[1]])}
    return zoo.build([helper.make_node("MatMul", ["x", "w"], ["y"])], *sides, {"w": weight})


def by_hand(weight: Any, bits: int, block: int, symmetric: bool) -> Any:
    """w ~ scale * (q - zero), q = clip(round(w / scale) + zero) for each block of a column."""
    result = np.empty_like(weight)
    top = 2**bits - 1
    for start, column in itertools.product(range(0, weight.shape[0], block), range(weight.shape[1])):
        part = weight[start : start + block, column]
        if symmetric:
            extreme = max(part, key=abs)
            scale, zero = extreme / -(2 ** (bits - 1)), 2 ** (bits - 1)
        else:
            low, high = min(part.min(), 0), max(part.max(), 0)
            scale = (high - low) / top
            zero = round(-low / scale)
        result[start : start + block, column] = scale * (np.clip(np.round(part / scale) + zero, 0, top) - zero)
    return result


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_are_rounded_to_multiples_of_their_scale(tmp_path: Path, bits: int, symmetric: bool) -> None:
    weight = values(80, 3)  # two blocks and a half
    _, output = quantised(product(weight), tmp_path, bits=bits, symmetric=symmetric, accuracy_level=0)
    got = run(output, x=np.eye(80, dtype=np.float32))
    want = by_hand(weight, bits, 32, symmetric)
    # A value that lies halfway between two integers may go to either: a step, then, in very few places.
    assert np.abs(got - weight).max() <= np.abs(want - weight).max() * 1.001
    assert np.isclose(got, want, atol=1e-5).mean() > 0.99


def attributes(path: Path) -> dict[str, Any]:
    node = next(n for n in onnx.load(str(path)).graph.node if n.op_type == "MatMulNBits")
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def test_parameters_arrive(tmp_path: Path) -> None:
    _, output = quantised(product(values(64, 4)), tmp_path, bits=8, block_size=16, accuracy_level=1)
    assert attributes(output) == {"K": 64, "N": 4, "bits": 8, "block_size": 16, "accuracy_level": 1}


def test_hqq_errs_less_than_rounding(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    weight = np.random.default_rng(3).laplace(0, 1, (256, 16)).astype(np.float32)
    errors = {}
    for algorithm in ("rtn", "hqq"):
        (tmp_path / algorithm).mkdir()
        _, output = quantised(product(weight), tmp_path / algorithm, algorithm=algorithm, accuracy_level=1)
        assert attributes(output)["accuracy_level"] == 1
        errors[algorithm] = np.abs(run(output, x=np.eye(256, dtype=np.float32)) - weight).mean()
    assert errors["hqq"] < errors["rtn"]


@pytest.mark.parametrize(
    "parameters", [{"algorithm": "hqq", "symmetric": True}, {"algorithm": "hqq", "bits": 8}, {"embeddings": True, "bits": 8}]
)
def test_parameters_that_exclude_each_other(parameters: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="must be"):
        load_pass("quantize_weights").parameters.model_validate(parameters)


def test_convolutions_only_are_unchanged(tmp_path: Path) -> None:
    changed, output = quantised(zoo.nhwc_net(), tmp_path)
    assert changed.detail.startswith("no weight taken")
    assert changed.detail.endswith("left: 1 Conv (no block-wise kernel)")
    with pytest.raises(checks.Unchanged):
        checks.check(tmp_path / "m.onnx", output, load_pass("quantize_weights"), None)


def test_what_is_left_is_told(tmp_path: Path) -> None:
    changed, output = quantised(zoo.conv_net(constants=True), tmp_path)
    assert changed.detail.startswith("0 of 2 Conv, 1 of 1 Gemm in int4, ")
    assert changed.detail.endswith(" bytes; left: 2 Conv (no block-wise kernel)")
    assert inspect_model(output).op_types["MatMulNBits"] == 1


def test_embeddings(tmp_path: Path) -> None:
    ids = np.arange(16).reshape(2, 8)
    feeds = {"ids": ids, "mask:0": np.ones((2, 8), np.float32)}
    for name, embeddings in (("without", False), ("with", True)):
        (tmp_path / name).mkdir()
        changed, output = quantised(zoo.text_net(), tmp_path / name, embeddings=embeddings)
        assert changed.detail.startswith(f"2 of 2 MatMul, {int(embeddings)} of 1 Gather in int4")
        assert ("left: 1 Gather (embeddings: true takes them)" in changed.detail) != embeddings
        assert inspect_model(output).op_types.get("GatherBlockQuantized", 0) == int(embeddings)
        want, got = run(zoo.text_net(), **feeds), run(output, **feeds)
        assert np.linalg.norm(got - want) < 0.3 * np.linalg.norm(want)
    model = onnx.load(str(output))
    assert (model.ir_version, onnx_facts.default_opset(model)) == (10, 21)  # where 4-bit tensors begin


def test_a_weight_that_nodes_share(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gather", ["w", "ids"], ["e"]),
        helper.make_node("MatMul", ["e", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["y"]),
    ]
    sides = {"ids": (TensorProto.INT64, ["N"])}, {"y": (TensorProto.FLOAT, ["N", 32])}
    model = zoo.build(nodes, *sides, {"w": values(32, 32)})
    changed, output = quantised(model, tmp_path, embeddings=True)
    assert changed.detail.startswith("2 of 2 MatMul, 1 of 1 Gather in int4")
    want, got = run(model, ids=np.arange(5)), run(output, ids=np.arange(5))
    assert np.linalg.norm(got - want) < 0.3 * np.linalg.norm(want)


def gemm(*, alpha: float, beta: float, trans_a: int, trans_b: int, bias: str) -> Any:
    """y = Gemm(a, w, c) for 3 x 4 by 4 x 5; `bias`: none, stored or fed."""
    a, w = (["K", "M"] if trans_a else ["M", "K"]), ((5, 4) if trans_b else (4, 5))
    inputs = ["a", "w"] + ([] if bias == "none" else ["c"])
    node = helper.make_node("Gemm", inputs, ["y"], alpha=alpha, beta=beta, transA=trans_a, transB=trans_b)
    fed = {"a": (TensorProto.FLOAT, a)} | ({"c": (TensorProto.FLOAT, [5])} if bias == "fed" else {})
    weights = {"w": values(*w)} | ({"c": values(3, 1)} if bias == "stored" else {})
    return zoo.build([node], fed, {"y": (TensorProto.FLOAT, ["M", 5])}, weights)


@pytest.mark.parametrize("bias", ["none", "stored", "fed"])
@pytest.mark.parametrize(("trans_a", "trans_b"), list(itertools.product((0, 1), repeat=2)))
@pytest.mark.parametrize(("alpha", "beta"), list(itertools.product((1.0, 0.5, -2.0, 0.0), (1.0, 0.25, 0.0))))
def test_gemm_as_matmul_keeps_outputs(alpha: float, beta: float, trans_a: int, trans_b: int, bias: str) -> None:
    model = gemm(alpha=alpha, beta=beta, trans_a=trans_a, trans_b=trans_b, bias=bias)
    feeds = {"a": values(4, 3) if trans_a else values(3, 4)} | ({"c": values(5)} if bias == "fed" else {})
    want = run(model, **feeds)
    names = gemm_rewrite.to_matmul(model)
    onnx.checker.check_model(model, full_check=True)
    assert names == ["y_gemm"]
    assert "Gemm" not in onnx_facts.op_counts(model)
    assert {w.name for w in model.graph.initializer} <= {"y_gemm_B", "y_gemm_C", "y_gemm_beta", "c"}
    np.testing.assert_allclose(run(model, **feeds), want, rtol=1e-5, atol=1e-6)


def test_gemm_without_a_stored_weight_stays() -> None:
    sides = {name: (TensorProto.FLOAT, [3, 3]) for name in "ab"}, {"y": (TensorProto.FLOAT, [3, 3])}
    model = zoo.build([helper.make_node("Gemm", ["a", "b"], ["y"])], *sides, {})
    assert gemm_rewrite.to_matmul(model) == []
    assert onnx_facts.op_counts(model) == {"Gemm": 1}


def test_gemm_weights_that_others_read_stay() -> None:
    nodes = [helper.make_node("Gemm", ["a", "w"], ["g"], transB=1), helper.make_node("MatMul", ["g", "w"], ["y"])]
    model = zoo.build(nodes, {"a": (TensorProto.FLOAT, [2, 3])}, {"y": (TensorProto.FLOAT, [2, 3])}, {"w": values(3, 3)})
    kept = numpy_helper.to_array(model.graph.initializer[0])
    feeds = {"a": values(2, 3)}
    want = run(model, **feeds)
    gemm_rewrite.to_matmul(model)
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]), kept)
    np.testing.assert_allclose(run(model, **feeds), want, rtol=1e-5)

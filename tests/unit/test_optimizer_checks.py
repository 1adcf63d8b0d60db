"""The checks on every output of a pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgefarm.model import FailureKind
from optimizer import checks
from optimizer.dataset import Dataset
from optimizer.passes import PassFailure, load_pass, load_path
from optimizer.source import Signature, TensorSpec
from tests import models_optimizer as zoo
from tests import zoo as zoo_of_oddities

FAKE = load_path("tests.fake_passes:FakePass")
INTEGER = load_path("tests.fake_passes:FakeInteger")
PROBE = Dataset({"x": zoo.images(3)[:, None]})


def files(tmp_path: Path, changed: Any) -> tuple[Path, Path]:
    return zoo.save(zoo.conv_net(), tmp_path / "a.onnx"), zoo.save(changed, tmp_path / "b.onnx")


def scaled(factor: float) -> Any:
    model = zoo.conv_net()
    weight = next(w for w in model.graph.initializer if w.name == "w3")
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(factor), "w3"))
    return model


def failure(tmp_path: Path, changed: Any, used: Any = FAKE, probe: Dataset | None = PROBE) -> PassFailure:
    with pytest.raises(PassFailure) as caught:
        checks.check(*files(tmp_path, changed), used, probe)
    return caught.value


def test_a_small_change_passes(tmp_path: Path) -> None:
    parent, output = files(tmp_path, scaled(1.01))
    assert parent.read_bytes() != output.read_bytes()
    checks.check(parent, output, FAKE, PROBE)


def test_the_drift_is_told(tmp_path: Path) -> None:
    parent, output = files(tmp_path, scaled(1.01))
    want, got = (
        np.concatenate([onnxruntime.InferenceSession(file).run(["logits"], PROBE.feeds(i))[0] for i in range(PROBE.n)])
        for file in (parent, output)
    )
    expected = np.linalg.norm((got - want).astype(np.float64)) / np.linalg.norm(want.astype(np.float64))
    assert expected > 1e-3
    assert checks.check(parent, output, FAKE, PROBE) == pytest.approx(expected, rel=1e-4)
    assert checks.check(parent, output, FAKE, None) is None


def test_drift_beyond_the_limit(tmp_path: Path) -> None:
    found = failure(tmp_path, scaled(1.5))
    assert found.kind is FailureKind.NUMERIC
    assert "output 'logits' is off by" in found.detail
    assert "allowed is 0.1" in found.detail


@pytest.mark.parametrize("name", ["prune_structured", "prune_weights", "distill", "quantize_aware"])
def test_what_was_trained_may_be_any_finite_distance_away(tmp_path: Path, name: str) -> None:
    """Ten times the logits are the same classes; a network that learned from labels has logits of its own size."""
    used = replace_evidence(load_pass(name))
    told = checks.check(*files(tmp_path, scaled(10.0)), used, PROBE)
    assert told is not None
    assert told > 1
    assert failure(tmp_path, scaled(np.nan), used).kind is FailureKind.NUMERIC


def replace_evidence(used: Any) -> Any:
    """The pass with evidence that a change of weights alone gives."""
    return type("FakeEvidence", (type(used),), {"evidence": "structure"})()


def classifier(folder: Path, name: str, scale: float, noise: float) -> Path:
    """x: float32[N, 16] -> best: int64[N]; nothing else comes out."""
    weights = scale * zoo_of_oddities._weights(1, 16, 10) + noise * zoo_of_oddities._weights(2, 16, 10)
    nodes = [onnx.helper.make_node("MatMul", ["x", "w"], ["m"]), onnx.helper.make_node("ArgMax", ["m"], ["best"], axis=1, keepdims=0)]
    ends = [zoo_of_oddities._value("x", ["N", 16])], [zoo_of_oddities._value("best", ["N"], onnx.TensorProto.INT64)]
    (folder / name).mkdir()
    return zoo_of_oddities._save(folder / name, nodes, *ends, {"w": weights})


def test_indices_alone_are_compared_too(tmp_path: Path) -> None:
    probe = Dataset({"x": np.random.default_rng(0).normal(size=(20, 1, 16)).astype(np.float32)})
    parent, near, broken = (classifier(tmp_path, n, *how) for n, how in (("a", (1, 0)), ("b", (1, 0.1)), ("c", (-1, 0))))
    assert checks.check(parent, near, FAKE, probe) is None, "indices have no distance"
    with pytest.raises(PassFailure, match=r"output 'best': \d+% of the values are others than the parent's") as caught:
        checks.check(parent, broken, FAKE, probe)
    assert caught.value.kind is FailureKind.NUMERIC


def test_nan_names_the_sample(tmp_path: Path) -> None:
    found = failure(tmp_path, scaled(np.nan))
    assert (found.kind, found.detail) == (FailureKind.NUMERIC, "output 'logits' holds NaN for probe sample 0, its parent's is finite")


def test_infinity(tmp_path: Path) -> None:
    assert "holds" in failure(tmp_path, scaled(np.inf)).detail


def test_equal_bytes(tmp_path: Path) -> None:
    with pytest.raises(checks.Unchanged, match="same bytes"):
        checks.check(*files(tmp_path, zoo.conv_net()), FAKE, PROBE)


def test_other_names_are_no_change(tmp_path: Path) -> None:
    model = zoo.conv_net()
    for index, node in enumerate(model.graph.node):
        node.name = f"node{index}"
    with pytest.raises(checks.Unchanged):
        checks.check(*files(tmp_path, model), FAKE, PROBE)


def test_no_integer_left_behind(tmp_path: Path) -> None:
    with pytest.raises(checks.Unchanged, match="no integer operator"):
        checks.check(*files(tmp_path, scaled(1.01)), INTEGER, PROBE)


def test_renamed_output(tmp_path: Path) -> None:
    model = zoo.conv_net()
    model.graph.node[-1].output[0] = model.graph.output[0].name = "scores"
    found = failure(tmp_path, model)
    assert (found.kind, found.detail) == (FailureKind.IO_CHANGED, "outputs were ['logits'], are ['scores']")


def test_fixed_batch(tmp_path: Path) -> None:
    found = failure(tmp_path, zoo.conv_net(batch=1))
    assert found.kind is FailureKind.IO_CHANGED
    assert found.detail == "input 'x' was float32[N, 3, 8, 8], is float32[1, 3, 8, 8]"


def test_does_not_load(tmp_path: Path) -> None:
    model = scaled(1.01)
    model.graph.node[0].attribute[0].ints[:] = [1, 1]
    assert failure(tmp_path, model).kind is FailureKind.LOAD


def test_unknown_operator(tmp_path: Path) -> None:
    model = scaled(1.01)
    model.graph.node[1].op_type = "Rulu"
    assert failure(tmp_path, model, probe=None).kind in (FailureKind.LOAD, FailureKind.UNSUPPORTED_OP)


def test_garbage(tmp_path: Path) -> None:
    parent, output = files(tmp_path, zoo.conv_net())
    output.write_bytes(b"\x3a\xff\xff\x7fgarbage")
    with pytest.raises(PassFailure, match="no model") as caught:
        checks.check(parent, output, FAKE, PROBE)
    assert caught.value.kind is FailureKind.LOAD


def spec(dtype: str = "float32", *shape: int | None, ranked: bool = True) -> TensorSpec:
    return TensorSpec("x", dtype, shape, ranked)


@pytest.mark.parametrize(
    ("was", "now", "input_fits", "output_fits"),
    [
        (spec("float32", 2, 3), spec("float32", 2, 3), True, True),
        (spec("float32", 2, 3), spec("float32", None, 3), True, True),
        (spec("float32", None, 3), spec("float32", 2, 3), False, True),
        (spec("float32", 2, 3), spec("float32", 4, 3), False, False),
        (spec("float32", 2, 3), spec("float32", 2), False, False),
        (spec("float32", 2, 3), spec("float16", 2, 3), False, False),
        (spec(ranked=False), spec("float32", 2, 3), True, True),
    ],
)
def test_what_counts_as_the_same_interface(was: TensorSpec, now: TensorSpec, input_fits: bool, output_fits: bool) -> None:
    other = (TensorSpec("y", "float32", (1,)),)
    as_input = checks.io_difference(Signature((was,), other, 17, "onnx"), Signature((now,), other, 17, "onnx"))
    as_output = checks.io_difference(Signature(other, (was,), 17, "onnx"), Signature(other, (now,), 17, "onnx"))
    assert (not as_input, not as_output) == (input_fits, output_fits)

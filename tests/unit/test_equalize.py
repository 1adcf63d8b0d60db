"""Cross-layer equalisation: ranges become equal, the function stays, and what is not homogeneous is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgefarm.model import FailureKind
from optimizer import checks
from optimizer.dataset import Dataset
from optimizer.drift import drift
from optimizer.engines import open_model
from optimizer.passes import Changed, Context, PassFailure, load_pass
from tests import models_layers
from tests import models_optimizer as zoo

EQUALIZE = load_pass("equalize")
SAMPLES = Dataset({"x": zoo.images(20)[:, None]})


def equalize(model: Any, folder: Path, calibration: Dataset | None = SAMPLES, **parameters: Any) -> tuple[Changed, Path, Path]:
    """Returns what the pass says, the file that it read and the one that it wrote."""
    source = zoo.save(model, folder / "m.onnx")
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir()
    scratch.mkdir()
    changed = EQUALIZE.run(source, out, EQUALIZE.parameters.model_validate(parameters), calibration, Context(scratch))
    return changed, source, out / "model.onnx"


def weights(path: Path) -> dict[str, Any]:
    return {w.name: numpy_helper.to_array(w) for w in onnx.load(str(path)).graph.initializer}


def output_ranges(weight: Any) -> Any:
    return np.abs(weight).reshape(len(weight), -1).max(axis=1)


def input_ranges(weight: Any, groups: int = 1) -> Any:
    """By hand, channel by channel: group g's outputs read its inputs."""
    outputs, inputs = len(weight) // groups, weight.shape[1]
    blocks = [weight[g * outputs : (g + 1) * outputs, i] for g in range(groups) for i in range(inputs)]
    return np.array([np.abs(block).max() for block in blocks])


def outputs_differ_by(source: Path, output: Path, samples: Dataset = SAMPLES) -> float:
    before, after = open_model(source), open_model(output)
    feeds = [samples.feeds(i) for i in range(samples.n)]
    return drift([before(f)["logits"] for f in feeds], [after(f)["logits"] for f in feeds])


@pytest.mark.parametrize("groups", [models_layers.WIDTH, 2, 1], ids=["depthwise", "grouped", "dense"])
@pytest.mark.parametrize("opset", [9, 17])
def test_ranges_become_equal_and_the_function_stays(tmp_path: Path, groups: int, opset: int) -> None:
    changed, source, output = equalize(models_layers.chain(groups=groups, opset=opset), tmp_path)
    assert changed.detail == "3 pairs of convolutions equalised"
    before, after = weights(source), weights(output)
    for first, second, split in (("w0", "w1", groups), ("w1", "w2", 1), ("w2", "w3", 1)):
        was = output_ranges(before[first]) / input_ranges(before[second], split)
        now = output_ranges(after[first]) / input_ranges(after[second], split)
        assert was.max() / was.min() > 5
        assert now == pytest.approx(1, rel=1e-2)
    assert outputs_differ_by(source, output) < 1e-5


def test_one_pair_by_the_papers_formula(tmp_path: Path) -> None:
    changed, source, output = equalize(models_layers.chain(between=("Relu",)), tmp_path)
    assert changed.detail == "1 pairs of convolutions equalised"
    before, after = weights(source), weights(output)
    r1, r2 = output_ranges(before["w0"]), input_ranges(before["w1"], models_layers.WIDTH)
    s = np.sqrt(r1 * r2) / r2  # Nagel et al. 2019, equation 11
    np.testing.assert_allclose(after["w0"], before["w0"] / s[:, None, None, None], rtol=1e-5)
    np.testing.assert_allclose(after["b0"], before["b0"] / s, rtol=1e-5)
    np.testing.assert_allclose(after["w1"], before["w1"] * s[:, None, None, None], rtol=1e-5)
    np.testing.assert_array_equal(after["b1"], before["b1"])


def test_slopes_per_channel_are_homogeneous(tmp_path: Path) -> None:
    changed, source, output = equalize(models_layers.chain(between=("PRelu", None, None)), tmp_path)
    assert changed.detail == "3 pairs of convolutions equalised"
    assert outputs_differ_by(source, output) < 1e-5


def test_what_is_even_is_unchanged(tmp_path: Path) -> None:
    _, _, once = equalize(models_layers.chain(), tmp_path)
    (tmp_path / "again").mkdir()
    changed, source, output = equalize(onnx.load(str(once)), tmp_path / "again")
    assert changed.detail == "0 pairs of convolutions equalised"
    with pytest.raises(checks.Unchanged):
        checks.check(source, output, EQUALIZE, None)


@pytest.mark.parametrize("opset", [9, 17])
def test_a_clip_that_no_sample_reaches_becomes_relu(tmp_path: Path, opset: int) -> None:
    model = models_layers.chain(between=(1000.0, "Relu"), opset=opset)
    changed, source, output = equalize(model, tmp_path, replace_clip=True)
    assert changed.detail == "2 pairs of convolutions equalised; 1 Clip that no calibration sample drives to its bound became Relu"
    assert [n.op_type for n in onnx.load(str(output)).graph.node].count("Clip") == 0
    assert outputs_differ_by(source, output) < 1e-5
    checks.check(source, output, EQUALIZE, SAMPLES)


def test_a_clip_that_acts_is_left_alone(tmp_path: Path) -> None:
    model = models_layers.chain(between=(6.0, "Relu"))
    changed, source, output = equalize(model, tmp_path, replace_clip=True)
    assert changed.detail == "1 pairs of convolutions equalised; 1 pairs left alone: their Clip acts"
    before, after = weights(source), weights(output)
    np.testing.assert_array_equal(before["w0"], after["w0"])
    assert [n.op_type for n in onnx.load(str(output)).graph.node].count("Clip") == 1
    assert outputs_differ_by(source, output) < 1e-5


def test_a_clip_is_only_replaced_if_asked(tmp_path: Path) -> None:
    changed, _, _ = equalize(models_layers.chain(between=(1000.0,)), tmp_path, calibration=None)
    assert changed.detail == "0 pairs of convolutions equalised; 1 pairs left alone: a Clip stands between"


def test_replacing_needs_samples(tmp_path: Path) -> None:
    assert EQUALIZE.parameters.model_validate({"replace_clip": True}).needs_calibration
    assert not EQUALIZE.parameters.model_validate({}).needs_calibration
    with pytest.raises(PassFailure) as caught:
        equalize(models_layers.chain(between=(6.0,)), tmp_path, calibration=None, replace_clip=True)
    assert caught.value.kind is FailureKind.UNSUPPORTED_OP


def test_a_clip_from_below_zero_is_no_relu(tmp_path: Path) -> None:
    model = models_layers.chain(between=(1000.0,))
    low = next(w for w in model.graph.initializer if w.name == "a0_low")
    low.CopyFrom(numpy_helper.from_array(np.float32(-1), "a0_low"))
    changed, _, _ = equalize(model, tmp_path, replace_clip=True)
    assert changed.detail == "0 pairs of convolutions equalised"


def shared_weights() -> Any:
    model = models_layers.chain(between=("Relu", "Relu"), groups=1)
    next(n for n in model.graph.node if n.name == "conv2").input[1] = "w1"
    next(n for n in model.graph.node if n.name == "conv2").attribute.append(helper.make_attribute("dilations", [1, 1]))
    return model


def branched() -> Any:
    model = models_layers.chain(between=("Relu",))
    model.graph.output.append(helper.make_tensor_value_info("a0", onnx.TensorProto.FLOAT, ["N", models_layers.WIDTH, 8, 8]))
    return model


@pytest.mark.parametrize("model", [shared_weights, branched, lambda: models_layers.chain(between=("Sigmoid",)), zoo.conv_net, zoo.text_net])
def test_what_must_not_be_scaled(tmp_path: Path, model: Any) -> None:
    changed, source, output = equalize(model(), tmp_path)
    assert changed.detail == "0 pairs of convolutions equalised"
    assert source.read_bytes() == output.read_bytes()


def test_a_dead_channel_stays(tmp_path: Path) -> None:
    model = models_layers.chain(between=("Relu",))
    for weight in model.graph.initializer:
        value = numpy_helper.to_array(weight).copy()
        if weight.name == "w0":
            value[3] = 0
        weight.CopyFrom(numpy_helper.from_array(value, weight.name))
    _, source, output = equalize(model, tmp_path)
    before, after = weights(source), weights(output)
    np.testing.assert_array_equal(before["w1"][3], after["w1"][3])
    assert before["b0"][3] == after["b0"][3]
    assert outputs_differ_by(source, output) < 1e-5

"""What static quantisation does beyond ONNX Runtime's quantiser: bias correction, scales that are powers of two, layers left in float."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from optimizer import onnx_files, onnx_wiring, sensitivity
from optimizer.dataset import Dataset
from optimizer.drift import drift
from optimizer.passes import Changed, Context, load_pass
from optimizer.passes.quantize_static import _Reader
from optimizer.qdq import Pairs
from tests import models_layers
from tests import models_optimizer as zoo

STATIC = load_pass("quantize_static")
SAMPLES = Dataset({"x": zoo.images(32)[:, None]})


def quantize(model: Any, folder: Path, samples: Dataset = SAMPLES, **parameters: Any) -> tuple[Changed, Any]:
    """Returns what the pass says and the model that it wrote."""
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir()
    source = zoo.save(model, folder / "m.onnx")
    changed = STATIC.run(source, out, STATIC.parameters.model_validate(parameters), samples, Context(scratch))
    return changed, onnx.load(str(out / "model.onnx"))


def named(model: Any) -> Any:
    """A model whose nodes keep their names in the pass."""
    onnx_wiring.name_nodes(model)
    return model


def run(model: Any, tensors: Sequence[str], samples: Dataset) -> list[list[Any]]:
    """The values of `tensors` for each sample, pairs computed in floating point."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    present = {o.name for o in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=t) for t in tensors if t not in present)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [session.run(list(tensors), samples.feeds(i)) for i in range(samples.n)]


def constants(model: Any) -> dict[str, Any]:
    return {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}


# Bias correction


def shifts(plain: Any, quantized: Any, samples: Dataset) -> dict[str, float]:
    """Mean over channels of |mean of a layer's result - the float model's|, by the layer's name."""
    results = [{n.name: n.output[0] for n in m.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")} for m in (plain, quantized)]
    means = []
    for model, tensors in zip((plain, quantized), results):
        values = run(model, list(tensors.values()), samples)
        arrays = [np.concatenate([v[i] for v in values]) for i in range(len(tensors))]
        means.append({name: a.mean(axis=tuple(k for k in range(a.ndim) if k != 1)) for name, a in zip(tensors, arrays)})
    return {name: float(np.abs(means[1][name] - means[0][name]).mean()) for name in means[0]}


@pytest.mark.parametrize("parameters", [{}, {"per_channel": True}, {"scales": "pow2"}, {"activation": "s8", "activation_symmetric": True}])
def test_the_mean_shift_goes(tmp_path: Path, parameters: dict[str, Any]) -> None:
    model = named(models_layers.chain(between=("Relu",) * 3))
    _, rough = quantize(model, tmp_path / "a", **parameters)
    changed, corrected = quantize(model, tmp_path / "b", bias_correction=True, **parameters)
    assert changed.detail.endswith("; bias of 4 layers corrected")
    before, after = shifts(model, rough, SAMPLES), shifts(model, corrected, SAMPLES)
    assert set(before) == {"conv0", "conv1", "conv2", "conv3"}
    assert sum(after.values()) < 0.1 * sum(before.values())
    pairs = Pairs(model, corrected)
    for plain, node in pairs.weighted():
        stored = pairs.stored(node, 2)
        assert stored is not None
        assert after[plain.name] <= 0.1 * before[plain.name] + pairs.written(stored.affine)[0].max() / 2  # half a step of the bias


def test_a_convolution_without_bias_gets_one(tmp_path: Path) -> None:
    model = named(zoo.conv_net())
    bare = next(n for n in model.graph.node if n.op_type == "Conv" and len(n.input) == 2)
    _, corrected = quantize(model, tmp_path, bias_correction=True, per_channel=True)
    node = next(n for n in corrected.graph.node if n.name == bare.name)
    producer = next(n for n in corrected.graph.node if n.output[0] == node.input[2])
    bias, scale = (constants(corrected)[name] for name in producer.input[:2])
    assert bias.dtype == np.int32
    assert bias.any()
    scales = [constants(corrected)[next(n for n in corrected.graph.node if n.output[0] == node.input[i]).input[1]] for i in (0, 1)]
    np.testing.assert_allclose(scale, scales[0] * scales[1], rtol=1e-6)


def matmul_and_add(bias: Any) -> Any:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="product"),
        helper.make_node("Add", ["m", "b"], ["y"], name="sum"),
        helper.make_node("Tanh", ["y"], ["z"], name="tanh"),
    ]
    weights = {"w": models_layers.uneven(models_layers.WIDTH, 6, seed=1), "b": bias}
    sides = {"x": (onnx.TensorProto.FLOAT, ["N", 1, models_layers.WIDTH])}, {"z": (onnx.TensorProto.FLOAT, ["N", 1, 6])}
    return zoo.build(nodes, *sides, weights)


def test_the_addition_after_a_product_is_its_bias(tmp_path: Path) -> None:
    model = matmul_and_add(np.linspace(-1, 1, 6).astype(np.float32))
    samples = Dataset({"x": models_layers.vectors(32)[:, None, None] + 0.5})
    parameters = {"op_types": "MatMul", "reduce_range": True}
    errors = []
    for index, extra in enumerate(({}, {"bias_correction": True})):
        changed, quantized = quantize(model, tmp_path / str(index), samples, **parameters, **extra)
        means = [np.mean([values[0] for values in run(m, ["y"], samples)], axis=0) for m in (model, quantized)]
        errors.append(np.abs(means[1] - means[0]).max())
    assert changed.detail == "1 of 1 MatMul quantised; bias of 1 layers corrected"
    assert errors[1] < 0.3 * errors[0]  # the sum reads the product's result rounded to 8 bits


def test_what_another_node_adds_too_is_left_alone(tmp_path: Path) -> None:
    model = matmul_and_add(np.linspace(-1, 1, 6).astype(np.float32))
    model.graph.node.append(helper.make_node("Add", ["z", "b"], ["other"], name="other"))
    model.graph.output.append(helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, ["N", 1, 6]))
    samples = Dataset({"x": models_layers.vectors(32)[:, None, None]})
    changed, quantized = quantize(model, tmp_path, samples, op_types="MatMul", bias_correction=True)
    assert changed.detail.endswith("bias of 0 layers corrected")
    np.testing.assert_array_equal(constants(quantized)["b"], constants(model)["b"])


def test_a_sum_of_two_products_has_no_bias(tmp_path: Path) -> None:
    data = Dataset({name: array[:, None] if name == "x" else array for name, array in zoo.SAMPLES["state"].items()})
    changed, _ = quantize(zoo.state_net(), tmp_path, data, bias_correction=True)
    assert changed.detail.endswith("bias of 0 layers corrected")


# Powers of two


@pytest.mark.parametrize(
    "parameters",
    [{}, {"per_channel": True}, {"weight": "u8", "weight_symmetric": False}, {"activation": "s8", "activation_symmetric": True}],
)
@pytest.mark.parametrize("build", [zoo.conv_net, lambda: models_layers.chain(between=("Relu", 6.0, None))], ids=["conv", "chain"])
def test_scales_are_powers_of_two_and_ranges_stay_inside(tmp_path: Path, build: Any, parameters: dict[str, Any]) -> None:
    model = named(build())
    _, rough = quantize(model, tmp_path / "a", **parameters)
    changed, rounded = quantize(model, tmp_path / "b", scales="pow2", **parameters)
    assert "scales are powers of two" in changed.detail
    before, after = constants(rough), constants(rounded)
    pairs = [n for n in rounded.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        scale = after[node.input[1]]
        assert np.all(np.frexp(scale)[0] == 0.5)  # the mantissa of a power of two
        if before.get(node.input[0], np.zeros(0, np.int8)).dtype != np.int32:  # that of a bias follows its inputs
            assert np.all(scale >= before[node.input[1]] * (1 - 1e-5))
            assert np.all(scale < 2 * before[node.input[1]] * (1 + 1e-5))
    want, got = run(model, ["logits"], SAMPLES), run(rounded, ["logits"], SAMPLES)
    assert drift([v[0] for v in want], [v[0] for v in got]) < 0.2


def test_constants_are_rounded_from_the_float_values(tmp_path: Path) -> None:
    model = named(models_layers.chain(between=("Relu",)))
    _, rounded = quantize(model, tmp_path, scales="pow2", per_channel=True)
    pairs = Pairs(model, rounded)
    seen = 0
    for plain, node in pairs.weighted():
        for index in (1, 2):
            stored = pairs.stored(node, index)
            assert stored is not None
            value, scale = constants(model)[plain.input[index]], pairs.parameters(stored.affine, 4 if index == 1 else 1)[0]
            if index == 2:
                source, weight = pairs.activation(node, 0), pairs.stored(node, 1)
                assert source is not None
                assert weight is not None
                scale = pairs.written(source)[0] * pairs.written(weight.affine)[0]
            np.testing.assert_array_equal(pairs.values(stored), (np.round(value / scale) * scale).astype(np.float32))
            seen += 1
    assert seen == 4


def test_a_table_shares_its_scale_with_what_is_looked_up(tmp_path: Path) -> None:
    data = Dataset({name: array[:, None] for name, array in zoo.SAMPLES["text"].items()})
    _, rounded = quantize(zoo.text_net(), tmp_path, data, scales="pow2")
    want, got = run(zoo.text_net(), ["logits"], data), run(rounded, ["logits"], data)
    assert drift([v[0] for v in want], [v[0] for v in got]) < 0.2


# Layers left in float


def spoilt(layer: int, outlier: float = 40) -> Any:
    """A chain in which one layer's weights hold an outlier where activations are always zero, so that only its rounding suffers."""
    model = models_layers.chain(between=("Relu",) * 3, groups=1, spread=0.1)
    for weight in model.graph.initializer:
        value = numpy_helper.to_array(weight).copy()
        if weight.name == f"w{layer}":
            value[:, 0] = 0
            value[0, 0] = outlier
        if weight.name == f"w{layer - 1}":
            value[0] = 0
        if weight.name == f"b{layer - 1}":
            value[0] = -1
        weight.CopyFrom(numpy_helper.from_array(value, weight.name))
    return named(model)


def left_in_float(model: Any) -> set[str]:
    dequantized = {n.output[0] for n in model.graph.node if n.op_type == "DequantizeLinear"}
    return {n.name for n in model.graph.node if n.op_type in ("Conv", "Gemm", "MatMul") and n.input[1] not in dequantized}


def harm_without(model: Any, folder: Path, name: str) -> float:
    """Drift of the outputs when ONNX Runtime quantises all but that layer."""
    source = zoo.save(model, folder / "m.onnx")
    prepared = onnx_files.prepare(source, folder, opset=11)
    target = folder / "without.onnx"
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(prepared, target, _Reader(SAMPLES, 256), quant_format=QuantFormat.QDQ, nodes_to_exclude=[name], **types)
    want, got = run(model, ["logits"], SAMPLES), run(onnx.load(str(target)), ["logits"], SAMPLES)
    return drift([v[0] for v in want], [v[0] for v in got])


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_the_layer_whose_giving_back_is_best_comes_first(tmp_path: Path, layer: int) -> None:
    model = spoilt(layer)
    changed, quantized = quantize(model, tmp_path / "pass", float_layers=1)
    assert left_in_float(quantized) == {f"conv{layer}"}
    assert changed.detail == f"3 of 4 Conv quantised; left in float, most harmful first: conv{layer}"
    harms = {}
    for name in ("conv0", "conv1", "conv2", "conv3"):
        (tmp_path / name).mkdir()
        harms[name] = harm_without(model, tmp_path / name, name)
    assert min(harms, key=harms.__getitem__) == f"conv{layer}"


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 9])
def test_so_many_layers_and_no_more(tmp_path: Path, count: int) -> None:
    model = spoilt(2)
    _, quantized = quantize(model, tmp_path, float_layers=count)
    floats = left_in_float(quantized)
    assert len(floats) == min(count, 4)
    assert not count or "conv2" in floats


def test_blocks_of_layers_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "_ALONE", 2)
    assert left_in_float(quantize(spoilt(2), tmp_path / "a", float_layers=1)[1]) == {"conv2"}
    assert len(left_in_float(quantize(spoilt(2), tmp_path / "b", float_layers=3)[1])) == 3


def test_nodes_without_names_get_their_own(tmp_path: Path) -> None:
    model = spoilt(2)
    for node in model.graph.node:
        node.name = ""
    changed, quantized = quantize(model, tmp_path, float_layers=1)
    assert changed.detail.startswith("3 of 4 Conv quantised; left in float")
    assert len(left_in_float(quantized)) == 1


def test_indices_are_outputs_too(tmp_path: Path) -> None:
    """Some recognisers return classes alone; the share of others ranks then."""
    model = spoilt(2, outlier=400)
    bias = next(w for w in model.graph.initializer if w.name == "b3")
    bias.CopyFrom(numpy_helper.from_array(np.zeros(zoo.CLASSES, np.float32), "b3"))
    model.graph.node.append(helper.make_node("ArgMax", ["c3"], ["class"], axis=1, keepdims=0, name="argmax"))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("class", onnx.TensorProto.INT64, ["N", 8, 8]))
    assert len(np.unique([v[0] for v in run(model, ["class"], SAMPLES)])) > 1
    assert left_in_float(quantize(model, tmp_path, float_layers=1)[1]) == {"conv2"}


def test_all_of_it_together(tmp_path: Path) -> None:
    model = spoilt(2)
    changed, quantized = quantize(model, tmp_path, float_layers=1, scales="pow2", bias_correction=True)
    assert [part.strip().split(" ", 1)[-1] for part in changed.detail.split(";")][-1] == "of 3 layers corrected"
    assert left_in_float(quantized) == {"conv2"}


# Formulas


def exposed(bits_reduced: bool, tmp_path: Path) -> tuple[Any, Any]:
    _, quantized = quantize(named(zoo.conv_net()), tmp_path, reduce_range=bits_reduced)
    return quantized, constants(quantized)


def test_linear_quantisation_by_the_formula(tmp_path: Path) -> None:
    """round((x - min) / (max - min) * (2^n - 1)) against the written scale and zero point of the input, rounded as the runtime does."""
    quantized, values = exposed(False, tmp_path)
    node = next(n for n in quantized.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "x")
    x = SAMPLES.inputs["x"]
    low, high = float(x.min()), float(x.max())
    integers = np.stack([v[0] for v in run(quantized, [node.output[0]], SAMPLES)])
    formula = np.round((x - low) / (high - low) * (2**8 - 1))
    difference = np.abs(integers.astype(np.int64) - formula.astype(np.int64))
    assert difference.max() <= 1  # the zero point is rounded to an integer, so that 0 is exact
    assert values[node.input[1]] == pytest.approx((high - low) / 255, rel=1e-5)
    assert values[node.input[2]] == round(-low / ((high - low) / 255))


@pytest.mark.parametrize("bits", range(2, 9))
def test_fewer_bits_by_the_same_formula(tmp_path: Path, bits: int) -> None:
    """After a Relu the range begins at 0, the zero point is 0, and written scale and formula agree for any number of bits."""
    quantized, values = exposed(False, tmp_path)
    node = next(n for n in quantized.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "r1")
    scale = float(values[node.input[1]]) * 255 / (2**bits - 1)
    assert values[node.input[2]] == 0
    x = np.stack([v[0] for v in run(named(zoo.conv_net()), ["r1"], SAMPLES)])
    formula = np.round((x - 0.0) / (float(x.max()) - 0.0) * (2**bits - 1))
    affine = np.clip(np.round(x / scale), 0, 2**bits - 1)
    assert np.mean(affine != formula) < 1e-3  # ties, which floats may break either way
    assert np.abs(affine - formula).max() <= 1
    if bits == 8:
        written = np.stack([v[0] for v in run(quantized, [node.output[0]], Dataset({"x": SAMPLES.inputs["x"]}))])
        assert written.max() == 255
        assert written.min() == 0


@pytest.mark.parametrize(("reduced", "bits"), [(False, 8), (True, 7)])
def test_symmetric_weights_use_their_bits(tmp_path: Path, reduced: bool, bits: int) -> None:
    _, values = exposed(reduced, tmp_path)
    for name in ("w1", "w2", "w3"):
        weight, integers, scale = zoo.conv_weights()[name], values[f"{name}_quantized"], values[f"{name}_scale"]
        steps = 2 ** (bits - 1) - (0 if reduced else 1)
        assert float(scale) == pytest.approx(np.abs(weight).max() / steps, rel=1e-5)
        np.testing.assert_array_equal(integers, np.clip(np.round(weight / scale), -steps, steps))

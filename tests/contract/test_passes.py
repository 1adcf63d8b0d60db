"""What every pass promises: it loads what it claims to, keeps inputs and outputs, changes what it says, equal input gives equal bytes.

A pass is added here by one parameter.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgefarm.digest import digest_file
from edgefarm.model import FailureKind
from optimizer import checks, onnx_files
from optimizer.dataset import Dataset
from optimizer.passes import ALTERNATIVE, PASSES, Changed, Context, PassFailure, load_pass
from optimizer.source import FORMATS, inspect_model
from tests import models_layers
from tests import models_optimizer as zoo
from tests.contract import test_passes_formats, test_passes_training

MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "conv": (zoo.conv_net, "conv"),
    "conv-opset9": (lambda: zoo.conv_net(opset=9), "conv"),
    "conv-opset12": (lambda: zoo.conv_net(opset=12), "conv"),
    "conv-opset21": (lambda: zoo.conv_net(opset=21), "conv"),
    "conv-batch4": (lambda: zoo.conv_net(batch=4), "conv"),
    "depthwise": (lambda: zoo.conv_net(groups=8), "conv"),
    "constants": (lambda: zoo.conv_net(constants=True), "conv"),
    "dirty": (zoo.dirty_net, "conv"),
    "nhwc": (zoo.nhwc_net, "nhwc"),
    "text": (zoo.text_net, "text"),
    "state": (zoo.state_net, "state"),
    "contrib": (zoo.contrib_net, "pool"),
    "chain": (lambda: models_layers.chain(spread=0.5), "conv"),  # more saturates without VNNI
    "normalised": (models_layers.normalised, "wide"),
}
CONVOLVED = {"conv", "conv-opset9", "conv-opset12", "conv-opset21", "conv-batch4", "constants"}  # weights that a codebook makes smaller
FINDS = {
    "equalize": {"chain"},
    "smooth": {"normalised"},
    "quantize_weights": set(MODELS) - {"dirty", "nhwc", "chain"},
    "codebook": CONVOLVED,
}  # where passes that look for a pattern find it; others do in all models
CASES: list[tuple[str, dict[str, Any]]] = [
    ("graph", {}),
    ("convert_float16", {}),
    ("quantize_dynamic", {}),
    ("quantize_dynamic", {"per_channel": True, "weight": "s8"}),
    ("quantize_dynamic", {"float_layers": 1, "per_channel": True, "weight": "s8"}),
    ("quantize_static", {}),
    ("quantize_static", {"per_channel": True, "activation": "s8", "activation_symmetric": True}),
    ("quantize_static", {"calibration": "entropy", "per_channel": True}),
    ("quantize_static", {"calibration": "percentile", "reduce_range": True}),
    ("quantize_static", {"bias_correction": True, "scales": "pow2"}),
    ("quantize_static", {"float_layers": 1, "per_channel": True}),
    ("equalize", {}),
    ("equalize", {"replace_clip": True}),
    ("smooth", {}),
    ("quantize_weights", {}),
    ("quantize_weights", {"bits": 8, "block_size": 16, "symmetric": True}),
    ("quantize_weights", {"embeddings": True}),
    ("codebook", {}),
    ("codebook", {"kind": "logarithmic", "channels": 4}),
]
WHOLE = ("quantize_dynamic", "quantize_static")  # these take all operators that have weights
IDS = ["-".join([name, *(f"{k}={v}" for k, v in parameters.items())]) for name, parameters in CASES]


def samples(path: Path, model: str) -> Dataset:
    data = path.parent / "samples.npz"
    np.savez(data, **zoo.SAMPLES[MODELS[model][1]])
    return Dataset.load(data, inspect_model(path), with_targets=False)


def apply(name: str, parameters: dict[str, Any], path: Path, calibration: Dataset | None, folder: Path) -> tuple[Changed, Path]:
    """Runs a pass in this process; returns what it says and the file that it wrote."""
    used = load_pass(name)
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir()
    changed = used.run(path, out, used.parameters.model_validate(parameters), calibration, Context(scratch))
    return changed, out / "model.onnx"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("name", "parameters"), CASES, ids=IDS)
def test_output_stands_the_checks(tmp_path: Path, name: str, parameters: dict[str, Any], model: str) -> None:
    path = zoo.save(MODELS[model][0](), tmp_path / "m.onnx")
    data = samples(path, model)
    changed, output = apply(name, parameters, path, data, tmp_path)
    used = load_pass(name)
    try:
        checks.check(path, output, used, data.take(range(4)))
    except checks.Unchanged:
        assert not used.must_change or model not in FINDS.get(name, MODELS) or _all_left_in_float(parameters, changed)
    assert changed.detail
    assert checks.io_difference(inspect_model(path), inspect_model(output)) == ""
    assert onnx.load(str(output)).ir_version <= 10
    assert {o.domain for o in onnx.load(str(output)).opset_import} <= {"", "com.microsoft"}


def _all_left_in_float(parameters: dict[str, Any], changed: Changed) -> bool:
    return bool(parameters.get("float_layers")) and changed.detail.startswith("0 of 1 ")


@pytest.mark.parametrize(("name", "parameters"), CASES, ids=IDS)
def test_equal_input_gives_equal_bytes(tmp_path: Path, name: str, parameters: dict[str, Any]) -> None:
    path = zoo.save(zoo.conv_net(), tmp_path / "m.onnx")
    data = samples(path, "conv")
    digests = {digest_file(apply(name, parameters, path, data, tmp_path / str(i))[1]) for i in range(2)}
    assert len(digests) == 1


@pytest.mark.parametrize("name", PASSES)
def test_every_pass_is_tested_and_states_what_it_is(name: str) -> None:
    used = load_pass(name)
    assert used.name == name
    elsewhere = {ALTERNATIVE} | {n for n in PASSES if load_pass(n).toolchain}  # those have tests that install their toolchain
    assert name in {case for case, _ in (*CASES, *test_passes_formats.CASES, *test_passes_training.CASES)} | elsewhere
    assert used.evidence in checks.EVIDENCE
    assert used.version >= 1
    assert used.drift > 0
    assert used.formats
    assert used.writes in ("", *(f.name for f in FORMATS.values()))
    assert name == ALTERNATIVE or used.parameters()  # all parameters have defaults


@pytest.mark.parametrize("name", PASSES)
def test_importing_a_pass_is_cheap(name: str) -> None:
    heavy = "('onnx', 'onnxruntime', 'onnxslim', 'torch', 'sympy', 'openvino', 'ai_edge_litert', 'ai_edge_quantizer', 'flatbuffers')"
    code = f"import sys; from optimizer.passes import load_pass; load_pass({name!r}); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("name", "parameters"), [c for c in CASES if c[0] in WHOLE], ids=[i for i in IDS if i.split("-")[0] in WHOLE])
def test_everything_with_weights_is_quantised(tmp_path: Path, name: str, parameters: dict[str, Any]) -> None:
    path = zoo.save(zoo.conv_net(constants=True), tmp_path / "m.onnx")  # a silent no-op for a quantiser that isn't told
    changed, output = apply(name, parameters, path, samples(path, "conv"), tmp_path)
    left = parameters.get("float_layers", 0)
    convolutions, products = (1, 1) if left and name == "quantize_dynamic" else (2, 1 - left)  # which one does most harm
    assert changed.detail.split(";")[0] == f"{convolutions} of 2 Conv, {products} of 1 Gemm quantised"
    assert output.stat().st_size > 0
    signature = inspect_model(output)
    assert signature.weight_dtypes.get("int8", 0) + signature.weight_dtypes.get("uint8", 0) >= 3 - left


@pytest.mark.parametrize("name", ["quantize_dynamic", "quantize_static"])
def test_a_subset_leaves_the_rest_alone(tmp_path: Path, name: str) -> None:
    path = zoo.save(zoo.conv_net(), tmp_path / "m.onnx")
    data = samples(path, "conv")
    assert apply(name, {"op_types": "Conv"}, path, data, tmp_path / "a")[0].detail == "2 of 2 Conv, 0 of 1 Gemm quantised"
    assert apply(name, {"op_types": "MatMul,Gemm"}, path, data, tmp_path / "b")[0].detail == "0 of 2 Conv, 1 of 1 Gemm quantised"


@pytest.mark.parametrize("name", ["quantize_dynamic", "quantize_static", "convert_float16"])
def test_nothing_to_do_is_unchanged(tmp_path: Path, name: str) -> None:
    path = zoo.save(zoo.pool_net(), tmp_path / "m.onnx")
    np.savez(tmp_path / "s.npz", **zoo.SAMPLES["pool"])
    data = Dataset.load(tmp_path / "s.npz", inspect_model(path), with_targets=False)
    _, output = apply(name, {}, path, data, tmp_path)
    with pytest.raises(checks.Unchanged):
        checks.check(path, output, load_pass(name), data)


def test_graph_cleans_what_is_dirty(tmp_path: Path) -> None:
    path = zoo.save(zoo.dirty_net(), tmp_path / "m.onnx")
    changed, output = apply("graph", {}, path, None, tmp_path)
    assert inspect_model(output).op_types == {"Conv": 1, "Relu": 1}
    assert changed.detail.startswith("7 -> 2 nodes (")
    assert "BatchNormalization 1 -> 0" in changed.detail


def test_graph_leaves_what_is_clean(tmp_path: Path) -> None:
    path = zoo.save(zoo.conv_net(), tmp_path / "m.onnx")
    _, output = apply("graph", {}, path, None, tmp_path)
    with pytest.raises(checks.Unchanged):
        checks.check(path, output, load_pass("graph"), None)


def test_graph_switches(tmp_path: Path) -> None:
    path = zoo.save(zoo.dirty_net(), tmp_path / "m.onnx")
    changed, _ = apply("graph", {"fold": False, "simplify": False}, path, None, tmp_path)
    assert changed.detail == "7 -> 7 nodes"


def test_float16_counts_weights(tmp_path: Path) -> None:
    path = zoo.save(zoo.conv_net(), tmp_path / "m.onnx")
    changed, output = apply("convert_float16", {}, path, None, tmp_path / "a")
    assert changed.detail == "5 of 5 weights in float16"
    assert output.stat().st_size < path.stat().st_size
    assert apply("convert_float16", {"keep_float32": "Gemm"}, path, None, tmp_path / "b")[0].detail == "3 of 5 weights in float16"


def test_static_without_samples(tmp_path: Path) -> None:
    path = zoo.save(zoo.conv_net(), tmp_path / "m.onnx")
    with pytest.raises(PassFailure) as caught:
        apply("quantize_static", {}, path, None, tmp_path)
    assert caught.value.kind is FailureKind.UNSUPPORTED_OP


def test_types_that_plain_inference_does_not_know(tmp_path: Path) -> None:
    path = zoo.save(zoo.contrib_net(), tmp_path / "m.onnx")
    changed, _ = apply("quantize_static", {}, path, samples(path, "contrib"), tmp_path)
    assert changed.detail == "2 of 2 MatMul quantised"


def test_an_opset_that_cannot_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: Any, version: int) -> Any:
        raise RuntimeError("no adapter for Foo")

    monkeypatch.setattr(onnx.version_converter, "convert_version", refuse)
    path = zoo.save(zoo.conv_net(opset=12), tmp_path / "m.onnx")
    data = samples(path, "conv")
    assert apply("quantize_static", {}, path, data, tmp_path / "a")[0].detail == "2 of 2 Conv, 1 of 1 Gemm quantised"
    with pytest.raises(PassFailure, match=r"needs operator set 13, the model's is 12 .*no adapter for Foo") as caught:
        apply("quantize_static", {"per_channel": True}, path, data, tmp_path / "b")
    assert caught.value.kind is FailureKind.UNSUPPORTED_OP


def test_all_calibration_samples_are_seen(tmp_path: Path) -> None:
    """The extremes lie in the last sample of 33: strides must not lose it."""
    path = zoo.save(zoo.conv_net(), tmp_path / "m.onnx")
    x = zoo.images(32, seed=3) * 0.1
    x[31] *= 300
    data = Dataset({"x": x[:, None]})
    for index, parameters in enumerate(({}, {"calibration": "percentile", "percentile": 100.0})):
        _, output = apply("quantize_static", parameters, path, data, tmp_path / str(index))
        scale = next(t for t in onnx.load(str(output)).graph.initializer if t.name == "x_scale")
        span = max(x.max(), 0) - min(x.min(), 0)
        assert float(onnx.numpy_helper.to_array(scale)) == pytest.approx(span / 255, rel=0.05)


@pytest.mark.parametrize(("name", "parameters"), CASES, ids=IDS)
def test_external_data(tmp_path: Path, name: str, parameters: dict[str, Any]) -> None:
    path = zoo.save(zoo.conv_net(), tmp_path / "m.onnx", external=True)
    inline = zoo.save(zoo.conv_net(), tmp_path / "inline" / "m.onnx")
    data = samples(path, "conv")
    _, output = apply(name, parameters, path, data, tmp_path / "a")
    _, other = apply(name, parameters, inline, data, tmp_path / "b")
    assert digest_file(output) == digest_file(other)


@pytest.mark.parametrize(("name", "parameters"), CASES, ids=IDS)
def test_models_too_large_for_one_file(tmp_path: Path, name: str, parameters: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_files, "LARGE_BYTES", 0)
    path = zoo.save(zoo.conv_net(), tmp_path / "m.onnx", external=True)
    data = samples(path, "conv")
    _, output = apply(name, parameters, path, data, tmp_path)
    assert set(inspect_model(output).files) <= {"model.onnx", "model.onnx.data"}
    assert {p.name for p in output.parent.iterdir()} == set(inspect_model(output).files)
    session = onnxruntime.InferenceSession(str(output), providers=["CPUExecutionProvider"])
    assert session.run(None, data.feeds(0))[0].shape == (1, 5)

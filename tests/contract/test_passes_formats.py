"""The promises of `test_passes` for passes that read or write other formats than ONNX.

A pass is added here by one parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from edgefarm.digest import digest_file
from edgefarm.model import FailureKind
from optimizer import checks
from optimizer.dataset import Dataset
from optimizer.drift import drift
from optimizer.engines import ENGINES, open_model
from optimizer.io_maps import through
from optimizer.passes import PASSES, Changed, Context, PassFailure, load_pass
from optimizer.process import PassRequest, run_pass
from optimizer.recipe import RecipeError, Space, expand
from optimizer.source import inspect_model, load_source
from tests import models_optimizer as zoo
from tests import models_tflite, zoo_tflite

Build = Callable[[Path], Path]
LAST = {"serving_default_x:0": zoo.images(20).transpose(0, 2, 3, 1)}
MODELS: dict[str, tuple[Build, Any]] = {
    "onnx": (lambda folder: zoo.save(zoo.conv_net(), folder / "m.onnx"), {"x": zoo.images(20)}),
    "onnx-text": (lambda folder: zoo.save(zoo.text_net(), folder / "m.onnx"), zoo.SAMPLES["text"]),
    "onnx-nhwc": (lambda folder: zoo.save(zoo.nhwc_net(), folder / "m.onnx"), zoo.SAMPLES["nhwc"]),
    "onnx-external": (lambda folder: zoo.save(zoo.conv_net(), folder / "m.onnx", external=True), {"x": zoo.images(20)}),
    "tflite": (models_tflite.conv_net, LAST),
    "tflite-open": (lambda folder: models_tflite.conv_net(folder, batch=-1), LAST),
    "tflite-outside": (lambda folder: models_tflite.outside(models_tflite.conv_net(folder)), LAST),
    "tflite-half": (models_tflite.half_net, {"x": np.random.default_rng(2).normal(size=(20, 4)).astype(np.float32)}),
    "tflite-two": (zoo_tflite.several_inputs, {"left": np.ones((20, 8), np.float32), "right": np.ones((20, 4), np.float32)}),
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("quantize_tflite", {}),
    ("quantize_tflite", {"per_channel": False}),
    ("quantize_tflite", {"algorithm": "octav", "samples": 3}),
    ("quantize_tflite", {"activation_bits": 16}),
    ("quantize_tflite", {"calibration": "average"}),
    ("quantize_tflite", {"mode": "dynamic"}),
    ("quantize_tflite", {"mode": "weight_only"}),
    ("quantize_tflite", {"mode": "weight_only", "weight_bits": 4}),
    ("to_openvino", {}),
    ("to_openvino", {"compress_to_fp16": True}),
]
IDS = ["-".join([name, *(f"{k}={v}" for k, v in parameters.items())]) for name, parameters in CASES]
PAIRS = [
    pytest.param(name, parameters, model, id=f"{identity}-{model}")
    for (name, parameters), identity in zip(CASES, IDS)
    for model in MODELS
    if model.split("-")[0] in load_pass(name).formats
]


def built(model: str, folder: Path) -> tuple[Path, Dataset]:
    folder.mkdir(parents=True, exist_ok=True)
    path = MODELS[model][0](folder)
    np.savez(folder / "samples.npz", **MODELS[model][1])
    return path, Dataset.load(folder / "samples.npz", inspect_model(path), with_targets=False)


def apply(
    name: str, parameters: dict[str, Any], path: Path, data: Dataset | None, folder: Path, given: Mapping[str, Path] = MappingProxyType({})
) -> tuple[Changed, Path]:
    """Runs a pass in this process; returns what it says and the main file that it wrote."""
    used = load_pass(name)
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir()
    with np.errstate(all="ignore"):
        changed = used.run(path, out, used.parameters.model_validate(parameters), data, Context(scratch, 0, data, given))
    return changed, next(p for p in out.iterdir() if p.suffix in (".tflite", ".xml", ".onnx"))


pytestmark = pytest.mark.filterwarnings("ignore:Warning. Enabling `experimental_preserve_all_tensors`:UserWarning")


@pytest.mark.parametrize(("name", "parameters", "model"), PAIRS)
def test_output_stands_the_checks(tmp_path: Path, name: str, parameters: dict[str, Any], model: str) -> None:
    path, data = built(model, tmp_path)
    changed, output = apply(name, parameters, path, data, tmp_path)
    used = load_pass(name)
    checks.check(path, output, used, data.take(range(4)), changed.io)
    assert changed.detail
    assert load_source(output).signature.format == (used.writes or inspect_model(path).format)


@pytest.mark.parametrize(("name", "parameters"), CASES, ids=IDS)
def test_equal_input_gives_equal_bytes(tmp_path: Path, name: str, parameters: dict[str, Any]) -> None:
    """In processes of their own, as passes run: a library may number what it makes."""
    path, data = built("tflite", tmp_path)
    data.save_inputs(tmp_path / "samples.pack")
    full = load_pass(name).parameters.model_validate(parameters).model_dump()
    folders = [tmp_path / str(i) for i in range(2)]
    for folder in folders:
        request = PassRequest(PASSES[name], full, str(path), str(tmp_path / "samples.pack"), "", str(folder), "", str(tmp_path / "no"), 120)
        assert run_pass(request).outcome == "changed"
    for one, other in zip(*(sorted((f / "out").iterdir()) for f in folders)):
        assert digest_file(one) == digest_file(other), one.name


@pytest.mark.parametrize("model", ["tflite", "tflite-outside", "tflite-two"])
@pytest.mark.parametrize("parameters", [{}, {"per_channel": False}, {"mode": "dynamic"}, {"mode": "weight_only"}], ids=str)
def test_openvino_reads_what_was_quantised(tmp_path: Path, parameters: dict[str, Any], model: str) -> None:
    path, data = built(model, tmp_path)
    _, output = apply("quantize_tflite", parameters, path, data, tmp_path)
    results = []
    for engine in ("tflite", "openvino"):
        run = ENGINES[engine].open(output).run
        results.append([value for i in range(4) for value in run(data.feeds(i)).values()])
    assert drift(*results) < (0.02 if _adds_in_32_bits() else 0.5)


def _adds_in_32_bits() -> bool:
    """Whether sums of 8-bit products don't saturate: on x86 before VNNI, OpenVINO adds pairs of them in 16 bits."""
    flags = Path("/proc/cpuinfo").read_text()
    return "vnni" in flags or "avx2" not in flags


def test_quantised_weights_are_aligned(tmp_path: Path) -> None:
    """To 16 bytes, as the schema asks for; all of them inside the flatbuffer."""
    path, data = built("tflite-outside", tmp_path)
    _, output = apply("quantize_tflite", {}, path, data, tmp_path)
    model = schema.Model.GetRootAs(output.read_bytes(), 0)
    buffers = [model.Buffers(i) for i in range(model.BuffersLength())]
    places = [b._tab.Vector(b._tab.Offset(4)) for b in buffers if not b.DataIsNone()]
    assert len(places) > 3
    assert all(place % 16 == 0 for place in places)
    assert not any(b.Offset() for b in buffers)


def test_extremes_hold_what_a_moving_average_cuts(tmp_path: Path) -> None:
    path, data = built("tflite", tmp_path)
    off = {}
    for calibration in ("minmax", "average"):
        parameters = {"calibration": calibration, "activation_bits": 16}
        changed, output = apply("quantize_tflite", parameters, path, data, tmp_path / calibration)
        runs = (open_model(path), through(open_model(output), changed.io, inspect_model(output)))
        want, got = ([value for i in range(data.n) for value in run(data.feeds(i)).values()] for run in runs)
        off[calibration] = drift(want, got)
    assert off["minmax"] < 0.02 < off["average"]


def test_nothing_is_left_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a library that calls home keeps who is calling."""
    path, home = built("tflite", tmp_path)[0], tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    request = PassRequest(PASSES["to_openvino"], {}, str(path), "", "", str(tmp_path / "work"), "", str(tmp_path / "no"), 120)
    assert run_pass(request).outcome == "changed"
    assert list(home.rglob("*")) == []


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
def test_a_model_without_weights_is_unchanged(tmp_path: Path, mode: str) -> None:
    path = models_tflite.sum_net(tmp_path)
    data = Dataset({"x": np.random.default_rng(2).normal(size=(6, 1, 4)).astype(np.float32)})
    changed, output = apply("quantize_tflite", {"mode": mode}, path, data, tmp_path)
    assert changed.detail == "no weight quantised"
    with pytest.raises(checks.Unchanged):
        checks.check(path, output, load_pass("quantize_tflite"), data, changed.io)


def test_half_weights_are_not_left_alone(tmp_path: Path) -> None:
    """A quantiser that meets float16 weights behind DEQUANTIZE gives them back as they were."""
    path, data = built("tflite-half", tmp_path)
    changed, output = apply("quantize_tflite", {"mode": "dynamic"}, path, data, tmp_path)
    assert changed.detail == "1 of 2 weights in int8; 1 were float16"
    assert inspect_model(output).weight_dtypes["int8"] == 1


def test_an_integer_pass_that_left_no_integers_is_unchanged(tmp_path: Path) -> None:
    path = models_tflite.conv_net(tmp_path)
    other = models_tflite.conv_net(tmp_path / "other", shift=1e-4)
    with pytest.raises(checks.Unchanged, match="no integer operator and no 8-bit weight was added"):
        checks.check(path, other, load_pass("quantize_tflite"), None)


def test_a_subset_of_operators(tmp_path: Path) -> None:
    path, data = built("tflite", tmp_path)
    changed, _ = apply("quantize_tflite", {"mode": "dynamic", "op_types": "conv_2d"}, path, data, tmp_path / "a")
    assert changed.detail == "2 of 6 weights in int8"
    with pytest.raises(PassFailure, match="op_types names LSTM, which the model does not have; it has ADD, CONV_2D"):
        apply("quantize_tflite", {"mode": "dynamic", "op_types": "LSTM"}, path, data, tmp_path / "b")


def test_static_without_samples(tmp_path: Path) -> None:
    path, _ = built("tflite", tmp_path)
    with pytest.raises(PassFailure) as caught:
        apply("quantize_tflite", {}, path, None, tmp_path)
    assert caught.value.kind is FailureKind.UNSUPPORTED_OP


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"mode": "dynamic", "activation_bits": 16}, "activation_bits 16 needs mode static"),
        ({"weight_bits": 4}, "weight_bits 4 needs mode dynamic or weight_only"),
        ({"mode": ["static", "dynamic"], "weight_bits": 4}, "weight_bits 4 needs"),
        ({"weight_bits": 5}, "weight_bits"),
    ],
)
def test_parameters_that_do_not_go_together(tmp_path: Path, parameters: dict[str, Any], message: str) -> None:
    signature = inspect_model(models_tflite.conv_net(tmp_path))
    with pytest.raises(RecipeError, match=message):
        expand([{"name": "a", "passes": [{"pass": "quantize_tflite", **parameters}]}], Space(signature, True), 40)


def test_dynamic_needs_no_samples(tmp_path: Path) -> None:
    signature = inspect_model(models_tflite.conv_net(tmp_path))
    recipe = [{"name": "a", "passes": [{"pass": "quantize_tflite", "mode": ["static", "dynamic"]}]}]
    with pytest.raises(RecipeError, match=r"needs samples: give data\.calibration"):
        expand(recipe, Space(signature, False), 40)
    recipe[0]["passes"][0]["mode"] = ["dynamic", "weight_only"]
    assert [p.name for p in expand(recipe, Space(signature, False), 40)] == ["a-dynamic", "a-weight_only"]


def test_half_weights_that_were_not_stored_are_told(tmp_path: Path) -> None:
    path = zoo.save(zoo.pool_net(), tmp_path / "m.onnx")
    with pytest.raises(PassFailure, match="no weight was stored in half precision") as caught:
        apply("to_openvino", {"compress_to_fp16": True}, path, None, tmp_path)
    assert caught.value.kind is FailureKind.UNCHANGED


def alternative(given: Path, source: Path, probe: Dataset | None, folder: Path) -> tuple[Changed, Path]:
    digest = load_source(given).artifact.digest
    return apply("alternative", {"file": given.name, "digest": digest}, source, probe, folder, {digest: given})


def test_an_alternative_is_taken_with_its_mapping(tmp_path: Path) -> None:
    source, data = built("onnx", tmp_path / "source")
    changed, output = alternative(built("tflite", tmp_path / "given")[0], source, data.take(range(4)), tmp_path)
    checks.check(source, output, load_pass("alternative"), data, changed.io)
    assert changed.io is not None
    assert [(m.source, m.name, m.permutation) for m in changed.io.inputs] == [("x", "serving_default_x:0", (0, 2, 3, 1))]
    assert changed.plain
    assert changed.detail == "model.tflite, the same network in tflite"


def test_several_files_are_taken(tmp_path: Path) -> None:
    source, data = built("onnx", tmp_path / "source")
    _, converted = apply("to_openvino", {}, source, data, tmp_path / "converted")
    changed, output = alternative(converted, source, data, tmp_path)
    assert {p.name for p in output.parent.iterdir()} == {"model.xml", "model.bin"}
    assert changed.io is None


def test_a_quantised_alternative_is_not_plain(tmp_path: Path) -> None:
    source, data = built("onnx", tmp_path / "source")
    path, channels_last = built("tflite", tmp_path / "given")
    _, quantised = apply("quantize_tflite", {}, path, channels_last, tmp_path / "quantised")
    changed, _ = alternative(quantised, source, data, tmp_path)
    assert changed.detail == "model.tflite, the same network in tflite, quantised"
    assert not changed.plain


def test_another_network_is_no_alternative(tmp_path: Path) -> None:
    source, data = built("onnx", tmp_path / "source")
    (tmp_path / "given").mkdir()
    other = models_tflite.conv_net(tmp_path / "given", shift=0.5)
    with pytest.raises(PassFailure, match="not the same network: fed with 'x' as 'serving_default_x:0' transposed by") as caught:
        alternative(other, source, data, tmp_path)
    assert caught.value.kind is FailureKind.NUMERIC
    with pytest.raises(PassFailure, match="without samples"):
        alternative(other, source, None, tmp_path / "again")

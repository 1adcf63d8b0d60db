"""What every runtime owes. A new runtime: one more row in MAKERS, which makes models in the formats that it reads."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.runtimes import RUNTIMES, Library, Model, Profile, Runtime, RuntimeEntry, RuntimeFailure, is_installed, load_runtime, missing
from edgefarm.errors import UserError
from edgefarm.model import FailureKind, Options
from tests import zoo


@dataclass(frozen=True)
class Factory:
    """How the suite gets models for one runtime.

    Attributes:
        models: name -> builder, of what it must run.
        samples: inputs of a model that the factory made: name -> one array per sample.
        dense: x: float32[N, 16] -> y: float32[N, 10].
        broken: name -> builder, of files that it must refuse.
        unsupported: name -> builder, of models with an operator that it lacks, one for each format that can say that.
        options: options that it must take.
        hidden_state: name -> builder, of models that remember what they were fed; none where the runtime keeps nothing.
    """

    models: Mapping[str, zoo.Build]
    samples: Callable[[Path], Mapping[str, Sequence[zoo.Array]]]
    dense: zoo.Build
    broken: Mapping[str, zoo.Build]
    unsupported: Mapping[str, zoo.Build]
    options: tuple[Options, ...]
    hidden_state: Mapping[str, zoo.Build] = field(default_factory=dict)


def _garbage(suffix: str) -> zoo.Build:
    def write(folder: Path) -> Path:
        path = folder / f"model.{suffix}"
        path.write_bytes(np.random.default_rng(0).bytes(4096))
        return path

    return write


def _onnxruntime() -> Factory:
    options: tuple[Options, ...] = (
        {"threads": 1},
        {"threads": 2, "session.intra_op.allow_spinning": False},
        {"execution_provider": "CPUExecutionProvider", "graph_optimization_level": "disable"},
        {"graph_optimization_level": "basic", "session.disable_prepacking": 1},
        {"graph_optimization_level": "extended"},
        {"graph_optimization_level": "all"},
    )
    broken = {"truncated": zoo.truncated, "garbage": _garbage("onnx")}
    return Factory(zoo.MODELS, zoo.samples, zoo.dense, broken, {"onnx": zoo.unknown_operator}, options)


def _tflite() -> Factory:
    from tests import zoo_tflite

    options: tuple[Options, ...] = ({}, {"threads": 2}, {"delegate": "xnnpack"}, {"delegate": "none", "threads": 1})
    return Factory(
        models=zoo_tflite.MODELS, samples=zoo_tflite.samples, dense=zoo_tflite.dense,
        broken={"truncated": zoo_tflite.truncated, "garbage": _garbage("tflite")},
        unsupported={"tflite": zoo_tflite.unknown_operator}, options=options,
        hidden_state={"variable": zoo_tflite.hidden_state, "resource": zoo_tflite.resource_state},
    )  # fmt: skip


def _openvino() -> Factory:
    from tests import zoo_openvino, zoo_tflite

    options: tuple[Options, ...] = ({}, {"threads": 2}, {"device": "CPU", "threads": 1}, {"inference_precision": "f32"})
    foreign = {f"tflite_{name}": zoo_tflite.MODELS[name] for name in ("dense", "convolution", "dynamic_axes", "int8", "int8_inside")}
    return Factory(
        models={**zoo_openvino.MODELS, **{f"onnx_{name}": build for name, build in zoo.MODELS.items()}, **foreign},
        samples=zoo_openvino.samples, dense=zoo_openvino.dense,
        broken={
            "truncated": zoo_openvino.truncated, "without_weights": zoo_openvino.without_weights,
            "short_weights": zoo_openvino.short_weights, "garbage": _garbage("xml"), "onnx": zoo.truncated,
            "tflite": zoo_tflite.truncated,
        },
        unsupported={"openvino": zoo_openvino.unknown_operator, "onnx": zoo.unknown_operator, "tflite": zoo_tflite.unknown_operator},
        options=options, hidden_state={"variable": zoo_openvino.hidden_state},
    )  # fmt: skip


MAKERS: dict[str, Callable[[], Factory]] = {"onnxruntime": _onnxruntime, "tflite": _tflite, "openvino": _openvino}
FACTORIES = {name: make() for name, make in MAKERS.items() if is_installed(name)}


def _cases(part: str) -> list[tuple[str, str]]:
    """(runtime, model) for every model of one part of the factories; a runtime without its library has one, which is skipped."""
    return [(name, model) for name in MAKERS for model in (getattr(FACTORIES[name], part) if name in FACTORIES else ("-",))]


def test_every_row_of_the_table_has_its_contract_and_its_extra() -> None:
    assert set(MAKERS) == set(RUNTIMES)
    assert {entry.extra for entry in RUNTIMES.values()} <= set(importlib.metadata.metadata("edgefarm").get_all("Provides-Extra") or ())


@pytest.fixture(params=sorted(MAKERS))
def name(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


@pytest.fixture
def runtime(name: str) -> Runtime:
    if not is_installed(name):
        pytest.skip(missing(name))
    return load_runtime(name)


@pytest.fixture
def dense(name: str, runtime: Runtime, tmp_path: Path) -> Iterator[Model]:
    model = runtime.load(FACTORIES[name].dense(tmp_path), {"threads": 1})
    yield model
    model.close()


@pytest.mark.parametrize(("name", "model_name"), _cases("models"))
def test_runs_the_zoo(name: str, model_name: str, runtime: Runtime, tmp_path: Path) -> None:
    path = FACTORIES[name].models[model_name](tmp_path)
    model = runtime.load(path, {"threads": 1})
    feeds = {key: values[0] for key, values in FACTORIES[name].samples(path).items()}
    assert {spec.name for spec in model.inputs} == set(feeds)
    for spec in model.inputs:
        assert spec.dtype == feeds[spec.name].dtype.name
        assert all(want in (None, got) for want, got in zip(spec.shape, feeds[spec.name].shape))
        assert len(spec.shape) == feeds[spec.name].ndim
    model.reset()
    outputs = model.run(feeds)
    assert len(outputs) == len(model.outputs)
    for spec, value in zip(model.outputs, outputs):
        assert np.asarray(value).dtype.name == spec.dtype
        assert np.asarray(value).ndim == len(spec.shape)
    first = [np.array(value) for value in outputs]
    model.reset()
    again = model.run(feeds)
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert all(np.array_equal(a, b) for a, b in zip(first, outputs)), "a run overwrote what an earlier one gave"
    model.close()


@pytest.mark.parametrize(("name", "model_name"), _cases("hidden_state"))
def test_reset_forgets_what_was_fed(name: str, model_name: str, runtime: Runtime, tmp_path: Path) -> None:
    path = FACTORIES[name].hidden_state[model_name](tmp_path)
    (input,) = FACTORIES[name].samples(path).items()
    for provider in runtime.providers():
        model = runtime.load(path, {**runtime.selection(provider), "threads": 1})
        model.reset()  # some kernels need their variables to be set once
        first, second, third = (model.run({input[0]: x})[0] for x in input[1][:3])
        assert not np.array_equal(model.run({input[0]: input[1][1]})[0], second), "it keeps no state: this tests nothing"
        model.reset()
        assert np.array_equal(model.run({input[0]: input[1][0]})[0], first)
        assert np.array_equal(model.run({input[0]: input[1][1]})[0], second)
        assert np.array_equal(model.run({input[0]: input[1][2]})[0], third)


def test_open_axes_take_what_is_fed(name: str, dense: Model) -> None:
    random = np.random.default_rng(1)
    whole = random.normal(size=(7, 16)).astype(np.float32)
    expected = dense.run({"x": whole})[0]
    assert expected.shape == (7, 10)
    for size in (1, 3, 7):
        assert np.allclose(dense.run({"x": whole[:size].copy()})[0], expected[:size], rtol=0.02, atol=0.02), size


def test_says_what_it_chose_by_itself(runtime: Runtime, dense: Model) -> None:
    assert all(isinstance(value, str) and value for value in dense.chosen.values())
    assert "threads" not in dense.chosen


def test_says_its_version_and_providers(name: str, runtime: Runtime) -> None:
    assert runtime.version()[0].isdigit()
    assert runtime.providers()
    assert len(set(runtime.providers())) == len(runtime.providers())


def test_the_probe_model_runs_with_a_provider(runtime: Runtime, tmp_path: Path) -> None:
    model = runtime.load(runtime.probe_model(tmp_path), {**runtime.selection(runtime.providers()[0]), "threads": 1})
    x = np.eye(2, dtype=np.float32)
    assert np.allclose(model.run({model.inputs[0].name: x})[0], x @ x + 1)


def test_placement_counts_nodes_by_provider(runtime: Runtime, dense: Model) -> None:
    placement = dense.placement({"x": np.zeros((1, 16), np.float32)})
    assert placement
    assert all(count > 0 for count in placement.values())
    assert set(placement) <= set(runtime.providers())


def test_the_options_of_a_provider_ask_for_it(runtime: Runtime, tmp_path: Path) -> None:
    for provider in (*runtime.providers(), "NoSuchProvider"):
        assert runtime.requested({**runtime.selection(provider), "threads": 1}) == provider
    assert runtime.requested({"threads": 1}) == ""


def test_threads_that_rest_soon_compute_the_same(name: str, runtime: Runtime, tmp_path: Path) -> None:
    path = FACTORIES[name].dense(tmp_path)
    x = np.random.default_rng(0).standard_normal((1, 16)).astype(np.float32)
    usual = {**runtime.selection(runtime.providers()[0]), "threads": 2}
    resting = runtime.resting(usual)
    assert {**resting, **usual} == resting, "nothing that was given is taken away"
    outputs = [runtime.load(path, options).run({"x": x}) for options in (usual, resting)]
    assert all(np.array_equal(one, other) for one, other in zip(*outputs))
    assert runtime.resting(resting) == resting


def test_preparing_checks_options_and_can_be_done_again(runtime: Runtime) -> None:
    for provider in (*runtime.providers(), *runtime.providers()):
        runtime.prepare({**runtime.selection(provider), "threads": 1})
    assert runtime.providers()


@pytest.mark.parametrize(("name", "model_name"), _cases("models"))
def test_a_profile_tells_times_or_why_not(name: str, model_name: str, runtime: Runtime, tmp_path: Path) -> None:
    path = FACTORIES[name].models[model_name](tmp_path)
    samples = FACTORIES[name].samples(path)
    feeds = [{key: values[index] for key, values in samples.items()} for index in range(2)]
    model = runtime.load(path, {"threads": 1})
    expected = [np.array(value) for value in model.run(feeds[0])]
    profile = model.profile(feeds, 3)
    if profile.unavailable:
        assert profile == Profile(unavailable=profile.unavailable)
    else:
        assert profile.source
        assert profile.operators
        assert profile.whole_ns > 0
        assert all(o.mean_ns >= 0 and o.calls >= 1 and o.kind for o in profile.operators)
        assert {o.provider for o in profile.operators} <= set(runtime.providers())
        assert sum(o.mean_ns for o in profile.operators) > 0
        keys = [(o.name, o.kind, o.provider, o.kernel) for o in profile.operators]
        assert len(keys) == len(set(keys))
    model.reset()
    assert all(np.array_equal(a, b) for a, b in zip(expected, model.run(feeds[0]))), "a profile leaves the model as it was"
    model.close()


def test_the_first_provider_is_the_default(name: str, runtime: Runtime, dense: Model, tmp_path: Path) -> None:
    selected = runtime.load(FACTORIES[name].dense(tmp_path), {**runtime.selection(runtime.providers()[0]), "threads": 1})
    feeds = {"x": np.zeros((1, 16), np.float32)}
    assert selected.placement(feeds) == dense.placement(feeds)


def test_takes_its_options(name: str, runtime: Runtime, tmp_path: Path) -> None:
    path = FACTORIES[name].dense(tmp_path)
    feeds = {key: values[0] for key, values in FACTORIES[name].samples(path).items()}
    expected = runtime.load(path, {"threads": 1}).run(feeds)
    for options in FACTORIES[name].options:
        outputs = runtime.load(path, options).run(feeds)
        assert np.allclose(outputs[0], expected[0], rtol=0.02, atol=0.02), options  # a runtime may choose bfloat16 by itself


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"thread": 1}, "'thread'"),
        ({"threads": 0}, "'threads'"),
        ({"threads": "two"}, "'threads'"),
        ({"threads": True}, "'threads'"),
    ],
)
def test_a_wrong_option_is_named(name: str, runtime: Runtime, options: Options, named: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match=named) as caught:
        runtime.load(FACTORIES[name].dense(tmp_path), options)
    assert caught.value.kind is FailureKind.LOAD


def test_a_provider_that_is_not_there_is_named(name: str, runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match="'NoSuchProvider'") as caught:
        runtime.load(FACTORIES[name].dense(tmp_path), runtime.selection("NoSuchProvider"))
    assert caught.value.kind is FailureKind.LOAD


def test_a_missing_file_is_a_load_failure(runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure) as caught:
        runtime.load(tmp_path / "absent.model", {})
    assert caught.value.kind is FailureKind.LOAD


@pytest.mark.parametrize(("name", "model_name"), _cases("broken"))
def test_a_broken_file_is_a_load_failure(name: str, model_name: str, runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure) as caught:
        runtime.load(FACTORIES[name].broken[model_name](tmp_path), {})
    assert caught.value.kind is FailureKind.LOAD


@pytest.mark.parametrize(("name", "model_name"), _cases("unsupported"))
def test_an_unknown_operator_is_unsupported(name: str, model_name: str, runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match="Frobnicate") as caught:
        runtime.load(FACTORIES[name].unsupported[model_name](tmp_path), {})
    assert caught.value.kind is FailureKind.UNSUPPORTED_OP


def _shape(model: Model) -> Any:
    return model.run({"x": np.zeros((1, 15), np.float32)})


def _dtype(model: Model) -> Any:
    return model.run({"x": np.zeros((1, 16), np.float64)})


@pytest.mark.parametrize("spoil", [_shape, _dtype])
def test_wrong_inputs_are_explained(runtime: Runtime, dense: Model, spoil: Callable[[Model], Any]) -> None:
    with pytest.raises(Exception) as caught:
        spoil(dense)
    failure = runtime.explain(caught.value)
    assert failure is not None
    assert failure.kind is FailureKind.IO_CHANGED


def test_errors_of_others_are_not_explained(runtime: Runtime) -> None:
    assert runtime.explain(ZeroDivisionError("division by zero")) is None


def test_the_table_imports_neither_numpy_nor_a_runtime() -> None:
    modules = ["numpy", *(library.module for entry in RUNTIMES.values() for library in entry.libraries)]
    program = f"import sys, agent.runtimes; print([m for m in {modules!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_an_unknown_runtime_is_named() -> None:
    with pytest.raises(UserError, match=r"'onyx'.*onnxruntime"):
        load_runtime("onyx")


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNTIMES, "absent", RuntimeEntry("agent.runtimes.absent:Absent", ("x",), "absent", (Library("absent", "absent"),)))
    with pytest.raises(UserError, match=r"runtime 'absent' needs: pip install 'edgefarm\[absent\]'"):
        load_runtime("absent")

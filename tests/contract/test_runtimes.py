"""What every runtime owes. A new runtime: one more line in FACTORIES, which makes models in a format that it reads."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.runtimes import RUNTIMES, Model, Runtime, RuntimeEntry, RuntimeFailure, load_runtime, missing
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
        broken: a file that it must refuse.
        unsupported: a model with an operator that it lacks, or None if its format cannot say that.
        options: options that it must take.
    """

    models: Mapping[str, zoo.Build]
    samples: Callable[[Path], Mapping[str, Sequence[zoo.Array]]]
    dense: zoo.Build
    broken: zoo.Build
    unsupported: zoo.Build | None
    options: tuple[Options, ...]


_ONNX_OPTIONS: tuple[Options, ...] = (
    {"threads": 1},
    {"threads": 2, "session.intra_op.allow_spinning": False},
    {"execution_provider": "CPUExecutionProvider", "graph_optimization_level": "disable"},
    {"graph_optimization_level": "basic", "session.disable_prepacking": 1},
    {"graph_optimization_level": "extended"},
    {"graph_optimization_level": "all"},
)
FACTORIES: dict[str, Factory] = {
    "onnxruntime": Factory(zoo.MODELS, zoo.samples, zoo.dense, zoo.truncated, zoo.unknown_operator, _ONNX_OPTIONS),
}
CASES = [(runtime, name) for runtime, factory in FACTORIES.items() for name in factory.models]


def test_every_row_of_the_table_has_its_contract_and_its_extra() -> None:
    assert set(FACTORIES) == set(RUNTIMES)
    assert {entry.extra for entry in RUNTIMES.values()} <= set(importlib.metadata.metadata("edgefarm").get_all("Provides-Extra") or ())


@pytest.fixture(params=sorted(FACTORIES))
def name(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


@pytest.fixture
def runtime(name: str) -> Runtime:
    if importlib.util.find_spec(RUNTIMES[name].module) is None:
        pytest.skip(missing(name))
    return load_runtime(name)


@pytest.fixture
def dense(name: str, runtime: Runtime, tmp_path: Path) -> Iterator[Model]:
    model = runtime.load(FACTORIES[name].dense(tmp_path), {"threads": 1})
    yield model
    model.close()


@pytest.mark.parametrize(("name", "model_name"), CASES)
def test_runs_the_zoo(name: str, model_name: str, runtime: Runtime, tmp_path: Path) -> None:
    path = FACTORIES[name].models[model_name](tmp_path)
    model = runtime.load(path, {"threads": 1})
    feeds = {key: values[0] for key, values in FACTORIES[name].samples(path).items()}
    assert {spec.name for spec in model.inputs} == set(feeds)
    for spec in model.inputs:
        assert spec.dtype == feeds[spec.name].dtype.name
        assert all(want in (None, got) for want, got in zip(spec.shape, feeds[spec.name].shape))
        assert len(spec.shape) == feeds[spec.name].ndim
    outputs = model.run(feeds)
    assert len(outputs) == len(model.outputs)
    for spec, value in zip(model.outputs, outputs):
        assert np.asarray(value).dtype.name == spec.dtype
        assert np.asarray(value).ndim == len(spec.shape)
    again = model.run(feeds)
    assert all(np.array_equal(a, b) for a, b in zip(outputs, again))
    model.close()


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
        assert np.allclose(outputs[0], expected[0], atol=1e-5), options


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


def test_a_broken_file_is_a_load_failure(name: str, runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure) as caught:
        runtime.load(FACTORIES[name].broken(tmp_path), {})
    assert caught.value.kind is FailureKind.LOAD


def test_an_unknown_operator_is_unsupported(name: str, runtime: Runtime, tmp_path: Path) -> None:
    build = FACTORIES[name].unsupported
    if build is None:
        pytest.skip("its format cannot say that")
    with pytest.raises(RuntimeFailure, match="Frobnicate") as caught:
        runtime.load(build(tmp_path), {})
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
    modules = ["numpy", *(entry.module for entry in RUNTIMES.values())]
    program = f"import sys, agent.runtimes; print([m for m in {modules!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_an_unknown_runtime_is_named() -> None:
    with pytest.raises(UserError, match=r"'onyx'.*onnxruntime"):
        load_runtime("onyx")


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUNTIMES, "absent", RuntimeEntry("agent.runtimes.absent:Absent", ("x",), "absent", "absent", "absent"))
    with pytest.raises(UserError, match=r"runtime 'absent' needs: pip install 'edgefarm\[absent\]'"):
        load_runtime("absent")

"""What only LiteRT does: where operators ran, quantised inputs, its two packages."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agent.runner.mapping import Bound
from agent.runtimes import RUNTIMES, Library, RuntimeFailure, installed_library
from edgefarm.model import Io, TensorMap

if importlib.util.find_spec("ai_edge_litert") is None:
    pytest.skip("needs ai-edge-litert: pip install 'edgefarm[tflite]'", allow_module_level=True)

from ai_edge_litert import schema_py_generated as schema

from agent.runtimes import tflite as adapter
from tests import zoo_tflite as zoo


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (zoo.dense, {"xnnpack": 2}),
        (zoo.partly_delegated, {"xnnpack": 2, "none": 1}),
        (zoo.hidden_state, {"none": 1}),
        (zoo.resource_state, {"xnnpack": 4, "none": 1}),  # CALL_ONCE stays outside
        (zoo.int8_inside, {"xnnpack": 3}),
    ],
)
def test_placement_tells_the_delegates_operators_from_the_others(build: zoo.Build, expected: dict[str, int], tmp_path: Path) -> None:
    path = build(tmp_path)
    feeds = {name: values[0] for name, values in zoo.samples(path).items()}
    assert adapter.Tflite().load(path, {"delegate": "xnnpack"}).placement(feeds) == expected
    assert adapter.Tflite().load(path, {"delegate": "none"}).placement(feeds) == {"none": sum(expected.values())}


_CHAIN = [({0}, {1}), ({1}, {2}), ({2}, {3})]


@pytest.mark.parametrize(
    ("operators", "delegates", "results", "taken"),
    [
        (_CHAIN, [], {3}, set()),
        (_CHAIN, [({0}, {3})], {3}, {0, 1, 2}),
        (_CHAIN, [({1}, {2})], {3}, {1}),
        (_CHAIN, [({0}, {1}), ({2}, {3})], {3}, {0, 2}),
        ([*_CHAIN, ({2}, set())], [({0}, {1, 3})], {3}, {0, 1, 2, 3}),  # reads what never leaves the delegate
        ([*_CHAIN, ({9}, set())], [({0}, {3})], {3}, {0, 1, 2}),  # reads what the delegate does not
        ([*_CHAIN, (set(), set())], [({0}, {3})], {3}, {0, 1, 2}),  # calls a subgraph
        ([*_CHAIN, ({0}, {4})], [({0}, {3})], {3, 4}, {0, 1, 2}),  # its result would be the delegate's
    ],
)
def test_who_is_inside_follows_from_the_tensors(
    operators: list[adapter.Ends], delegates: list[adapter.Ends], results: set[int], taken: set[int]
) -> None:
    assert adapter.delegated(operators, delegates, results) == taken


def test_where_it_does_not_follow_nothing_is_said() -> None:
    with pytest.raises(RuntimeFailure, match="who runs operator 3"):
        adapter.delegated([*_CHAIN, ({0}, {4})], [({0}, {3})], {3})


def test_quantised_inputs_and_outputs_are_mapped_as_the_library_does(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    inside = adapter.Tflite().load(zoo.int8_inside(tmp_path / "inside"), {"threads": 1})
    plain = adapter.Tflite().load(zoo.int8(tmp_path), {"threads": 1})
    sides = ((TensorMap("x", "x", (), zoo.STEP, zoo.ZERO),), (TensorMap("out", "y", (), zoo.STEP, zoo.ZERO),))
    bound = Bound(plain, Io(*sides))
    x = np.random.default_rng(3).normal(size=(1, 16)).astype(np.float32) * 4
    (got,) = bound.run(bound.feeds({"x": [x]})[0])
    (expected,) = inside.run({"x": x})
    assert got.dtype == np.float32
    assert np.allclose(got, expected, rtol=0, atol=1e-6)
    assert len(np.unique(got)) > 3


def test_the_newer_library_is_taken_first(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"ai_edge_litert", "tflite_runtime"}
    monkeypatch.setattr("importlib.util.find_spec", lambda module: object() if module in present else None)
    assert installed_library("tflite") == Library("ai_edge_litert", "ai-edge-litert")
    present.remove("ai_edge_litert")
    assert installed_library("tflite") == RUNTIMES["tflite"].libraries[1] == Library("tflite_runtime", "tflite-runtime")
    present.clear()
    assert installed_library("tflite") is None


def _with_the_older_library(tmp_path: Path, numpy_version: str) -> subprocess.CompletedProcess[str]:
    """Imports the adapter where only `tflite_runtime` is, as a package of that name with the newer one's content."""
    package = tmp_path / "site" / "tflite_runtime"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '2.14.0'\n")
    (package / "interpreter.py").write_text(
        "class Interpreter: ...\nclass OpResolverType: AUTO, BUILTIN_WITHOUT_DEFAULT_DELEGATES = 0, 1\n"
    )
    program = (
        "import sys, numpy; sys.modules['ai_edge_litert'] = None; "
        f"sys.path.append({str(package.parent)!r}); numpy.__version__ = {numpy_version!r}; "
        "from agent.runtimes import load_runtime; print(load_runtime('tflite').version())"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_the_older_library_does_where_it_can(tmp_path: Path) -> None:
    assert _with_the_older_library(tmp_path, "1.26.4").stdout == "2.14.0\n"


def test_the_older_library_with_a_newer_numpy_is_refused_by_name(tmp_path: Path) -> None:
    assert "tflite-runtime does not work with NumPy 2: pip install ai-edge-litert" in _with_the_older_library(tmp_path, "2.4.6").stderr


def test_it_leaves_nothing_at_home_and_opens_no_connection(tmp_path: Path) -> None:
    program = (
        "import sys, json; seen = []; sys.addaudithook(lambda event, _: seen.append(event)); "
        "from agent.runtimes import load_runtime; load_runtime('tflite'); "
        "print(json.dumps([e for e in seen if e.startswith(('socket.', 'subprocess.', 'os.fork', 'os.posix_spawn'))]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
    assert list(tmp_path.iterdir()) == []


def test_the_probe_model_is_what_the_protocol_promises(tmp_path: Path) -> None:
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(adapter.Tflite().probe_model(tmp_path).read_bytes()))
    codes = [(code.builtinCode or code.deprecatedBuiltinCode, code.version) for code in model.operatorCodes]
    assert codes == [(schema.BuiltinOperator.BATCH_MATMUL, 1), (schema.BuiltinOperator.ADD, 1)]
    (graph,) = model.subgraphs
    assert [list(operator.inputs) for operator in graph.operators] == [[0, 0], [1, 2]]
    assert [list(graph.tensors[i].shape) for i in (*graph.inputs, *graph.outputs)] == [[2, 2], [2, 2]]

"""Damaged and made-up files in every runtime: whatever a library does with them, the supervisor learns it as a typed failure."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import psutil
import pytest

from agent.runner.process import RunnerFailed, RunnerProcess
from edgefarm.model import Failure, FailureKind, Limits, Stage
from edgefarm.tensors import pack
from tests import hostile, zoo

S = 10**9
_PATIENT_NS, _IMPATIENT_NS = 60 * S, 2 * S
_LIMITS = Limits(memory_bytes=600 * 2**20)
_PACKAGES = {"onnxruntime": "onnxruntime", "tflite": "ai_edge_litert", "openvino": "openvino"}
_ITS_OWN = {
    FailureKind.LOAD, FailureKind.UNSUPPORTED_OP, FailureKind.IO_CHANGED, FailureKind.OOM, FailureKind.TIMEOUT, FailureKind.CRASH,
    FailureKind.NUMERIC,
}  # fmt: skip


def _zoo(runtime: str) -> ModuleType:
    """The module of a runtime's small models, imported late; where its library is missing the test is skipped, and says so."""
    if importlib.util.find_spec(_PACKAGES[runtime]) is None:
        pytest.skip(f"{runtime}: {_PACKAGES[runtime]} is not installed, so its reader of damaged files was NOT tried")
    return importlib.import_module("tests.zoo" if runtime == "onnxruntime" else f"tests.zoo_{runtime}")


class Trials:
    """Loads and runs files one after the other, in one runner as long as it lives; counts what they came to."""

    def __init__(self, runtime: str, folder: Path) -> None:
        self._runtime, self.folder, self._scratch = runtime, folder, folder / "scratch"
        self._scratch.mkdir()
        self._inputs = folder / "inputs.npz"
        self._inputs.write_bytes(pack({"x": [np.ones((1, 16), np.float32)]}))
        self._runner: RunnerProcess | None = None
        self.kinds: list[FailureKind | None] = []

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._runner is not None:
            self._runner.kill()

    def works(self, path: Path) -> bool:
        """Whether a good file loads and runs, in the next runner."""
        self._end()
        return self.goes_on(path)

    def goes_on(self, path: Path) -> bool:
        """Whether a good file loads and runs, in the runner that is left, or the next one if none is."""
        return self._failure(path, _PATIENT_NS) is None

    def run(self, path: Path) -> FailureKind | None:
        """What loading and running a bad file gives; None = it ran."""
        failure = self._failure(path, _IMPATIENT_NS)
        assert failure is None or (failure.kind in _ITS_OWN and failure.detail.strip() and "root:" not in failure.detail), failure
        self.kinds.append(failure.kind if failure else None)
        return self.kinds[-1]

    def _failure(self, path: Path, limit_ns: int) -> Failure | None:
        if self._runner is None or not self._runner.alive:
            self._runner = RunnerProcess(_LIMITS, self._scratch, files=[self.folder])
            self._runner.call({"do": "import", "runtime": self._runtime}, _PATIENT_NS, Stage.LOAD)
        load = {"do": "load", "key": "a", "path": str(path), "runtime": self._runtime, "options": {"threads": 1}, "io": None}
        try:
            self._runner.call(load, limit_ns, Stage.LOAD)
            self._runner.call({"do": "first", "key": "a", "inputs": str(self._inputs)}, limit_ns, Stage.RUN)
        except RunnerFailed as error:
            if error.failure.kind is FailureKind.OOM:
                self._end()  # little may be left in it
            return error.failure
        return None


def _flipped(content: bytes, generator: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(generator.randint(1, 8)):
        damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
    return bytes(damaged)


def _cut(content: bytes, generator: random.Random) -> bytes:
    return content[: generator.randrange(len(content))]


@pytest.mark.parametrize("damage", [_flipped, _cut])
@pytest.mark.parametrize(("runtime", "count"), [("onnxruntime", 200), ("tflite", 200), ("openvino", 100)])
def test_damaged_bytes(runtime: str, count: int, damage: Callable[[bytes, random.Random], bytes], tmp_path: Path) -> None:
    models = _zoo(runtime)
    (tmp_path / "good").mkdir()
    # Few weights, so that it is structure that is hit.
    good = models.MODELS["dense"](tmp_path / "good") if runtime == "openvino" else models.dense(tmp_path / "good", width=2)
    content, damaged = good.read_bytes(), tmp_path / "damaged"
    damaged.mkdir()
    for neighbour in good.parent.iterdir():
        (damaged / neighbour.name).write_bytes(neighbour.read_bytes())
    generator = random.Random(f"{runtime} {damage.__name__}")
    with Trials(runtime, tmp_path) as trials:
        for _ in range(count):
            (damaged / good.name).write_bytes(damage(content, generator))
            trials.run(damaged / good.name)
        assert trials.works(good)
    assert set(trials.kinds) - {None}
    assert psutil.Process().children() == []


@pytest.mark.parametrize("name", [
    "deep", "negative_shape", "absurd_offset", "absurd_size", "cycle", "pipe_for_weights", "link_for_weights", "without_weights",
    "short_weights", "truncated",
])  # fmt: skip
def test_hostile_openvino_files(name: str, tmp_path: Path) -> None:
    good = _zoo("openvino").MODELS["dense"]
    assert _openvino_kind(name, good, tmp_path) is not None


@pytest.mark.parametrize("name", ["entity_bomb", "file_entity", "absurd_shape", "no_layers"])
def test_hostile_openvino_files_that_are_harmless(name: str, tmp_path: Path) -> None:
    good = _zoo("openvino").MODELS["dense"]  # its reader knows no entities of a file's own, and works shapes out anew
    assert _openvino_kind(name, good, tmp_path) in (None, FailureKind.LOAD, FailureKind.IO_CHANGED)


def _openvino_kind(name: str, good: Callable[[Path], Path], folder: Path) -> FailureKind | None:
    from tests import hostile_openvino

    (folder / "hostile").mkdir()
    (folder / "good").mkdir()
    with Trials("openvino", folder) as trials:
        kind = trials.run(hostile_openvino.MODELS[name](folder / "hostile"))
        assert trials.works(good(folder / "good"))
    return kind


@pytest.fixture(scope="module")
def openvino_trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    """A folder for a file is made in `folder`."""
    _zoo("openvino")
    with Trials("openvino", tmp_path_factory.mktemp("openvino")) as trials:
        yield trials


@pytest.mark.parametrize("name", hostile.MODELS)
def test_hostile_onnx_files_in_openvino(name: str, openvino_trials: Trials) -> None:
    bad, good = openvino_trials.folder / name, openvino_trials.folder / f"good-{name}"
    bad.mkdir()
    good.mkdir()
    openvino_trials.run(hostile.MODELS[name].build(bad))
    assert openvino_trials.goes_on(zoo.dense(good))


@pytest.mark.parametrize("content", [
    b"", b"\x1c\x00\x00\x00TFL3", b"\x1c\x00\x00\x00TFL3" + b"\xff" * 4096, b"\x08\x00\x00\x00TFL3" + b"\x00" * 4096,
    b"\xf0\xff\xff\x7fTFL3" + bytes(range(256)) * 16, b"TFL3" * 1000,
])  # fmt: skip
def test_hostile_tflite_files(content: bytes, tmp_path: Path) -> None:
    models = _zoo("tflite")
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    (tmp_path / "good").mkdir()
    with Trials("tflite", tmp_path) as trials:
        assert trials.run(path) is not None
        assert trials.works(models.dense(tmp_path / "good"))

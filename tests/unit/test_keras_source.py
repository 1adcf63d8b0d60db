"""Keras files as sources, with a program in the place of TensorFlow's: what it leaves is kept, found again, or told as an error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgefarm.errors import StorageError, UserError
from optimizer import keras_source, toolchains
from optimizer.keras_source import LITE, ONNX, export, is_keras, original
from tests import zoo
from tests.examples import FASHION

PROGRAM = """
import json, pathlib, shutil, sys, time
work = pathlib.Path(sys.argv[1])
request = json.loads((work / "request.json").read_text())
assert pathlib.Path(request["file"]).read_bytes()
{code}
"""
BOTH = """
shutil.copy({onnx!r}, work / "model.onnx")
shutil.copy({lite!r}, work / "model.tflite")
(work / "reply.json").write_text(json.dumps({{"without": ""}}))
with open({calls!r}, "a") as calls:
    calls.write("x")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.keras"
    path.write_bytes(b"a Keras file")
    return path


def program(monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    """Takes the place of the toolchain and of the module that runs in it."""
    script = folder / "program.py"
    script.write_text(PROGRAM.format(code=code))
    monkeypatch.setattr(toolchains, "interpreter", lambda name: Path(sys.executable))
    monkeypatch.setattr(toolchains, "versions", lambda name, tools: {"tensorflow": "1"})
    monkeypatch.setattr(keras_source, "command", lambda python, module, argument: [python, str(script), argument])


def both(folder: Path) -> str:
    zoo.convolution(folder)
    return BOTH.format(onnx=str(folder / "model.onnx"), lite=str(FASHION / "model.tflite"), calls=str(folder / "calls"))


def test_both_files_are_kept_and_the_onnx_file_comes_first(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(monkeypatch, tmp_path, both(tmp_path))
    made = export(file, tmp_path / "store")
    assert (made.path.name, [o.name for o in made.others], made.origin, made.original) == (ONNX, [LITE], "net.keras", file)
    assert made.path.read_bytes() == (tmp_path / "model.onnx").read_bytes()
    assert made.path.parent.parent == tmp_path / "store"
    source = original(made)
    assert source is not None
    assert source.artifact.format == "keras"
    assert [f.name for f in source.artifact.files] == ["net.keras"]


def test_equal_files_are_exported_once_and_again_when_something_is_gone(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(monkeypatch, tmp_path, both(tmp_path))
    first = export(file, tmp_path / "store")
    assert export(file, tmp_path / "store") == first
    assert (tmp_path / "calls").read_text() == "x"
    first.others[0].unlink()
    assert export(file, tmp_path / "store") == first
    first.path.write_bytes(first.path.read_bytes()[:-1])
    assert export(file, tmp_path / "store") == first
    assert (tmp_path / "calls").read_text() == "xxx"
    file.write_bytes(b"another Keras file")
    export(file, tmp_path / "store")
    monkeypatch.setattr(toolchains, "versions", lambda name, tools: {"tensorflow": "2"})
    export(file, tmp_path / "store")
    assert (tmp_path / "calls").read_text() == "xxxxx"


def test_a_model_that_does_not_become_onnx_is_tflite_alone(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = both(tmp_path).replace('"without": ""', '"without": "no such operator"') + '(work / "model.onnx").unlink()'
    program(monkeypatch, tmp_path, code)
    made = export(file, tmp_path / "store")
    assert (made.path.name, made.others, made.without) == (LITE, (), "ONNX: no such operator")


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ('(work / "reply.json").write_text(json.dumps({"error": "it holds a Lambda layer"}))', r"net\.keras: it holds a Lambda layer"),
        ("print('out of luck'); sys.exit(3)", r"(?s)net\.keras: .* ended with code 3 and no model.*out of luck"),
        ("time.sleep(60)", r"net\.keras: was not exported within 1 s"),
    ],
)
def test_what_does_not_work_is_told_and_nothing_is_kept(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, told: str
) -> None:
    program(monkeypatch, tmp_path, code)
    with pytest.raises(UserError, match=told):
        export(file, tmp_path / "store", limit_s=1)
    assert list((tmp_path / "store").iterdir()) == []


def test_without_the_toolchain_the_command_that_installs_it_is_told(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchains, "interpreter", lambda name: None)
    with pytest.raises(UserError, match=r"net\.keras: .*controller toolchain install keras"):
        export(file, tmp_path / "store")


def test_a_store_that_cannot_be_written(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(monkeypatch, tmp_path, both(tmp_path))
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StorageError, match="store"):
        export(file, tmp_path / "store")


def test_files_are_told_by_their_suffix() -> None:
    assert [is_keras(name) for name in ("a.keras", "b/C.H5", "net.py:keras", "m.onnx")] == [True, True, False, False]

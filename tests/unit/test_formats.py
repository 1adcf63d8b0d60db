"""Models that are not ONNX: what their files say, and what is refused before a library that would load them sees them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgefarm.errors import UserError
from optimizer.engines import import_openvino
from optimizer.source import TensorSpec, inspect_model, load_source
from tests import models_optimizer as zoo
from tests import models_tflite, zoo_tflite

openvino = import_openvino()
FIXTURES = [HealthCheck.function_scoped_fixture]


def converted(folder: Path, name: str = "net") -> Path:
    """`zoo.conv_net` as .xml and .bin."""
    model = openvino.Core().read_model(str(zoo.save(zoo.conv_net(groups=8), folder / "m.onnx")))
    openvino.save_model(model, str(folder / f"{name}.xml"), compress_to_fp16=False)
    return folder / f"{name}.xml"


def test_tflite(tmp_path: Path) -> None:
    signature = inspect_model(models_tflite.conv_net(tmp_path, batch=-1))
    assert signature.inputs == (TensorSpec("serving_default_x:0", "float32", (None, 8, 8, 3)),)
    assert signature.outputs == (TensorSpec("StatefulPartitionedCall:0", "float32", (None, 5)),)
    assert (signature.format, signature.files, signature.integers) == ("tflite", ("model.tflite",), 0)
    assert signature.op_types == {"CONV_2D": 2, "ADD": 1, "MEAN": 1, "FULLY_CONNECTED": 1}
    assert signature.weight_dtypes == {"float32": 6, "int32": 1}


def test_tflite_that_is_quantised_says_how(tmp_path: Path) -> None:
    signature = inspect_model(zoo_tflite.int8(tmp_path))
    step = pytest.approx(zoo_tflite.STEP)
    assert [(s.dtype, s.scale, s.zero_point) for s in (*signature.inputs, *signature.outputs)] == [("int8", step, zoo_tflite.ZERO)] * 2
    assert signature.integers == 1


def test_weights_behind_the_flatbuffer_are_seen(tmp_path: Path) -> None:
    inside = inspect_model(models_tflite.conv_net(tmp_path))
    path = models_tflite.outside(tmp_path / "model.tflite")
    assert inspect_model(path) == inside
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(UserError, match=r"weights up to byte \d+ are asked for, the file has \d+"):
        inspect_model(path)


def test_a_scale_of_nothing_is_none(tmp_path: Path) -> None:
    """As converters write it for tensors that they did not quantise."""
    graph = zoo_tflite._Graph()
    x, y = (graph.tensor(name, [1, 4], "int32", scale=[0.0]) for name in "xy")
    graph.operator(zoo_tflite._OPERATORS.ADD, [x, x], [y])
    signature = inspect_model(graph.save(tmp_path, [x], [y]))
    assert [(s.scale, s.zero_point) for s in (*signature.inputs, *signature.outputs)] == [(None, None)] * 2


def test_a_file_of_several_functions(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.tflite: holds the signatures 'encode', 'decode', each a graph of its own; export the one"):
        inspect_model(zoo_tflite.two_functions(tmp_path))


def test_openvino(tmp_path: Path) -> None:
    source = load_source(converted(tmp_path))
    assert source.signature.inputs == (TensorSpec("x", "float32", (None, 3, 8, 8)),)
    assert source.signature.outputs == (TensorSpec("logits", "float32", (None, 5)),)
    assert (source.signature.format, source.signature.files) == ("openvino", ("net.xml", "net.bin"))
    assert source.signature.grouped_convolutions == 1
    assert [f.name for f in source.artifact.files] == ["net.bin", "net.xml"]
    assert source.artifact.main_file == "net.xml"


def test_openvino_names_are_those_of_the_library(tmp_path: Path) -> None:
    from openvino import opset8 as operators

    x = operators.parameter([1, 4], name="in put")
    y = operators.relu(x)
    x.output(0).set_names({"b", "a,comma", "c"})
    made = openvino.Model([operators.result(y), operators.result(operators.negative(y))], [x], "g")
    openvino.save_model(made, str(tmp_path / "n.xml"))
    read = openvino.Core().read_model(str(tmp_path / "n.xml"))
    signature = inspect_model(tmp_path / "n.xml")
    assert [s.name for s in signature.inputs] == [min(p.get_names()) for p in read.inputs] == ["a,comma"]
    assert [s.name for s in signature.outputs] == [p.get_node().get_friendly_name() for p in read.outputs]


@settings(max_examples=60, deadline=None, suppress_health_check=FIXTURES)
@given(share=st.floats(0, 0.999))
def test_a_cut_tflite_file_is_refused(tmp_path: Path, share: float) -> None:
    path = models_tflite.conv_net(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content.rstrip(b"\0")))])
    with pytest.raises(UserError, match=r"model\.tflite: not a whole TFLite model: .*; export or copy it again"):
        inspect_model(path)


@settings(max_examples=150, deadline=None, suppress_health_check=FIXTURES)
@given(seed=st.integers(0, 2**32))
def test_damaged_tflite_is_read_or_refused(tmp_path: Path, seed: int) -> None:
    path, chance = models_tflite.conv_net(tmp_path), random.Random(seed)
    content = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 20)):
        content[chance.randrange(8, len(content))] = chance.randrange(256)
    path.write_bytes(content)
    found = refused = ""
    try:
        found = inspect_model(path).format
    except UserError as error:  # anything else is a bug
        refused = str(error)
    assert found == "tflite" or str(path) in refused


@pytest.mark.parametrize("content", [b"", b"TFL3", b"PK\x03\x04 no model at all" * 30, b"\xff" * 64, b"\x10\0\0\0TFL3" + b"\0" * 64])
def test_garbage_tflite(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.tflite").write_bytes(content)
    with pytest.raises(UserError, match="not a whole TFLite model"):
        inspect_model(tmp_path / "m.tflite")


def test_openvino_without_its_weights(tmp_path: Path) -> None:
    path = converted(tmp_path)
    weights = path.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"net\.bin: bytes up to \d+ are asked for by net\.xml, the file has \d+: it is cut short"):
        inspect_model(path)
    weights.unlink()
    with pytest.raises(UserError, match=r"net\.xml: its weights are missing: there is no file net\.bin beside it"):
        inspect_model(path)


def test_openvino_weights_behind_a_link(tmp_path: Path) -> None:
    path = converted(tmp_path / "model")
    weights = path.with_suffix(".bin")
    weights.rename(tmp_path / "elsewhere.bin")
    weights.symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(UserError, match="leads out of the model's folder by a link"):
        inspect_model(path)


BOMB = '<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><net version="11">&b;</net>'
WRONG_XML = {
    "bomb": (BOMB, r"document type \(net\)"),
    "outside": ('<!DOCTYPE net SYSTEM "file:///etc/passwd"><net version="11"/>', "document type"),
    "other": ("<html/>", "its root is <html>"),
    "old": ('<net version="7"/>', "IR version 7"),
    "empty": ('<net version="11"><layers/></net>', "its graph has no outputs"),
    "loose": ('<net version="11"><layers><layer id="0" name="r" type="Result"/></layers></net>', "output 'r' is not connected"),
    "words": ('<net version="eleven"/>', "which is no whole number"),
    "text": ("no xml", "line 1"),
}


@pytest.mark.parametrize("name", WRONG_XML)
def test_wrong_xml(tmp_path: Path, name: str) -> None:
    content, message = WRONG_XML[name]
    (tmp_path / "m.xml").write_text(content)
    with pytest.raises(UserError, match=rf"m\.xml: not a whole OpenVINO model: .*{message}"):
        inspect_model(tmp_path / "m.xml")


@settings(max_examples=30, deadline=None, suppress_health_check=FIXTURES)
@given(share=st.floats(0, 0.99))
def test_a_cut_xml_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "net.xml"
    if not path.exists():
        converted(tmp_path)
        path.rename(tmp_path / "whole.xml")
    content = (tmp_path / "whole.xml").read_text()
    path.write_text(content[: int(share * len(content))])
    with pytest.raises(UserError, match="not a whole OpenVINO model: "):
        inspect_model(path)


def test_two_inputs_of_one_name(tmp_path: Path) -> None:
    path = zoo_tflite.several_inputs(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"\x05\0\0\0right", b"\x04\0\0\0left\0"))
    with pytest.raises(UserError, match="two inputs are named 'left'"):
        inspect_model(path)

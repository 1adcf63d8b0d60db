"""Reading a model's header: what it says, and what is refused before a parser sees it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgefarm.digest import digest_file
from edgefarm.errors import UserError
from optimizer.onnx_header import Malformed, read_header
from optimizer.source import Signature, TensorSpec, inspect_model, load_source
from tests import models_optimizer as zoo


def test_signature_of_a_conv_net(tmp_path: Path) -> None:
    signature = inspect_model(zoo.save(zoo.conv_net(groups=8), tmp_path / "m.onnx"))
    assert signature.inputs == (TensorSpec("x", "float32", (None, 3, 8, 8)),)
    assert signature.outputs == (TensorSpec("logits", "float32", (None, 5)),)
    assert (signature.opset, signature.format, signature.files) == (17, "onnx", ("m.onnx",))
    assert signature.op_types == {"Conv": 2, "Relu": 2, "Add": 1, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    assert signature.weight_dtypes == {"float32": 5}
    assert signature.grouped_convolutions == 1
    assert str(signature.inputs[0]) == "float32[N, 3, 8, 8]"


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (zoo.text_net(), [("ids", "int64", (None, None)), ("mask:0", "float32", (None, None))]),
        (zoo.state_net(), [("x", "float32", (1, 6)), ("state", "float32", (2, 1, 4))]),
        (zoo.conv_net(opset=9, batch=4), [("x", "float32", (4, 3, 8, 8))]),
        (zoo.conv_net(constants=True), [("x", "float32", (None, 3, 8, 8))]),
    ],
)
def test_inputs(tmp_path: Path, model: onnx.ModelProto, inputs: list[tuple[str, str, tuple[int | None, ...]]]) -> None:
    signature = inspect_model(zoo.save(model, tmp_path / "m.onnx"))
    assert [(s.name, s.dtype, s.shape) for s in signature.inputs] == inputs


def test_weights_listed_as_inputs_are_no_inputs(tmp_path: Path) -> None:
    model = zoo.conv_net(opset=9)
    for weight in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(weight.name, TensorProto.FLOAT, list(weight.dims)))
    assert [s.name for s in inspect_model(zoo.save(model, tmp_path / "m.onnx")).inputs] == ["x"]


def test_subgraphs_are_seen(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["z"])], "b", [], [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])]
    )
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)]
    model = zoo.build(nodes, {"x": (TensorProto.FLOAT, [1]), "c": (TensorProto.BOOL, [])}, {"y": (TensorProto.FLOAT, [1])}, {})
    signature = inspect_model(zoo.save(model, tmp_path / "m.onnx"))
    assert signature.op_types == {"If": 1, "Neg": 2}
    assert [(s.name, s.shape) for s in signature.inputs] == [("x", (1,)), ("c", ())]
    assert [s.name for s in signature.outputs] == ["y"]


def test_output_without_a_shape(tmp_path: Path) -> None:
    model = zoo.conv_net()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert inspect_model(zoo.save(model, tmp_path / "m.onnx")).outputs == (TensorSpec("logits", "float32", (), ranked=False),)


def test_input_without_a_shape_is_refused(tmp_path: Path) -> None:
    model = zoo.conv_net()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(UserError, match=r"m\.onnx: input 'x' is declared as float32 without a shape"):
        inspect_model(zoo.save(model, tmp_path / "m.onnx"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dims=st.lists(st.one_of(st.integers(1, 2**40), st.sampled_from(["N", "b"])), max_size=5),
    dtype=st.sampled_from(["FLOAT", "INT64", "BOOL", "FLOAT16", "UINT8", "DOUBLE", "STRING"]),
    name=st.text(min_size=1, max_size=20).filter(lambda t: t.isprintable()),
)
def test_header_agrees_with_onnx(tmp_path: Path, dims: list[int | str], dtype: str, name: str) -> None:
    value = helper.make_tensor_value_info(name, getattr(TensorProto, dtype), dims)
    weight = numpy_helper.from_array(np.arange(6, dtype=np.int32), "a weight, longer than any name here")
    graph = helper.make_graph([helper.make_node("Identity", [name], ["out"])], "g", [value], [value], [weight])
    path = zoo.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]), tmp_path / "m.onnx")
    header = read_header(path)
    parsed = onnx.load(str(path)).graph.input[0]
    assert header.inputs[0].name == parsed.name == name
    assert header.inputs[0].shape == tuple(d.dim_value if d.HasField("dim_value") else None for d in parsed.type.tensor_type.shape.dim)
    assert header.opset == 13
    assert header.weight_dtypes == {"int32": 1}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_damage_is_a_user_error_or_a_signature(tmp_path: Path, flips: list[tuple[int, int]]) -> None:
    content = bytearray(zoo.conv_net().SerializeToString())
    for at, value in flips:
        content[at % len(content)] = value
    path = tmp_path / "m.onnx"
    path.write_bytes(bytes(content))
    try:
        assert isinstance(inspect_model(path), Signature)
    except UserError as error:
        message = str(error)
        assert message.startswith(str(path))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kept=st.one_of(st.integers(0, len(zoo.conv_net().SerializeToString()) - 1), st.integers(-60, -1)))
def test_no_truncated_file_is_a_model(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(zoo.conv_net().SerializeToString()[:kept])
    with pytest.raises(UserError, match=r"m\.onnx: "):
        inspect_model(path)


def test_truncated_file_says_where(tmp_path: Path) -> None:
    path = zoo.save(zoo.conv_net(), tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"m\.onnx: not a whole ONNX model: at byte \d+ a field of \d+ bytes begins, but only \d+ are left"):
        inspect_model(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.onnx", None, "no such file"),
        ("m.onnx", b"", "the file is empty"),
        ("m.onnx", b"hello, world", "not a"),
        ("m.onnx", b"\x08\x07", "no graph"),
        ("m.pb", b"", "'.pb' is not known"),
    ],
)
def test_no_model(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        inspect_model(path)


def test_folder_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        inspect_model(tmp_path / "m.onnx")


def test_endless_nesting_is_refused(tmp_path: Path) -> None:
    graph = b""
    for _ in range(100):  # a node with an attribute with a graph, again and again
        for field in (6, 5, 1):
            graph = bytes([field << 3 | 2]) + _length(graph) + graph
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x3a" + _length(graph) + graph)
    with pytest.raises(Malformed, match="nested deeper"):
        read_header(path)


def _length(content: bytes) -> bytes:
    value, encoded = len(content), b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])


def test_external_data_is_part_of_the_source(tmp_path: Path) -> None:
    path = zoo.save(zoo.conv_net(), tmp_path / "m.onnx", external=True)
    source = load_source(path)
    assert source.signature.files == ("m.onnx", "weights.bin")
    assert [(f.name, f.digest) for f in source.artifact.files] == [(n, digest_file(tmp_path / n)) for n in ("m.onnx", "weights.bin")]
    assert source.artifact.main_file == "m.onnx"
    assert load_source(zoo.save(zoo.conv_net(), tmp_path / "one.onnx")).artifact.digest == digest_file(tmp_path / "one.onnx")


@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../secret.bin", "a/../../secret.bin", "..\\secret.bin", "", ".", "link.bin", "folder/in.bin"]
)
def test_external_data_outside_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(10_000))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "in.bin").write_bytes(bytes(10_000))
    path = _relocated(tmp_path, location)
    os.symlink(tmp_path / "secret.bin", path.parent / "link.bin")
    os.symlink(tmp_path / "elsewhere", path.parent / "folder")
    with pytest.raises(UserError, match=r"tensor 'w1': external data .*(relative name|leads out|not where)"):
        inspect_model(path)


@pytest.mark.parametrize(("size", "message"), [(None, "no such file beside the model"), (10, "cut short")])
def test_external_data_missing_or_short(tmp_path: Path, size: int | None, message: str) -> None:
    path = zoo.save(zoo.conv_net(), tmp_path / "m.onnx", external=True)
    if size is None:
        (tmp_path / "weights.bin").unlink()
    else:
        os.truncate(tmp_path / "weights.bin", size)
    with pytest.raises(UserError, match=message):
        inspect_model(path)


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    path = _relocated(tmp_path, "loop.bin")
    os.symlink("loop.bin", path.parent / "loop.bin")
    with pytest.raises(UserError, match=r"loop\.bin"):
        inspect_model(path)


def _relocated(tmp_path: Path, location: str) -> Path:
    path = zoo.save(zoo.conv_net(), tmp_path / "inside" / "m.onnx", external=True)
    model = onnx.load(str(path), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(model.SerializeToString())
    return path

"""ONNX files that are meant to do harm. Every model takes x: float32[1, 16]."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests import zoo

_FLOAT, _INT, _BOOL, _STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING


@dataclass(frozen=True)
class Case:
    """A model, the kinds that it may come to (`runs` = it is measured), and what a person is told.

    Attributes:
        load_s: time-out of its load.
        run_s: time-out of a run.
    """

    build: Callable[[Path], Path]
    kinds: frozenset[str]
    said: str = ""
    load_s: int = 60
    run_s: int = 60


def _case(build: Callable[[Path], Path], *kinds: str, said: str = "", load_s: int = 60, run_s: int = 60) -> Case:
    return Case(build, frozenset(kinds), said, load_s, run_s)


def _ints(name: str, *values: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype=np.int64), name)


def _value(name: str, kind: int = _FLOAT, shape: Sequence[int | str] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _write(
    folder: Path, nodes: Sequence[onnx.NodeProto], constants: Sequence[onnx.TensorProto] = (), output: onnx.ValueInfoProto | None = None
) -> Path:
    graph = helper.make_graph(nodes, "hostile", [_value("x", shape=[1, 16])], [output or _value("y")], list(constants))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def endless_loop(folder: Path) -> Path:
    """A loop that goes on for ever."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["still"]), helper.make_node("Mul", ["h", "h"], ["h2"])],
        "body", [_value("i", _INT, []), _value("go", _BOOL, []), _value("h", shape=[1, 16])],
        [_value("still", _BOOL, []), _value("h2", shape=[1, 16])],
    )  # fmt: skip
    yes = numpy_helper.from_array(np.array(True), "yes")
    return _write(folder, [helper.make_node("Loop", ["", "yes", "x"], ["y"], body=body)], [yes])


def slow_folding(folder: Path) -> Path:
    """Products of constants that are worked out while it loads."""
    nodes = [helper.make_node("ConstantOfShape", ["n"], ["m0"], value=numpy_helper.from_array(np.array([0.5], dtype=np.float32)))]
    nodes += [helper.make_node("MatMul", [f"m{i}", "m0"], [f"m{i + 1}"]) for i in range(400)]
    nodes += [helper.make_node("ReduceSum", ["m400"], ["s"], keepdims=0), helper.make_node("Add", ["x", "s"], ["y"])]
    return _write(folder, nodes, [_ints("n", 3000, 3000)])


def expanding_constant(folder: Path) -> Path:
    """32 GiB of constants while it loads."""
    nodes = [helper.make_node("ConstantOfShape", ["n"], ["c"]), helper.make_node("ReduceSum", ["c"], ["s"], keepdims=0)]
    return _write(folder, [*nodes, helper.make_node("Add", ["x", "s"], ["y"])], [_ints("n", 2**33)])


def tile_chain(folder: Path) -> Path:
    """Eight times as large at each of twelve steps."""
    nodes = [helper.make_node("Tile", [f"h{i}" if i else "x", "repeats"], [f"h{i + 1}"]) for i in range(12)]
    return _write(folder, [*nodes, helper.make_node("ReduceMax", ["h12"], ["y"])], [_ints("repeats", 8, 1)])


def large_output(folder: Path) -> Path:
    """An output of 8 GiB."""
    return _write(folder, [helper.make_node("Expand", ["x", "n"], ["y"])], [_ints("n", 2**17, 2**10, 16)])


def large_sequence(folder: Path) -> Path:
    """An output that is no tensor."""
    node = helper.make_node("SplitToSequence", ["x"], ["y"], axis=1)
    return _write(folder, [node], output=helper.make_tensor_sequence_value_info("y", _FLOAT, None))


def nested_ifs(folder: Path) -> Path:
    """Ifs within ifs, as deep as a protobuf reader goes."""
    inner = helper.make_node("Identity", ["x"], ["y28"])
    for level in range(27, -1, -1):
        then = helper.make_graph([inner], f"then{level}", [], [_value(f"y{level + 1}")])
        other = helper.make_graph([helper.make_node("Neg", ["x"], [f"n{level}"])], f"else{level}", [], [_value(f"n{level}")])
        inner = helper.make_node("If", ["yes"], [f"y{level}" if level else "y"], then_branch=then, else_branch=other)
    return _write(folder, [inner], [numpy_helper.from_array(np.array(True), "yes")])


def nested_loops(folder: Path) -> Path:
    """A thousand rounds of a thousand rounds, twenty deep."""
    inner = helper.make_node("Neg", ["x"], ["y20"])
    for level in range(19, -1, -1):
        passed = helper.make_node("Identity", [f"c{level}"], [f"d{level}"])
        scanned = helper.make_node("Identity", [f"y{level + 1}"], [f"z{level}"])
        inputs = [_value(f"i{level}", _INT, []), _value(f"c{level}", _BOOL, []), _value(f"h{level}", shape=[1, 16])]
        body = helper.make_graph(
            [passed, inner, scanned], f"b{level}", inputs, [_value(f"d{level}", _BOOL, []), _value(f"z{level}", shape=[1, 16])]
        )
        inner = helper.make_node("Loop", ["n", "", "x"], [f"y{level}" if level else "y"], body=body)
    return _write(folder, [inner], [numpy_helper.from_array(np.array(1000), "n")])


def many_nodes(folder: Path, count: int = 100_000) -> Path:
    """One node after the other."""
    nodes = [helper.make_node("Neg", [f"h{i}" if i else "x"], [f"h{i + 1}" if i < count - 1 else "y"]) for i in range(count)]
    return _write(folder, nodes)


def overflowing_shape(folder: Path) -> Path:
    """2^62 times 8 elements: more bytes than an integer counts."""
    return _write(
        folder, [helper.make_node("ConstantOfShape", ["n"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])], [_ints("n", 2**62, 8)]
    )


def overflowing_at_run(folder: Path) -> Path:
    """The same, from a shape that is known when it runs."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Mul", ["s", "n"], ["wide"]),
        helper.make_node("Expand", ["x", "wide"], ["y"]),
    ]
    return _write(folder, nodes, [_ints("n", 2**60, 1)])


def negative_shape(folder: Path) -> Path:
    """A constant of fewer than no elements."""
    return _write(
        folder, [helper.make_node("ConstantOfShape", ["n"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])], [_ints("n", -5, 16)]
    )


def negative_initializer(folder: Path) -> Path:
    """Weights of shape [-1, 16]."""
    weights = TensorProto(name="w", data_type=_FLOAT, dims=[-1, 16], raw_data=bytes(64))
    return _write(folder, [helper.make_node("Add", ["x", "w"], ["y"])], [weights])


def short_initializer(folder: Path) -> Path:
    """Weights that claim 2^40 elements and bring 16."""
    weights = TensorProto(name="w", data_type=_FLOAT, dims=[2**40], raw_data=bytes(64))
    return _write(folder, [helper.make_node("Add", ["x", "w"], ["y"])], [weights])


def out_of_bounds(folder: Path) -> Path:
    """Reads beside its table."""
    return _write(folder, [helper.make_node("Gather", ["x", "i"], ["y"], axis=1)], [_ints("i", 2**40)])


def cycle(folder: Path) -> Path:
    """Two nodes that wait for each other."""
    return _write(
        folder, [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Neg", ["a"], ["b"]), helper.make_node("Neg", ["a"], ["y"])]
    )


def garbage_strings(folder: Path) -> Path:
    """An output of text that is none."""
    text = TensorProto(name="t", data_type=_STRING, dims=[2], string_data=[b"\xff\xfe\x00\x80", b"\xed\xa0\x80"])
    return _write(folder, [helper.make_node("Identity", ["t"], ["y"])], [text], _value("y", _STRING, [2]))


def garbage_names(folder: Path) -> Path:
    """`y` renamed to bytes that are no text."""
    path = _write(folder, [helper.make_node("Neg", ["x"], ["yyyy"])], output=_value("yyyy", shape=[1, 16]))
    path.write_bytes(path.read_bytes().replace(b"yyyy", b"\xff\xfe\x1b["))
    return path


def nested_messages(folder: Path) -> Path:
    """Messages within messages, 100,000 deep: a parser without a limit runs out of stack."""
    content = b""
    for _ in range(100_000):
        content = b"\x3a" + _varint(len(content)) + content[:200_000]
    (folder / "model.onnx").write_bytes(content)
    return folder / "model.onnx"


def many_empty_messages(folder: Path) -> Path:
    """A small file of millions of empty nodes: each byte pair becomes an object."""
    graph = b"\x0a\x00" * 8_000_000
    (folder / "model.onnx").write_bytes(b"\x08\x08\x3a" + _varint(len(graph)) + graph)
    return folder / "model.onnx"


def _varint(value: int) -> bytes:
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def empty(folder: Path) -> Path:
    (folder / "model.onnx").write_bytes(b"")
    return folder / "model.onnx"


def external(location: str, length: int = 64) -> Callable[[Path], Path]:
    """Weights that lie in another file."""

    def build(folder: Path) -> Path:
        weights = TensorProto(name="w", data_type=_FLOAT, dims=[length // 4], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", location), ("offset", "0"), ("length", str(length))):
            weights.external_data.add(key=key, value=value)
        return _write(folder, [helper.make_node("ReduceSum", ["w"], ["s"]), helper.make_node("Add", ["x", "s"], ["y"])], [weights])

    return build


def external_pipe(folder: Path) -> Path:
    """Weights from a pipe that nobody writes into."""
    os.mkfifo(folder / "weights")
    return external("weights")(folder)


def external_sparse(folder: Path) -> Path:
    """Weights of 1 TiB that take no disk."""
    with (folder / "weights").open("wb") as file:
        file.truncate(2**40)
    return external("weights", 2**40)(folder)


def external_link(folder: Path) -> Path:
    """Weights that are a link out of the folder."""
    (folder / "weights").symlink_to("/etc/passwd")
    return external("weights")(folder)


MODELS = {
    "endless_loop": _case(endless_loop, "timeout", said="run: no answer", run_s=2),
    "slow_folding": _case(slow_folding, "timeout", said="load: no answer", load_s=2),
    "expanding_constant": _case(expanding_constant, "oom"),
    "expanding_at_run": _case(zoo.greedy, "oom"),
    "tile_chain": _case(tile_chain, "oom"),
    "large_output": _case(large_output, "oom"),
    "large_sequence": _case(large_sequence, "unsupported_op"),
    "nested_ifs": _case(nested_ifs, "runs"),
    "nested_loops": _case(nested_loops, "timeout", run_s=2),
    "not_finite": _case(zoo.not_finite, "runs"),
    "overflowing_shape": _case(overflowing_shape, "load", "oom", "crash"),
    "overflowing_at_run": _case(overflowing_at_run, "oom", "crash"),
    "negative_shape": _case(negative_shape, "load", "crash"),
    "negative_initializer": _case(negative_initializer, "load"),
    "short_initializer": _case(short_initializer, "load"),
    "out_of_bounds": _case(out_of_bounds, "load", "crash", "io_changed"),
    "cycle": _case(cycle, "load"),
    "garbage_strings": _case(garbage_strings, "crash", "runs"),
    "garbage_names": _case(garbage_names, "load", "crash"),
    "nested_messages": _case(nested_messages, "load"),
    "many_empty_messages": _case(many_empty_messages, "load", "oom"),
    "empty": _case(empty, "load"),
    "truncated": _case(zoo.truncated, "load"),
    "external_passwd": _case(external("/etc/passwd"), "load"),
    "external_above": _case(external("../../../../../../../../etc/passwd"), "load"),
    "external_zero": _case(external("/dev/zero"), "load"),
    "external_link": _case(external_link, "load"),
    "external_pipe": _case(external_pipe, "load", "timeout", load_s=2),
    "external_sparse": _case(external_sparse, "load", "oom"),
}

"""Reads what an ONNX file says of itself without loading weights and without following any path that it names.

The file is mapped and its protobuf fields are walked (https://protobuf.dev/programming-guides/encoding, field numbers from
onnx.proto, stable since IR version 3): weights are skipped, so a model of many GiB costs milliseconds. Since nothing is resolved
here, the names of external data can be judged before a parser that would open them sees the file (CVE-2022-25882,
CVE-2024-27318, CVE-2026-27489 were such openings).
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Union

from optimizer.signature import Malformed

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 64
_Field = Union[int, tuple[int, int]]  # a number, or where the bytes begin and end

# TensorProto.DataType -> numpy's name (bfloat16 and narrower have none: their ONNX name)
DTYPES: Mapping[int, str] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    8: "str",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
    14: "complex64",
    15: "complex128",
    16: "bfloat16",
}


@dataclass(frozen=True)
class ValueInfo:
    """A graph input or output. `shape` is None where the file declares none; a dynamic axis is None."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class ExternalRange:
    """A tensor's bytes in another file, named as the model names it; `length` None = up to the end."""

    tensor: str
    location: str
    offset: int = 0
    length: int | None = None


@dataclass
class Header:
    """What the file says. `op_types` counts nodes, those of subgraphs included; `weight_dtypes` counts initialisers."""

    ir_version: int = 0
    opset: int = 0
    inputs: list[ValueInfo] = field(default_factory=list)
    outputs: list[ValueInfo] = field(default_factory=list)
    op_types: Counter[str] = field(default_factory=Counter)
    grouped_convolutions: int = 0
    weight_dtypes: Counter[str] = field(default_factory=Counter)
    external: list[ExternalRange] = field(default_factory=list)
    has_graph: bool = False
    domains: list[str] = field(default_factory=list)


def read_header(path: Path) -> Header:
    """Reads the header of an ONNX file. Raises Malformed (with the byte where sense ends), OSError."""
    with path.open("rb") as stream:
        if path.stat().st_size == 0:
            raise Malformed("the file is empty")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            return _Reader(view).model()


class _Reader:
    """Walks one file; slices of the mapping are copied at once, so that it can be closed."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._header = Header()

    def model(self) -> Header:
        header = self._header
        for number, value in self._fields(0, len(self._view)):
            if number == 1 and isinstance(value, int):
                header.ir_version = value
            elif number == 7:
                header.has_graph = True
                self._graph(value, 0)
            elif number == 8:
                self._opset(value)
            elif number == 25:
                self._function(value)
        return header

    def _fields(self, start: int, end: int) -> Iterator[tuple[int, _Field]]:
        """Yields (field number, content)."""
        at = start
        while at < end:
            key, at = self._varint(at, end)
            number, kind = key >> 3, key & 7
            if number == 0:
                raise Malformed(f"no field number at byte {at}")
            if kind == _VARINT:
                value, at = self._varint(at, end)
                yield number, value
                continue
            if kind == _BYTES:
                length, at = self._varint(at, end)
            elif kind in (_FIXED32, _FIXED64):
                length = 4 if kind == _FIXED32 else 8
            else:
                raise Malformed(f"unknown wire type {kind} at byte {at}")
            if length > end - at:
                raise Malformed(f"at byte {at} a field of {length} bytes begins, but only {end - at} are left")
            yield number, (at, at + length)
            at += length

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        result = shift = 0
        while at < end and shift < 70:
            byte = self._view[at]
            at += 1
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return result & 0xFFFF_FFFF_FFFF_FFFF, at
            shift += 7
        raise Malformed(f"the file ends inside a number at byte {at}")

    def _message(self, value: object) -> Iterator[tuple[int, _Field]]:
        if not isinstance(value, tuple):
            raise Malformed("a number stands where a message is due")
        return self._fields(*value)

    def _text(self, value: object) -> str:
        if not isinstance(value, tuple):
            raise Malformed("a number stands where text is due")
        try:
            return bytes(self._view[value[0] : value[1]]).decode()
        except UnicodeDecodeError as error:
            raise Malformed(f"text that is not UTF-8 at byte {value[0]}") from error

    def _opset(self, value: object) -> None:
        domain, version = "", 0
        for number, item in self._message(value):
            if number == 1:
                domain = self._text(item)
            elif number == 2 and isinstance(item, int):
                version = item
        self._header.domains.append(domain)
        if domain in ("", "ai.onnx"):
            self._header.opset = version

    def _function(self, value: object) -> None:
        for number, item in self._message(value):
            if number == 7:
                self._node(item, 1)

    def _graph(self, value: object, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise Malformed(f"subgraphs nested deeper than {_MAX_DEPTH}")
        weights: set[str] = set()
        inputs: list[ValueInfo] = []
        for number, item in self._message(value):
            if number == 1:
                self._node(item, depth)
            elif number == 5:
                weights.add(self._tensor(item))
            elif number == 11:
                inputs.append(self._value_info(item))
            elif number == 12 and depth == 0:
                self._header.outputs.append(self._value_info(item))
            elif number == 15:
                self._sparse(item)
        if depth == 0:  # up to IR version 3 initialisers are listed among the inputs too
            self._header.inputs = [i for i in inputs if i.name not in weights]

    def _node(self, value: object, depth: int) -> None:
        op_type, group = "", 1
        for number, item in self._message(value):
            if number == 4:
                op_type = self._text(item)
            elif number == 5:
                group = max(group, self._attribute(item, depth))
        self._header.op_types[op_type] += 1
        self._header.grouped_convolutions += op_type == "Conv" and group > 1

    def _attribute(self, value: object, depth: int) -> int:
        """Walks tensors and subgraphs; returns the integer of an attribute `group`, else 0."""
        name, integer = "", 0
        for number, item in self._message(value):
            if number == 1:
                name = self._text(item)
            elif number == 3 and isinstance(item, int):
                integer = item
            elif number in (5, 10):
                self._tensor(item)
            elif number in (22, 23):
                self._sparse(item)
            elif number in (6, 11):
                self._graph(item, depth + 1)
        return integer if name == "group" else 0

    def _sparse(self, value: object) -> None:
        for number, item in self._message(value):
            if number in (1, 2):
                self._tensor(item)

    def _tensor(self, value: object) -> str:
        name, dtype, outside = "", 0, False
        entries: list[tuple[str, str]] = []
        for number, item in self._message(value):
            if number == 2 and isinstance(item, int):
                dtype = item
            elif number == 8:
                name = self._text(item)
            elif number == 13:
                entries.append(self._entry(item))
            elif number == 14:
                outside = item == 1
        self._header.weight_dtypes[DTYPES.get(dtype, f"type {dtype}")] += 1
        if outside or entries:
            self._external(name, entries)
        return name

    def _external(self, tensor: str, entries: list[tuple[str, str]]) -> None:
        locations = [v for k, v in entries if k == "location"]
        if not locations:
            raise Malformed(f"tensor {tensor!r} says that its data lie elsewhere, but not where")
        numbers = {k: v for k, v in entries if k in ("offset", "length")}
        try:
            offset, length = int(numbers.get("offset") or 0), int(numbers["length"]) if "length" in numbers else None
        except ValueError as error:
            raise Malformed(f"tensor {tensor!r}: offset or length of its external data is no number") from error
        if offset < 0 or (length or 0) < 0:
            raise Malformed(f"tensor {tensor!r}: negative offset or length of its external data")
        self._header.external += [ExternalRange(tensor, location, offset, length) for location in locations]

    def _entry(self, value: object) -> tuple[str, str]:
        key = text = ""
        for number, item in self._message(value):
            if number == 1:
                key = self._text(item)
            elif number == 2:
                text = self._text(item)
        return key, text

    def _value_info(self, value: object) -> ValueInfo:
        name, dtype = "", "untyped"
        shape: tuple[int | None, ...] | None = None
        for number, item in self._message(value):
            if number == 1:
                name = self._text(item)
            elif number == 2:
                dtype, shape = self._type(item)
        return ValueInfo(name, dtype, shape)

    def _type(self, value: object) -> tuple[str, tuple[int | None, ...] | None]:
        names = {4: "sequence", 5: "map", 8: "sparse tensor", 9: "optional"}
        dtype, shape = "untyped", None
        for number, item in self._message(value):
            if number != 1:
                dtype = names.get(number, dtype)
                continue
            for inner, content in self._message(item):
                if inner == 1 and isinstance(content, int):
                    dtype = DTYPES.get(content, f"type {content}")
                elif inner == 2:
                    shape = tuple(self._dimension(d) for n, d in self._message(content) if n == 1)
        return dtype, shape

    def _dimension(self, value: object) -> int | None:
        size: int | None = None
        for number, item in self._message(value):
            if number == 1 and isinstance(item, int):
                size = item
        return size if size is not None and 0 < size < 2**62 else None

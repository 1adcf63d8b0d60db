"""The signature of a TFLite file, read without a parser of its own making any allocation for what the file claims.

The file is a flatbuffer (https://flatbuffers.dev/internals): every offset is checked against the file's end before it is followed,
and the data of every buffer must lie inside, so that a file that was cut is told from a whole one. Fields are numbered as in
https://github.com/google-ai-edge/LiteRT/blob/main/tflite/converter/schema/schema.fbs; numbers are never reused there.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from edgefarm.errors import UserError
from optimizer.signature import Malformed, Signature, TensorSpec
from optimizer.tflite_names import DTYPES, OPERATORS

_IDENTIFIER = b"TFL3"
_TEXT_LIMIT = 4096
# Fields of the tables, by their number.
_MODEL_VERSION, _MODEL_CODES, _MODEL_GRAPHS, _MODEL_BUFFERS, _MODEL_SIGNATURES = 0, 1, 2, 4, 7
_SIGNATURE_KEY, _SIGNATURE_GRAPH = 2, 4
_CODE_OLD, _CODE_CUSTOM, _CODE_NEW = 0, 1, 3
_GRAPH_TENSORS, _GRAPH_INPUTS, _GRAPH_OUTPUTS, _GRAPH_OPERATORS = 0, 1, 2, 3
_TENSOR_SHAPE, _TENSOR_TYPE, _TENSOR_BUFFER, _TENSOR_NAME, _TENSOR_QUANTISATION, _TENSOR_SIGNATURE = 0, 1, 2, 3, 4, 7
_QUANTISATION_SCALE, _QUANTISATION_ZERO = 2, 3
_OPERATOR_CODE = 0
_BUFFER_DATA, _BUFFER_OFFSET, _BUFFER_SIZE = 0, 1, 2
_CUSTOM = "CUSTOM"


def read(path: Path) -> Signature:
    """Reads what the main graph takes and gives. Raises Malformed, OSError, and UserError for a file of several functions."""
    with path.open("rb") as stream:
        if path.stat().st_size < 8:
            raise Malformed("the file is empty" if not path.stat().st_size else "the file ends inside its header")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
            if bytes(view[4:8]) != _IDENTIFIER:
                raise Malformed(f"bytes 4 to 8 are {bytes(view[4:8])!r}, not {_IDENTIFIER!r}")
            model = _Model(_Flatbuffer(view))
            functions = model.functions()
            if set(functions.values()) - {0}:
                listed = ", ".join(map(repr, functions))
                raise UserError(f"{path}: holds the signatures {listed}, each a graph of its own; export the one that is to run alone")
            return model.signature(path.name)


class _Flatbuffer:
    """Reads numbers, tables and vectors; nothing outside of the file."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self.size = len(view)

    def number(self, kind: str, at: int) -> int:
        """A little-endian integer, `kind` as in `struct`."""
        return int(self._unpack(kind, at))

    def real(self, at: int) -> float:
        """A float32."""
        return float(self._unpack("f", at))

    def _unpack(self, kind: str, at: int) -> float:
        width = struct.calcsize(f"<{kind}")
        if not 0 <= at <= self.size - width:
            raise Malformed(f"a value at byte {at} is asked for, the file has {self.size}")
        value: float = struct.unpack_from(f"<{kind}", self._view, at)[0]
        return value

    def field(self, table: int, number: int) -> int:
        """Where a field of a table lies; 0 if it is absent."""
        layout = table - self.number("i", table)
        if 6 + 2 * number > self.number("H", layout):
            return 0
        offset = self.number("H", layout + 4 + 2 * number)
        return table + offset if offset else 0

    def scalar(self, table: int, number: int, kind: str) -> int:
        """An integer field; 0 if it is absent."""
        at = self.field(table, number)
        return self.number(kind, at) if at else 0

    def child(self, table: int, number: int) -> int:
        """Where the table that a field refers to begins; 0 if it is absent."""
        at = self.field(table, number)
        return at + self.number("I", at) if at else 0

    def vector(self, table: int, number: int, width: int) -> range:
        """Where the elements of a vector lie; empty if it is absent."""
        start = self.child(table, number)
        if not start:
            return range(0)
        count = self.number("I", start)
        if count * width > self.size - start - 4:
            raise Malformed(f"at byte {start} {count} elements of {width} bytes begin, but only {self.size - start - 4} bytes are left")
        return range(start + 4, start + 4 + count * width, width)

    def tables(self, table: int, number: int) -> list[int]:
        """Where the tables of a vector begin."""
        return [at + self.number("I", at) for at in self.vector(table, number, 4)]

    def text(self, table: int, number: int) -> str:
        """A string; empty if it is absent."""
        place = self.vector(table, number, 1)
        if len(place) > _TEXT_LIMIT:
            raise Malformed(f"a name of {len(place)} bytes at byte {place.start}")
        try:
            return bytes(self._view[place.start : place.stop]).decode()
        except UnicodeDecodeError as error:
            raise Malformed(f"text that is not UTF-8 at byte {place.start}") from error


class _Model:
    """Walks one file."""

    def __init__(self, file: _Flatbuffer) -> None:
        self._file = file
        self._root = file.number("I", 0)

    def functions(self) -> dict[str, int]:
        """Named signatures, and the graph that each one runs. Interpreters run the first graph unless a signature is asked for."""
        file = self._file
        tables = file.tables(self._root, _MODEL_SIGNATURES)
        return {file.text(table, _SIGNATURE_KEY): file.scalar(table, _SIGNATURE_GRAPH, "I") for table in tables}

    def signature(self, name: str) -> Signature:
        file, root = self._file, self._root
        graphs = file.tables(root, _MODEL_GRAPHS)
        if not graphs:
            raise Malformed("it holds no graph")
        filled = [self._is_filled(buffer) for buffer in file.tables(root, _MODEL_BUFFERS)]
        operators = Counter(name for graph in graphs for name in self._operators(graph))
        weights = Counter(dtype for graph in graphs for dtype in self._weights(graph, filled))
        sides = [self._side(graphs[0], number) for number in (_GRAPH_INPUTS, _GRAPH_OUTPUTS)]
        if not sides[1]:
            raise Malformed("its graph has no outputs")
        return Signature(
            inputs=sides[0],
            outputs=sides[1],
            opset=file.scalar(root, _MODEL_VERSION, "I"),
            format="tflite",
            files=(name,),
            op_types=dict(operators),
            weight_dtypes=dict(weights),
            grouped_convolutions=operators["DEPTHWISE_CONV_2D"],
        )

    def _is_filled(self, buffer: int) -> bool:
        """Whether a buffer holds data: in itself, or, of large models, behind the flatbuffer."""
        data = self._file.vector(buffer, _BUFFER_DATA, 1)
        offset, size = (self._file.scalar(buffer, number, "Q") for number in (_BUFFER_OFFSET, _BUFFER_SIZE))
        if offset > 1 and offset + size > self._file.size:
            raise Malformed(f"weights up to byte {offset + size} are asked for, the file has {self._file.size}")
        return bool(data) or (offset > 1 and size > 0)

    def _operators(self, graph: int) -> Iterator[str]:
        codes = [self._operator_name(code) for code in self._file.tables(self._root, _MODEL_CODES)]
        for operator in self._file.tables(graph, _GRAPH_OPERATORS):
            index = self._file.scalar(operator, _OPERATOR_CODE, "I")
            if index >= len(codes):
                raise Malformed(f"an operator refers to code {index}, there are {len(codes)}")
            yield codes[index]

    def _operator_name(self, code: int) -> str:
        """Codes above 127 came with a wider field; the larger of both counts."""
        number = max(self._file.scalar(code, _CODE_OLD, "b"), self._file.scalar(code, _CODE_NEW, "i"))
        name = OPERATORS[number] if 0 <= number < len(OPERATORS) else f"operator {number}"
        return (self._file.text(code, _CODE_CUSTOM) or name) if name == _CUSTOM else name

    def _weights(self, graph: int, filled: list[bool]) -> Iterator[str]:
        for tensor in self._file.tables(graph, _GRAPH_TENSORS):
            buffer = self._file.scalar(tensor, _TENSOR_BUFFER, "I")
            if buffer >= len(filled):
                raise Malformed(f"a tensor refers to buffer {buffer}, there are {len(filled)}")
            if filled[buffer]:
                yield self._dtype(tensor)

    def _dtype(self, tensor: int) -> str:
        number = self._file.scalar(tensor, _TENSOR_TYPE, "B")
        return DTYPES[number] if number < len(DTYPES) else f"type {number}"

    def _side(self, graph: int, number: int) -> tuple[TensorSpec, ...]:
        tensors = self._file.tables(graph, _GRAPH_TENSORS)
        indices = [self._file.number("i", at) for at in self._file.vector(graph, number, 4)]
        if wrong := [i for i in indices if not 0 <= i < len(tensors)]:
            raise Malformed(f"its graph refers to tensor {wrong[0]}, there are {len(tensors)}")
        return tuple(self._spec(tensors[i]) for i in indices)

    def _spec(self, tensor: int) -> TensorSpec:
        file = self._file
        declared = file.vector(tensor, _TENSOR_SIGNATURE, 4) or file.vector(tensor, _TENSOR_SHAPE, 4)
        sizes = tuple(None if (size := file.number("i", at)) < 0 else size for at in declared)
        scale = zero = None
        quantisation = file.child(tensor, _TENSOR_QUANTISATION)
        if quantisation and len(scales := file.vector(quantisation, _QUANTISATION_SCALE, 4)) == 1:
            zeros = file.vector(quantisation, _QUANTISATION_ZERO, 8)
            step = file.real(scales[0])
            if step > 0 and math.isfinite(step):  # some converters write 0 where nothing is quantised
                scale, zero = step, file.number("q", zeros[0]) if zeros else 0
        ranked = bool(file.field(tensor, _TENSOR_SHAPE))
        return TensorSpec(file.text(tensor, _TENSOR_NAME), self._dtype(tensor), sizes, ranked, scale, zero)

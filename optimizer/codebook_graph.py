"""A weight that an ONNX graph computes from packed indices and a codebook, with operators of opset 11. For pass processes only.

Every part of the indices (`codebooks.widths`) is unpacked by looking its bytes up in a table that all weights of a model share, parts
are added, and Gather looks the levels up. All inputs are constants, so a runtime that folds constants does it once, when it loads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from optimizer.codebooks import Codes, pack, widths

ROW = "codebook/row"


def tables(bits: int) -> list[Any]:
    """What all lookups of a model share: for each part of an index uint8[256, parts in a byte], values of the parts; and a shape."""
    found, shift = [numpy_helper.from_array(np.array([-1], np.int64), ROW)], 0
    for width in widths(bits):
        if width < 8:
            parts = np.arange(256)[:, None] >> (np.arange(8 // width) * width) & (2**width - 1)
            found.append(numpy_helper.from_array((parts << shift).astype(np.uint8), _table_name(width, shift)))
        shift += width
    return found if bits != 8 else []


def _table_name(width: int, shift: int) -> str:
    return f"codebook/parts_{width}_{shift}"


class Lookup:
    """Nodes and stored tensors that compute one weight.

    Attributes:
        nodes: in order of execution; the last one's output has the weight's name.
        tensors: what is stored instead of the weight.
    """

    def __init__(self, name: str, codes: Codes, levels: NDArray[Any], bits: int, offsets: Codes | None) -> None:
        """Builds them.

        Args:
            name: of the weight.
            codes: indices into the codebook, in the weight's shape, below 2^bits.
            levels: the codebook in the weight's type: [levels], or one after the other [groups * levels].
            bits: of an index; the model must hold `tables(bits)`.
            offsets: where the codebook of each element's group begins, broadcast over the weight; None: there is one group.
        """
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self._name = name
        flat = self._unpacked(codes, bits)
        if codes.size % 8:
            ends = [self._tensor(suffix, np.array([end], np.int64)) for suffix, end in (("begin", 0), ("end", codes.size))]
            flat = self._node("Slice", flat, *ends)
        index = self._node("Reshape", flat, self._tensor("shape", np.array(codes.shape, np.int64)))
        if len(widths(bits)) == 1:
            index = self._node("Cast", index, to=TensorProto.INT32)
        if offsets is not None:
            index = self._node("Add", index, self._tensor("offsets", offsets.astype(np.int32)))
        self.nodes.append(helper.make_node("Gather", [self._tensor("codebook", levels), index], [name]))

    @property
    def byte_size(self) -> int:
        """What the model file holds of it."""
        return sum(part.ByteSize() for part in (*self.nodes, *self.tensors))

    def _unpacked(self, codes: Codes, bits: int) -> str:
        """The indices in one row, filled up to a multiple of 8: uint8 where they have one part, else int32."""
        parts, shift, one = [], 0, len(widths(bits)) == 1
        for width, packed in zip(widths(bits), pack(codes, bits)):
            value = self._tensor(f"packed{width}", packed)
            if width < 8:
                value = self._node("Gather", _table_name(width, shift), self._node("Cast", value, to=TensorProto.INT32))
                value = self._node("Reshape", value, ROW)
            parts.append(value if one else self._node("Cast", value, to=TensorProto.INT32))
            shift += width
        total, *others = parts
        for other in others:
            total = self._node("Add", total, other)
        return total

    def _node(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        output = f"{self._name}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [output], **attributes))
        return output

    def _tensor(self, suffix: str, value: Any) -> str:
        name = f"{self._name}/{suffix}"
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

"""A model with QuantizeLinear/DequantizeLinear pairs beside the float model that it was made from; nodes correspond by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgefarm.tensors import Tensor
from optimizer.onnx_wiring import Wiring

_WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")


@dataclass(frozen=True)
class Affine:
    """Names of a scale and a zero point: real = scale * (integer - zero point)."""

    scale: str
    zero_point: str
    axis: int = 1


@dataclass(frozen=True)
class Stored:
    """A constant that is held as integers: its name, and how they are meant."""

    name: str
    affine: Affine


class Pairs:
    """Both models, and what of the one is quantised in the other.

    Attributes:
        plain: the float model.
        quantized: the one with pairs.
        nodes: name -> the node of the quantised model.
    """

    def __init__(self, plain: Any, quantized: Any) -> None:
        self.plain, self.quantized = Wiring(plain), Wiring(quantized)
        self.nodes = {node.name: node for node in quantized.graph.node if node.name}

    def weighted(self) -> Iterator[tuple[Any, Any]]:
        """(float node, quantised node) of every convolution and matrix product whose weights became integers, in the graph's order."""
        for node in self.plain.model.graph.node:
            other = self.nodes.get(node.name)
            if node.op_type in _WEIGHTED and other is not None and any(self.stored(other, i) for i in range(min(2, len(other.input)))):
                yield node, other

    def stored(self, node: Any, index: int) -> Stored | None:
        """The integers that a node of the quantised model reads as its input `index`; None where that is no quantised constant."""
        if index >= len(node.input):
            return None
        source = self._dequantizer(node.input[index])
        if source is None or self.quantized.constant(source.input[0]) is None:
            return None
        return Stored(source.input[0], _affine(source))

    def activation(self, node: Any, index: int) -> Affine | None:
        """How an activation is quantised that a node of the quantised model reads; None where it is not."""
        source = self._dequantizer(node.input[index])
        return _affine(source) if source is not None and self.quantized.constant(source.input[0]) is None else None

    def result(self, node: Any) -> Affine | None:
        """How what a node of the quantised model makes is quantised; None where it is not."""
        reader = self.quantized.only_reader(node.output[0])
        return _affine(reader) if reader is not None and reader.op_type == "QuantizeLinear" else None

    def written(self, affine: Affine) -> tuple[Tensor, Tensor]:
        """Scale and zero point as they are written: scalars, or vectors along the axis."""
        scale, zero_point = self.quantized.constant(affine.scale), self.quantized.constant(affine.zero_point)
        if scale is None or zero_point is None:
            raise ValueError(f"{affine.scale!r} or {affine.zero_point!r} is no constant")
        return scale, zero_point

    def parameters(self, affine: Affine, rank: int) -> tuple[Tensor, Tensor]:
        """Scale and zero point, shaped to go with an array of that rank."""
        scale, zero_point = self.written(affine)
        shape = [1] * rank
        if scale.size > 1:
            shape[affine.axis] = scale.size
        return scale.reshape(shape if scale.size > 1 else ()), zero_point.reshape(shape if zero_point.size > 1 else ())

    def values(self, stored: Stored) -> Tensor:
        """The real values of a constant that is held as integers: float32."""
        integers = self.quantized.constant(stored.name)
        assert integers is not None
        scale, zero_point = self.parameters(stored.affine, integers.ndim)
        return np.asarray((integers.astype(np.float64) - zero_point.astype(np.float64)) * scale, np.float32)

    def _dequantizer(self, tensor: str) -> Any | None:
        producer = self.quantized.producer.get(tensor)
        return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def _affine(node: Any) -> Affine:
    axis = next((int(a.i) for a in node.attribute if a.name == "axis"), 1)
    return Affine(node.input[1], node.input[2], axis)

"""What a model takes and gives, and the facts that recipes are chosen by; one form for all formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_INTEGER_OPS = ("QuantizeLinear", "DequantizeLinear", "QLinear", "Integer", "DynamicQuantize", "QGemm", "QAttention", "MatMulNBits")
_NARROW = ("int8", "uint8", "int4", "uint4", "int2")


class Malformed(ValueError):
    """A file that is not a whole model of its format; the text says where, or what is missing."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or output, e.g. `x: float32[None, 3, 224, 224]`; None is a dynamic axis.

    Attributes:
        ranked: False where the model declares no shape at all (`shape` is empty then).
        scale, zero_point: real = scale * (q - zero_point), where the file itself says so (TFLite).
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    ranked: bool = True
    scale: float | None = None
    zero_point: int | None = None

    def __str__(self) -> str:
        axes = ", ".join("N" if s is None else str(s) for s in self.shape) if self.ranked else "…"
        return f"{self.dtype}[{axes}]"


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives, and the facts that recipes are chosen by.

    Attributes:
        opset: version of the format's operators (ONNX), or of the format itself.
        files: the main file and those that belong to it, as names relative to the model's folder; the main file first.
        op_types: operator -> number of nodes, subgraphs included.
        weight_dtypes: dtype -> number of stored tensors.
        grouped_convolutions: convolutions with groups (depthwise ones among them).
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    format: str
    files: tuple[str, ...] = ()
    op_types: Mapping[str, int] = field(default_factory=dict)
    weight_dtypes: Mapping[str, int] = field(default_factory=dict)
    grouped_convolutions: int = 0

    @property
    def integers(self) -> int:
        """Operators that compute on integers, and weights of at most 8 bits: what a quantiser leaves behind."""
        operators = sum(n for name, n in self.op_types.items() if any(part in name for part in _INTEGER_OPS))
        return operators + sum(self.weight_dtypes.get(dtype, 0) for dtype in _NARROW)

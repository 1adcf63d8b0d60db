"""TFLite models made ready for a quantiser, and what it wrote for all that read such files. For pass processes only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

_IDENTIFIER = b"TFL3"
_SIGNATURE = "serving_default"
_ALIGNMENT = 16
_OLD_CODES = schema.BuiltinOperator.PLACEHOLDER_FOR_GREATER_OP_CODES  # what the older field holds for all codes that do not fit


@dataclass(frozen=True)
class Prepared:
    """`names`: name of an input tensor -> its name in the signature `signature`; `folded`: weights that were float16."""

    path: Path
    signature: str
    names: dict[str, str]
    folded: int


def prepare(source: Path, work_dir: Path) -> Prepared:
    """Writes what a quantiser needs: weights in float32 that no DEQUANTIZE hides, and a signature to feed samples by.

    Converters store float16 weights behind DEQUANTIZE nodes; quantisers leave those alone without a word.
    """
    model = _load(source)
    folded = sum(_fold_halves(model, graph) for graph in model.subgraphs)
    if not model.signatureDefs:
        model.signatureDefs = [_signature(model.subgraphs[0])]
    chosen = next((s for s in model.signatureDefs if not s.subgraphIndex), model.signatureDefs[0])
    tensors = model.subgraphs[chosen.subgraphIndex or 0].tensors
    names = {_text(tensors[entry.tensorIndex].name): _text(entry.name) for entry in chosen.inputs}
    path = work_dir / "prepared.tflite"
    _save(model, path)
    return Prepared(path, _text(chosen.signatureKey), names, folded)


def settle(source: Path, target: Path) -> Path:
    """Writes the same model so that more than today's LiteRT reads it: OpenVINO, older runtimes. Returns `target`.

    AI Edge Quantizer puts weights behind the flatbuffer, and leaves the older of the two fields of an operator's code at 0, which is ADD.
    """
    model = _load(source)
    for code in model.operatorCodes:
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        code.builtinCode, code.deprecatedBuiltinCode = number, min(number, _OLD_CODES)
    _save(model, target)
    return target


class _Aligned(schema.BufferT):  # type: ignore[misc]
    """A buffer whose data begin at a multiple of 16 bytes, as the schema asks for."""

    def Pack(self, builder: Any) -> Any:
        if self.data is not None:
            builder.Prep(_ALIGNMENT, len(self.data))
        return super().Pack(builder)


def _load(path: Path) -> Any:
    """A ModelT with all its data in memory, wherever the file keeps them."""
    content = path.read_bytes()
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers:
        if buffer.offset > 1:
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
        elif buffer.data is not None and not len(buffer.data):
            buffer.data = None  # an empty one is taken for a constant without values
        buffer.offset = buffer.size = 0
        buffer.__class__ = _Aligned
    return model


def _save(model: Any, path: Path) -> None:
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    path.write_bytes(bytes(builder.Output()))


def _fold_halves(model: Any, graph: Any) -> int:
    """Computes DEQUANTIZE of float16 constants; what they fed takes the constant."""
    kept, folded = [], 0
    for operator in graph.operators:
        data = _half_constant(model, graph, operator)
        if data is None:
            kept.append(operator)
            continue
        buffer = schema.BufferT()
        values = np.frombuffer(np.asarray(data, np.uint8).tobytes(), np.float16)
        buffer.data = np.frombuffer(values.astype(np.float32).tobytes(), np.uint8)
        graph.tensors[operator.outputs[0]].buffer = len(model.buffers)
        model.buffers.append(buffer)
        folded += 1
    graph.operators = kept
    return folded


def _half_constant(model: Any, graph: Any, operator: Any) -> Any:
    """The bytes of the float16 constant that an operator dequantises; None if it is another one."""
    code = model.operatorCodes[operator.opcodeIndex]
    if max(code.builtinCode, code.deprecatedBuiltinCode) != schema.BuiltinOperator.DEQUANTIZE:
        return None
    tensor = graph.tensors[operator.inputs[0]]
    return model.buffers[tensor.buffer].data if tensor.type == schema.TensorType.FLOAT16 else None


def _signature(graph: Any) -> Any:
    """A signature in which tensors have their own names."""
    made = schema.SignatureDefT()
    made.signatureKey, made.subgraphIndex = _SIGNATURE, 0
    made.inputs, made.outputs = ([_entry(graph, index) for index in side] for side in (graph.inputs, graph.outputs))
    return made


def _entry(graph: Any, index: int) -> Any:
    made = schema.TensorMapT()
    made.name, made.tensorIndex = _text(graph.tensors[index].name), int(index)
    return made


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)

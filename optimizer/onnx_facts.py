"""What an ONNX model in memory holds: operators, weights, what of it is quantised. For pass processes only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import onnx

from edgefarm.digest import canonical_json, digest_bytes

DEFAULT_DOMAINS = ("", "ai.onnx")


def default_opset(model: Any) -> int:
    """Version of the standard operators that the model uses."""
    return max((o.version for o in model.opset_import if o.domain in DEFAULT_DOMAINS), default=1)


def graphs(model: Any) -> Iterator[Any]:
    """The main graph and all subgraphs."""
    stack = [model.graph]
    while stack:
        graph = stack.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                stack.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)


def nodes(model: Any) -> Iterator[Any]:
    """All nodes, those of subgraphs and functions included."""
    for graph in graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def op_counts(model: Any) -> dict[str, int]:
    """Operator -> number of nodes, by name."""
    return dict(sorted(Counter(node.op_type for node in nodes(model)).items()))


def weights(model: Any) -> Iterator[Any]:
    """All stored tensors: initialisers and Constant nodes."""
    for graph in graphs(model):
        yield from graph.initializer
        for node in graph.node:
            if node.op_type == "Constant":
                yield from (a.t for a in node.attribute if a.name == "value")


def weight_counts(model: Any) -> dict[str, int]:
    """dtype -> number of stored tensors."""
    names = onnx.TensorProto.DataType
    renamed = {"FLOAT": "float32", "DOUBLE": "float64"}
    counts = Counter(names.Name(w.data_type) for w in weights(model))
    return {renamed.get(name, name.lower()): count for name, count in counts.items()}


def quantized_summary(before: Any, after: Any) -> str:
    """How much was really quantised, e.g. `13 of 14 Conv, 2 of 2 Gemm quantised`."""
    total = Counter(_core(node.op_type) for node in nodes(before))
    done = Counter(_integer_nodes(after))
    done["Gemm"] += excess if (excess := done["MatMul"] - total["MatMul"]) > 0 else 0  # Gemm was rewritten as MatMul
    named = ("Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "Attention", "Gather")
    kinds = [k for k in named if total[k] and (done[k] or k != "Gather")]  # a Gather is seldom one of weights
    parts = [f"{min(done[k], total[k])} of {total[k]} {k}" for k in kinds]
    return f"{', '.join(parts)} quantised" if parts else "no operator with weights quantised"


def _core(op_type: str) -> str:
    renamed = {"FusedConv": "Conv", "FusedMatMul": "MatMul", "FusedGemm": "Gemm"}
    return renamed.get(op_type, op_type)


def _integer_nodes(model: Any) -> Iterator[str]:
    """Kind of every node that computes on integers: an integer operator, or one that is fed by DequantizeLinear."""
    names = {
        "ConvInteger": "Conv",
        "QLinearConv": "Conv",
        "MatMulInteger": "MatMul",
        "QLinearMatMul": "MatMul",
        "MatMulIntegerToFloat": "MatMul",
        "DynamicQuantizeMatMul": "MatMul",
        "DynamicQuantizeLSTM": "LSTM",
        "QAttention": "Attention",
    }
    producer = {output: node for node in nodes(model) for output in node.output}
    for node in nodes(model):
        if node.op_type in names:
            yield names[node.op_type]
        elif node.input and all(i in producer and producer[i].op_type == "DequantizeLinear" for i in node.input[:2]):
            yield node.op_type


def structure(model: Any) -> str:
    """Digest of operators, attributes and weights, whatever their names and order: equal for models that compute the same way."""
    opset = default_opset(model)
    parts = [canonical_json([n.domain, n.op_type, len(n.input), len(n.output), _attributes(n, opset)]) for n in nodes(model)]
    parts += [canonical_json([w.data_type, list(w.dims), digest_bytes(_raw(w))]) for w in weights(model)]
    return digest_bytes(b"\n".join(sorted(parts)))


def _attributes(node: Any, opset: int) -> list[str]:
    """Digests of a node's attributes; defaults that are spelled out don't count."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
        defaults = {name: a.default_value.SerializeToString(deterministic=True) for name, a in schema.attributes.items()}
    except onnx.defs.SchemaError:
        defaults = {}
    present = {a.name: a.SerializeToString(deterministic=True) for a in node.attribute if a.name != "value"}
    return sorted(digest_bytes(content) for name, content in present.items() if content != defaults.get(name))


def _raw(weight: Any) -> bytes:
    if weight.data_type == onnx.TensorProto.STRING:
        return b"\0".join(weight.string_data)
    return bytes(weight.raw_data) or onnx.numpy_helper.to_array(weight).tobytes()

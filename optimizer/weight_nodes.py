"""Which nodes of an ONNX model have stored weights, and how much of them a pass took. For pass processes only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import onnx

from optimizer.onnx_facts import DEFAULT_DOMAINS, graphs, nodes

# Operator -> which input is its weight. A Gather is one of weights where it looks up rows of a stored matrix: an embedding.
WEIGHT_INPUT = {"Conv": 1, "ConvTranspose": 1, "MatMul": 1, "Gemm": 1, "Gather": 0}
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


def stored_weights(model: Any) -> dict[str, Any]:
    """Name -> initialiser of the main graph, without those that a caller may feed."""
    fed = {i.name for i in model.graph.input}
    return {w.name: w for w in model.graph.initializer if w.name not in fed}


def weight_of(node: Any, stored: Mapping[str, Any]) -> str:
    """Name of a node's stored weight, a float tensor of at least two axes; empty if it has none."""
    index = WEIGHT_INPUT.get(node.op_type) if node.domain in DEFAULT_DOMAINS else None
    if index is None or len(node.input) <= index or node.input[index] not in stored:
        return ""
    weight = stored[node.input[index]]
    if (
        weight.data_type not in _FLOATS
        or len(weight.dims) < 2
        or 0 in weight.dims
        or (node.op_type == "Gather" and not _is_embedding(node, weight))
    ):
        return ""
    return str(node.input[index])


def _is_embedding(node: Any, weight: Any) -> bool:
    return len(weight.dims) == 2 and all(a.name != "axis" or a.i == 0 for a in node.attribute)


def weight_kinds(model: Any) -> Counter[str]:
    """Operator -> how many nodes could have weights: all of their kind, but of Gather only embeddings. Subgraphs count."""
    stored = {w.name: w for graph in graphs(model) for w in graph.initializer}
    return Counter(n.op_type for n in nodes(model) if n.op_type in WEIGHT_INPUT and (n.op_type != "Gather" or weight_of(n, stored)))


def drop_unused(model: Any) -> None:
    """Drops initialisers of the main graph that nothing reads any more."""
    read = {name for node in nodes(model) for name in node.input} | {o.name for g in graphs(model) for o in g.output}
    kept = [w for w in model.graph.initializer if w.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def summary(total: Mapping[str, int], done: Mapping[str, int], how: str, left: Mapping[str, int], sizes: tuple[int, int]) -> str:
    """What a pass did, for people.

    Args:
        total: operator -> nodes.
        done: operator -> nodes whose weights were taken.
        how: what became of those weights, e.g. `in int4`.
        left: reason -> nodes that were left.
        sizes: bytes of the model before and after.
    """
    if not any(done.values()):
        what = "no weight taken"
    else:
        what = ", ".join(f"{done.get(kind, 0)} of {total[kind]} {kind}" for kind in WEIGHT_INPUT if total.get(kind)) + f" {how}"
    reasons = "; ".join(f"{count} {reason}" for reason, count in left.items() if count)
    return f"{what}, {sizes[0]:,} -> {sizes[1]:,} bytes" + (f"; left: {reasons}" if reasons else "")

"""Gemm as MatMul and Add, for tools that see products only where a MatMul is. For pass processes only.

Gemm computes Y = alpha * A' * B' + beta * C, where A' and B' are A and B, transposed if transA or transB says so (ONNX, Operators.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from optimizer.weight_nodes import drop_unused, stored_weights, weight_of


def to_matmul(model: Any) -> list[str]:
    """Rewrites every Gemm of the main graph whose B is a stored weight, in place. alpha and transB go into B, beta into C.

    Returns:
        Names of the MatMul nodes that were a Gemm.
    """
    graph = model.graph
    stored = stored_weights(model)
    names, nodes, weights = [], [], []
    for node in graph.node:
        if node.op_type == "Gemm" and weight_of(node, stored):
            name = f"{node.output[0]}_gemm"
            replaced, added = _products(node, stored, name)
            names.append(name)
            nodes += replaced
            weights += added
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)
    drop_unused(model)
    return names


def _products(node: Any, stored: dict[str, Any], name: str) -> tuple[list[Any], list[Any]]:
    """The nodes in place of one Gemm, and the weights that they need."""
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    alpha, beta = float(given.get("alpha", 1.0)), float(given.get("beta", 1.0))
    weight = numpy_helper.to_array(stored[node.input[1]])
    scaled = weight.T if given.get("transB") else weight
    weights = [numpy_helper.from_array(np.ascontiguousarray((scaled * alpha).astype(weight.dtype)), f"{name}_B")]
    nodes, left = [], node.input[0]
    if given.get("transA"):
        nodes.append(helper.make_node("Transpose", [left], [f"{name}_A"], perm=[1, 0]))
        left = f"{name}_A"
    bias = node.input[2] if len(node.input) > 2 and beta else ""  # beta 0 means no C, also where C holds NaN
    product = f"{name}_Y" if bias else node.output[0]
    nodes.append(helper.make_node("MatMul", [left, f"{name}_B"], [product], name=name))
    if bias and beta != 1:
        if bias in stored:
            shift = numpy_helper.to_array(stored[bias])
            weights.append(numpy_helper.from_array((shift * beta).astype(shift.dtype), f"{name}_C"))
        else:
            weights.append(numpy_helper.from_array(np.asarray(beta, weight.dtype), f"{name}_beta"))
            nodes.append(helper.make_node("Mul", [bias, f"{name}_beta"], [f"{name}_C"]))
        bias = f"{name}_C"
    if bias:
        nodes.append(helper.make_node("Add", [product, bias], [node.output[0]]))
    return nodes, weights

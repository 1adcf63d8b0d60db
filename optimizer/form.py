"""What decides how long a file takes: its operators, their order, types and shapes, without the values of its weights.

Files of one form make a runtime take the same kernels on the same sizes, so what one of them takes the others take too. That is a
reason not to race them against each other; it is never taken for a measurement. For pass processes only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgefarm.digest import digest_bytes
from optimizer.source import FORMATS

# Inputs of which no kernel's time depends on the values; "zero": a kernel may exist for 0, and for the middle of a type, so these differ.
_VALUES: dict[str, dict[int, str]] = {
    "Conv": {1: "", 2: ""},
    "ConvTranspose": {1: "", 2: ""},
    "Gemm": {1: "", 2: ""},
    "MatMul": {0: "", 1: ""},
    "QuantizeLinear": {1: "", 2: "zero"},
    "DequantizeLinear": {0: "", 1: "", 2: "zero"},
    "ConvInteger": {1: "", 2: "zero", 3: "zero"},
    "MatMulInteger": {1: "", 2: "zero", 3: "zero"},
}
_MIDDLES = (0, 128)


def form(path: Path) -> str:
    """Digest of a model file's form; empty where that can't be told: other formats than ONNX, and files that are broken."""
    return _onnx_form(path) if FORMATS[path.suffix].name == "onnx" else ""


def _onnx_form(path: Path) -> str:
    import onnx
    from google.protobuf.message import DecodeError

    from optimizer.onnx_facts import graphs

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError:
        return ""
    model.ClearField("metadata_props")
    for graph in graphs(model):
        uses = _uses(graph)
        for tensor in graph.initializer:
            if tensor.data_location == onnx.TensorProto.DEFAULT:
                tensor.ClearField("data_location")
            if (use := uses.get(tensor.name)) is not None:
                tensor.CopyFrom(
                    onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims, doc_string=_zero(tensor, use))
                )
    for told in ("producer_name", "producer_version", "doc_string"):
        model.ClearField(told)
    return digest_bytes(model.SerializeToString(deterministic=True))


def _uses(graph: Any) -> dict[str, str]:
    """Tensor -> what of its values matters, for those that are used in no other way than as `_VALUES` says."""
    found: dict[str, str] = {}
    others: set[str] = set()
    for node in graph.node:
        known = _VALUES.get(node.op_type, {}) if node.domain in ("", "ai.onnx") else {}
        for place, name in enumerate(node.input):
            if place in known:
                found[name] = max(found.get(name, ""), known[place])
            else:
                others.add(name)
    return {name: use for name, use in found.items() if name not in others}


def _zero(tensor: Any, use: str) -> str:
    """Which kind of zero points a tensor holds; empty where its values don't matter."""
    import onnx

    if use != "zero":
        return ""
    types = onnx.TensorProto
    if tensor.data_location == types.EXTERNAL or tensor.data_type not in (types.INT8, types.UINT8, types.INT16, types.UINT16, types.INT32):
        return digest_bytes(tensor.SerializeToString(deterministic=True))
    values = np.unique(onnx.numpy_helper.to_array(tensor)).tolist()
    return str(values[0]) if len(values) == 1 and values[0] in _MIDDLES else "other"

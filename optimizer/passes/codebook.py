"""Weights as packed indices into a small codebook: a smaller file for storage and transfer, not a faster model.

Non-linear quantisation (Han et al., "Deep Compression", ICLR 2016; powers of two: Miyashita et al., arXiv:1603.01025). The model
computes its weights from standard operators; runtimes do that once, as constant folding when they load, and then hold floats. A later
pass that folds constants undoes it: it belongs last.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimizer.passes import Changed, Context, PassParameters

if TYPE_CHECKING:
    from optimizer.codebook_graph import Lookup
    from optimizer.dataset import Dataset


_SMALL = "too small: a codebook saves less than half"


class CodebookParameters(PassParameters):
    """Parameters of codebooks.

    Attributes:
        bits: of an index; a codebook has up to 2^bits levels.
        kind: `kmeans`: centroids; `logarithmic`: zero and powers of two.
        channels: so many output channels (rows of an embedding) share a codebook; 0 = the whole tensor has one.
    """

    bits: Annotated[int, Field(ge=2, le=8)] = 4
    kind: Literal["kmeans", "logarithmic"] = "kmeans"
    channels: Annotated[int, Field(ge=0)] = 0


class CodebookPass:
    """Replaces each weight whose indices and codebook take at most half of its bytes.

    Those that gain less are the first convolutions and narrow layers, whose error costs most.
    """

    name: ClassVar[str] = "codebook"
    version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    writes: ClassVar[str] = ""
    extra: ClassVar[str] = "optimizer"
    toolchain: ClassVar[str] = ""
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "onnxslim", "numpy")
    parameters: ClassVar[type[PassParameters]] = CodebookParameters
    evidence: ClassVar[str] = "integer"
    must_change: ClassVar[bool] = True
    drift: ClassVar[float] = 1.0

    def run(self, source: Path, out_dir: Path, parameters: CodebookParameters, calibration: Dataset | None, context: Context) -> Changed:
        """Folds constants first, so that every weight is a stored tensor and batch normalisations are part of it."""
        from optimizer import codebook_graph, onnx_files, weight_nodes
        from optimizer.onnx_facts import nodes

        original = onnx_files.load(source)
        model = onnx_files.load(onnx_files.prepare(source, context.work_dir, opset=11))
        stored = weight_nodes.stored_weights(model)
        readers: dict[str, list[Any]] = {}
        for node in nodes(model):
            if weight := weight_nodes.weight_of(node, stored):
                readers.setdefault(weight, []).append(node)
        lookups = {weight: _lookup(stored[weight], of[0], parameters) for weight, of in readers.items()}
        gains = {weight: stored[weight].ByteSize() - lookup.byte_size for weight, lookup in lookups.items()}
        taken = [weight for weight, gain in gains.items() if gain >= lookups[weight].byte_size]
        shared = codebook_graph.tables(parameters.bits)
        if sum(gains[weight] for weight in taken) <= sum(tensor.ByteSize() for tensor in shared):
            taken = []
        total, done, left = weight_nodes.weight_kinds(model), Counter[str](), Counter[str]()
        for weight, of in readers.items():
            for node in of:
                (done if weight in taken else left)[node.op_type if weight in taken else _SMALL] += 1
        left["without a stored weight"] = sum(total.values()) - sum(done.values()) - left[_SMALL]
        if taken:
            _insert(model, [lookups[weight] for weight in taken], shared)
        onnx_files.save(model, out_dir, like=original)
        sizes = (original.ByteSize(), model.ByteSize())
        return Changed(weight_nodes.summary(total, done, f"from {parameters.bits}-bit {parameters.kind} codebooks", left, sizes))


def _lookup(tensor: Any, reader: Any, parameters: CodebookParameters) -> Lookup:
    """The nodes in place of one weight."""
    import numpy as np
    from onnx import numpy_helper

    from optimizer import codebooks
    from optimizer.codebook_graph import Lookup

    weight = numpy_helper.to_array(tensor)
    axis = _channel_axis(reader, weight.ndim)
    step = parameters.channels or weight.shape[axis]
    books, codes = [], np.zeros(weight.shape, np.int64)
    for start in range(0, weight.shape[axis], step):
        part = (slice(None),) * axis + (slice(start, start + step),)
        if parameters.kind == "kmeans":
            levels = codebooks.kmeans_levels(weight[part], 2**parameters.bits)
        else:
            levels = codebooks.logarithmic_levels(weight[part], parameters.bits)
        codes[part] = codebooks.nearest(weight[part], levels)
        books.append(levels)
    longest = max(book.size for book in books)
    table = np.concatenate([np.pad(book, (0, longest - book.size), mode="edge") for book in books]).astype(weight.dtype)
    shape = [weight.shape[axis] if i == axis else 1 for i in range(weight.ndim)]
    offsets = (np.arange(weight.shape[axis]) // step * longest).reshape(shape) if len(books) > 1 else None
    return Lookup(tensor.name, codes, table, parameters.bits, offsets)


def _channel_axis(node: Any, rank: int) -> int:
    """Which axis of a node's weight is that of its output channels, or of an embedding's rows."""
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": rank - 1, "Gather": 0}[node.op_type]


def _insert(model: Any, lookups: list[Lookup], shared: list[Any]) -> None:
    """Puts lookups before all nodes, instead of the weights that they compute."""
    graph = model.graph
    replaced = {lookup.nodes[-1].output[0] for lookup in lookups}
    tensors = [w for w in graph.initializer if w.name not in replaced]
    tensors += [*shared, *(t for lookup in lookups for t in lookup.tensors)]
    nodes = [n for lookup in lookups for n in lookup.nodes] + list(graph.node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(tensors)
    graph.node.extend(nodes)

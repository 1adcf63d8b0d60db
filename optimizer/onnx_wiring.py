"""An ONNX graph as passes that move numbers between nodes see it: who makes and who reads a tensor, and its constants as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from edgefarm.tensors import Tensor
from optimizer import onnx_files
from optimizer.dataset import Dataset
from optimizer.onnx_facts import nodes

Observe = Callable[[Mapping[str, Tensor]], list[Tensor]]


class Wiring:
    """The main graph of a model in memory; subgraphs count as readers.

    Constants are initialisers that no input overrides, and values of Constant nodes.

    Attributes:
        producer: tensor -> the node of the main graph that makes it.
        readers: tensor -> the nodes that read it, one entry per use.
        outputs: names of the graph's outputs.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.producer = {output: node for node in model.graph.node for output in node.output if output}
        self.readers: dict[str, list[Any]] = {}
        for node in nodes(model):
            for name in filter(None, node.input):
                self.readers.setdefault(name, []).append(node)
        self.outputs = {o.name for o in model.graph.output}
        for node in _nested(model):  # an output of a subgraph is used by whoever runs the subgraph
            for graph in _subgraphs(node):
                for output in graph.output:
                    self.readers.setdefault(output.name, []).append(node)
        fed = {i.name for i in model.graph.input}
        self._stored = {w.name: w for w in model.graph.initializer if w.name not in fed}
        for node in model.graph.node:
            value = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
            if value is not None:
                self._stored[node.output[0]] = value

    def constant(self, name: str) -> Tensor | None:
        """The value of a constant, None for what is computed or fed."""
        return np.asarray(onnx.numpy_helper.to_array(self._stored[name])) if name in self._stored else None

    def own_constant(self, name: str) -> Tensor | None:
        """A floating-point constant that one node alone reads, once, so that it may be changed for that node; else None."""
        value = self.constant(name)
        alone = len(self.readers.get(name, ())) == 1 and name not in self.outputs
        return value if value is not None and value.dtype.kind == "f" and alone else None

    def store(self, name: str, value: Tensor) -> None:
        """Replaces a constant, in its own type."""
        stored = self._stored[name]
        old = onnx.numpy_helper.to_array(stored)
        stored.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(value.astype(old.dtype)), stored.name))

    def add(self, name: str, value: Tensor) -> str:
        """Adds an initialiser; returns its name."""
        stored = self.model.graph.initializer.add()
        stored.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        self._stored[name] = stored
        return name

    def only_reader(self, name: str) -> Any | None:
        """The node that reads a tensor, if it is the only one, reads it once, and the tensor is no output of the model."""
        found = self.readers.get(name, [])
        return found[0] if len(found) == 1 and name not in self.outputs else None


def name_nodes(model: Any) -> None:
    """Gives every node of the main graph a name of its own: quantisers tell nodes apart by name."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}_{node.output[0]}"
        taken.add(node.name)


def save_named(model: Any, work_dir: Path) -> Path:
    """Names the nodes, and writes the model for a tool that reads files."""
    name_nodes(model)
    file, large = work_dir / "named.onnx", onnx_files.is_large(model)
    onnx.save_model(model, str(file), save_as_external_data=large, location="named.onnx.data" if large else None)
    return file


def part(model: Any, target: str) -> Any:
    """The part of a model that computes the tensor `target`, its only output."""
    producer = {output: index for index, node in enumerate(model.graph.node) for output in node.output}
    chosen: set[int] = set()
    needed, stack = {target}, [target]
    while stack:
        index = producer.get(stack.pop())
        if index is not None and index not in chosen:
            chosen.add(index)
            new = set(_inputs(model.graph.node[index])) - needed
            needed |= new
            stack.extend(new)
    result = onnx.ModelProto()
    result.ir_version = model.ir_version
    result.opset_import.extend(model.opset_import)
    result.functions.extend(model.functions)
    result.graph.name = model.graph.name
    result.graph.node.extend(node for index, node in enumerate(model.graph.node) if index in chosen)
    result.graph.initializer.extend(w for w in model.graph.initializer if w.name in needed)
    result.graph.input.extend(i for i in model.graph.input if i.name in needed)
    result.graph.output.append(onnx.ValueInfoProto(name=target))
    return result


def observe(model: Any, tensors: Sequence[str], work_dir: Path) -> Observe:
    """A function from the feeds of one sample to the values of `tensors`, computed in floating point even where pairs stand for integers.

    Integer kernels saturate on some CPUs, so what is decided by their results would depend on the machine.
    """
    opened = onnx.ModelProto()
    opened.CopyFrom(model)
    present = {o.name for o in opened.graph.output}
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(tensors) if name not in present)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    file = work_dir / "observed.onnx"
    large = onnx_files.is_large(opened)
    onnx.save_model(opened, str(file), save_as_external_data=large, location="observed.onnx.data" if large else None)
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    known = {i.name for i in session.get_inputs()}

    def run(feeds: Mapping[str, Tensor]) -> list[Tensor]:
        found = session.run(list(tensors), {name: value for name, value in feeds.items() if name in known})
        return [np.asarray(value) for value in found]

    return run


def spread(samples: Dataset, limit: int) -> Iterator[dict[str, Tensor]]:
    """The feeds of at most `limit` samples, evenly spread over the set."""
    count = min(limit, samples.n)
    return (samples.feeds(index * samples.n // count) for index in range(count))


def _inputs(node: Any) -> Iterator[str]:
    """What a node reads, also what its subgraphs read from outside."""
    yield from filter(None, node.input)
    for graph in _subgraphs(node):
        yield from (o.name for o in graph.output)
        for inner in graph.node:
            yield from _inputs(inner)


def _subgraphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        yield from [attribute.g] if attribute.HasField("g") else attribute.graphs


def _nested(model: Any) -> Iterator[Any]:
    return (node for node in nodes(model) if any(True for _ in _subgraphs(node)))

"""An ONNX graph as a torch module, run node by node, and back: the graph stays as it is, only weights (and their shapes) are others.

So a model keeps its inputs, outputs, names and operator set through any training, and nothing depends on an exporter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from edgefarm.model import FailureKind
from optimizer.onnx_facts import DEFAULT_DOMAINS, default_opset
from optimizer.passes import PassFailure
from optimizer.training.layers import Convolution, Normalisation, Product
from optimizer.training.operators import OPERATORS, Operator
from optimizer.training.pools import Unsupported

Layer = Convolution | Product | Normalisation


@dataclass
class _Call:
    """One node: `layer` holds its weights, or `operator` computes it from `inputs`."""

    node: Any
    attributes: dict[str, Any]
    inputs: tuple[str, ...]
    operator: Operator | None = None
    layer: str = ""


class _Constants(nn.Module):
    """Holds tensors that no layer does: those that may be trained as parameters, the others as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, str] = {}
        self.fixed: dict[str, Any] = {}

    def add(self, name: str, value: Any) -> None:
        if value.is_floating_point() and value.numel() > 1:
            self.names[name] = f"p{len(self.names)}"
            self.register_parameter(self.names[name], nn.Parameter(value.clone()))
        else:
            self.fixed[name] = value

    def value(self, name: str) -> Any:
        return getattr(self, self.names[name]) if name in self.names else self.fixed[name]


class Network(nn.Module):
    """A model whose constants are initialisers (see `onnx_files.prepare`).

    Args:
        model: a ModelProto; it is kept, and changed by `to_model` on a copy only.

    Raises:
        PassFailure: UNSUPPORTED_OP, naming the operator.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.input_names = [v.name for v in model.graph.input if v.name not in {i.name for i in model.graph.initializer}]
        self.output_names = [v.name for v in model.graph.output]  # what a call returns; any tensors of the graph may be asked for
        self._ends: tuple[list[str], dict[int, list[str]]] = ([], {})  # for which outputs, and what each call is the last to need
        self._stored = {i.name: i for i in model.graph.initializer}
        self._uses = Counter(name for node in model.graph.node for name in node.input)
        self.layers = nn.ModuleDict()
        self.constants = _Constants()
        self._shapes: dict[str, tuple[int, ...]] = {}
        try:
            self._calls = [self._call(node) for node in model.graph.node]
        except Unsupported as error:
            raise unsupported(str(error)) from error
        for name in dict.fromkeys(i for call in self._calls if call.layer == "" for i in call.inputs if i in self._stored):
            self.constants.add(name, self._tensor(name))

    def forward(self, *inputs: Any) -> tuple[Any, ...]:
        """Outputs in the graph's order for inputs in the graph's order."""
        values: dict[str, Any] = dict(zip(self.input_names, inputs))
        if self._ends[0] != self.output_names:
            self._ends = list(self.output_names), self._last_uses()
        last = self._ends[1]
        for index, call in enumerate(self._calls):
            given = [self._value(values, name) for name in call.inputs]
            if call.layer:
                made: Any = self.layers[call.layer](given[0])
            else:
                assert call.operator is not None
                made = call.operator(call.attributes, given)
            values.update(zip(call.node.output, made if isinstance(made, tuple) else (made,)))
            for name in last.get(index, ()):
                values.pop(name, None)
        return tuple(self._value(values, name) for name in self.output_names)

    @property
    def nodes(self) -> Iterator[Any]:
        """The graph's nodes, in its order."""
        return (call.node for call in self._calls)

    def layer_calls(self) -> Iterator[tuple[Any, Layer]]:
        """Nodes whose weights are layers, in the graph's order."""
        for call in self._calls:
            if call.layer:
                yield call.node, self.layers[call.layer]

    def forget(self) -> None:
        """Gives every layer new random weights."""
        for module in self.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()

    def relax_reshapes(self, inputs: Sequence[Any]) -> None:
        """Reshapes to constant sizes follow their inputs: what equals the input's size stays so, one other size is what is left.

        Without it a Reshape to [1, 128] would hold on to a batch of one and to 128 channels.
        """
        shapes: dict[str, list[int]] = {}

        def watch(call: _Call, operator: Operator) -> Operator:
            def run(attributes: Mapping[str, Any], values: Sequence[Any]) -> Any:
                result = operator(attributes, values)
                if call.inputs[1] in self._stored:
                    shapes[call.node.output[0]] = _followed(list(values[0].shape), list(result.shape))
                return result

            return run

        reshapes = [call for call in self._calls if call.node.op_type == "Reshape"]
        kept = [call.operator for call in reshapes]
        for call in reshapes:
            assert call.operator is not None
            call.operator = watch(call, call.operator)
        with torch.no_grad():
            self(*inputs)
        for call, operator in zip(reshapes, kept):
            call.operator = operator
            if (followed := shapes.get(call.node.output[0])) is not None:
                name = f"{call.node.output[0]}__shape"
                self.constants.fixed[name] = torch.tensor(followed, dtype=torch.int64)
                call.inputs = (call.inputs[0], name)
                call.attributes = {k: v for k, v in call.attributes.items() if k != "allowzero"}

    def to_model(self) -> Any:
        """A copy of the graph with the weights of now. Shapes that the graph was annotated with go where weights changed theirs."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        stored = {i.name: i for i in model.graph.initializer}
        resized = False
        for node, call in zip(model.graph.node, self._calls):
            if call.layer:
                resized |= self._write_layer(model, stored, node, self.layers[call.layer].export())
        for name in self.constants.names:
            resized |= _store(stored[name], self.constants.value(name).detach().cpu().numpy())
        if resized:
            self._write_shapes(model)
            del model.graph.value_info[:]
        return model

    def _write_layer(self, model: Any, stored: dict[str, Any], node: Any, exported: Any) -> bool:
        resized = False
        for index, array in exported.weights.items():
            if index >= len(node.input) or not node.input[index]:
                bias = model.graph.initializer.add()
                bias.name, bias.data_type = f"{node.output[0]}__bias", stored[node.input[1]].data_type
                stored[bias.name] = bias
                node.input.extend([""] * (index + 1 - len(node.input)))
                node.input[index] = bias.name
                _store(bias, array)
            else:
                weight = stored[node.input[index]]
                if node.op_type == "Gemm" and index == 2 and len(weight.dims) == 2:
                    array = array.reshape(1, -1)
                resized |= _store(weight, array)
        for name, value in exported.attributes.items():
            found = next((a for a in node.attribute if a.name == name), None)
            if found is None:
                node.attribute.append(onnx.helper.make_attribute(name, value))
            else:
                found.CopyFrom(onnx.helper.make_attribute(name, value))
        return resized

    def _write_shapes(self, model: Any) -> None:
        """Reshapes that follow their inputs do so in the graph too; shapes that nobody reads any more go."""
        for node, call in zip(model.graph.node, self._calls):
            if node.op_type == "Reshape" and call.inputs[1] != node.input[1]:
                name = call.inputs[1]
                model.graph.initializer.append(onnx.numpy_helper.from_array(self.constants.fixed[name].numpy(), name))
                node.input[1] = name
                for attribute in [a for a in node.attribute if a.name == "allowzero"]:
                    node.attribute.remove(attribute)
        used = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
        for unused in [i for i in model.graph.initializer if i.name not in used]:
            model.graph.initializer.remove(unused)

    def _call(self, node: Any) -> _Call:
        if node.domain not in DEFAULT_DOMAINS:
            raise Unsupported(f"operator {node.domain}.{node.op_type}")
        attributes = {a.name: _attribute(a) for a in node.attribute}
        attributes["opset"], attributes["outputs"] = default_opset(self.model), len(node.output)
        inputs = tuple(node.input)
        layer = self._layer(node, attributes)
        if layer is not None:
            key = f"n{len(self.layers)}"
            self.layers[key] = layer
            return _Call(node, attributes, inputs[:1], layer=key)
        if node.op_type not in OPERATORS:
            computed = " with weights that are computed, or shared" if node.op_type in ("Conv", "ConvTranspose") else ""
            raise Unsupported(f"operator {node.op_type}{computed}")
        return _Call(node, attributes, inputs, OPERATORS[node.op_type])

    def _layer(self, node: Any, attributes: Mapping[str, Any]) -> Layer | None:
        """The layer that holds a node's weights, if they are constants that no other node shares."""
        given = list(node.input[1:])
        if not given or any(name and (name not in self._stored or self._uses[name] > 1) for name in given):
            return None
        values = [self._tensor(name) if name else None for name in given]
        if node.op_type in ("Conv", "ConvTranspose"):
            return Convolution(node.op_type, attributes, values[0], values[1] if len(values) > 1 else None)
        if node.op_type == "BatchNormalization":
            return Normalisation(attributes, *values)
        if values[0] is None or values[0].dim() != 2 or not values[0].is_floating_point():
            return None
        if node.op_type == "MatMul":
            return Product(values[0], None, transposed=True)
        plain = attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA", 0)
        bias = values[1] if len(values) > 1 else None
        outputs = values[0].shape[0 if attributes.get("transB", 0) else 1]
        if node.op_type == "Gemm" and plain and (bias is None or bias.numel() == outputs):
            return Product(values[0], bias, transposed=not attributes.get("transB", 0))
        return None

    def _tensor(self, name: str) -> Any:
        array = onnx.numpy_helper.to_array(self._stored[name])
        if array.dtype.kind in "OUS":
            raise Unsupported("text")
        tensor = torch.from_numpy(np.array(array))
        return tensor.float() if tensor.dtype in (torch.float16, torch.float64, torch.bfloat16) else tensor

    def _value(self, values: Mapping[str, Any], name: str) -> Any:
        if name == "":
            return None
        return values[name] if name in values else self.constants.value(name)

    def _last_uses(self) -> dict[int, list[str]]:
        """Tensors that nobody needs after a call, so that they need not stay in memory."""
        kept = set(self.output_names)
        last = {name: index for index, call in enumerate(self._calls) for name in call.inputs}
        found: dict[int, list[str]] = {}
        for name, index in last.items():
            if name not in kept:
                found.setdefault(index, []).append(name)
        return found


def unsupported(what: str) -> PassFailure:
    """The failure for a graph that cannot be trained."""
    return PassFailure(FailureKind.UNSUPPORTED_OP, f"no form in torch is known of {what}; give a model without it")


def _followed(given: list[int], result: list[int]) -> list[int]:
    """A constant Reshape's target with 0 for what the input has at that place, and -1 for the one size that is left."""
    same = [i < len(given) and given[i] == size for i, size in enumerate(result)]
    # from the first difference on, an equal size at the same place may be chance
    first = same.index(False) if False in same else len(result)
    followed = [0 if i < first else size for i, size in enumerate(result)]
    if first < len(result):
        open_axis = first if len(result) == first + 1 else max(range(first, len(result)), key=lambda i: result[i])
        followed[open_axis] = -1
    return followed


def _attribute(attribute: Any) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return torch.from_numpy(np.array(onnx.numpy_helper.to_array(value)))
    return list(value) if not isinstance(value, (int, float, str)) and hasattr(value, "__iter__") else value


def _store(weight: Any, array: Any) -> bool:
    """Puts values into an initialiser, in its own type. True if its shape is another one now."""
    before = list(weight.dims)
    name, dtype = weight.name, onnx.helper.tensor_dtype_to_np_dtype(weight.data_type)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array.astype(dtype)), name))
    return before != list(weight.dims)

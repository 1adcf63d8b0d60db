"""What training brings closer together: the student's heads and the teacher's, and labels where there are any.

A head is a tensor that says what the network knows, before it is reduced to a class: the input of the last Softmax or ArgMax, else a
floating-point output itself. Logits are compared as distributions, softened by a temperature (Hinton et al., "Distilling the Knowledge
in a Neural Network", 2015), values by their squared distance in units of the teacher's own variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from edgefarm.tensors import Tensor as Array

_SAME = ("Identity", "Dropout", "Cast", "Squeeze", "Unsqueeze")
_REDUCED = ("ArgMax", "ReduceMax")
_FLOATS = (1, 10, 11, 16)  # ONNX element types: float32, float16, float64, bfloat16


@dataclass(frozen=True)
class Head:
    """A tensor to train on. `axis`: that of the classes, None where the tensor holds values; `output`: the graph's output it stands for."""

    tensor: str
    output: str
    axis: int | None = None


def heads(model: Any) -> list[Head]:
    """The heads of an ONNX graph, one per tensor, in the order of the outputs."""
    made = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, Head] = {}
    for output in model.graph.output:
        head = _head(output.name, made)
        if head.axis is not None or output.type.tensor_type.elem_type in _FLOATS:
            found.setdefault(head.tensor, head)
    return list(found.values())


def _head(output: str, made: Mapping[str, Any]) -> Head:
    """Walks back from an output to what decides it."""
    name, axis, seen = output, None, output
    while (node := made.get(name)) is not None:
        if node.op_type in ("Softmax", "LogSoftmax"):
            return Head(node.input[0], output, _axis(node, -1))
        if node.op_type in _REDUCED and axis is None:
            axis, name = _axis(node, 0 if node.op_type == "ArgMax" else -1), node.input[0]
            seen = name
        elif node.op_type in _SAME:
            name = node.input[0]
        else:
            break
    return Head(seen, output, axis)


def _axis(node: Any, default: int) -> int:
    for attribute in node.attribute:
        if attribute.name == "axis":
            return int(attribute.i)
        if attribute.name == "axes" and len(attribute.ints) == 1:
            return int(attribute.ints[0])
    return default


def with_labels(found: Sequence[Head], example: Sequence[Any], targets: Mapping[str, Array]) -> tuple[list[Head], dict[str, str]]:
    """Heads as the targets show them, and which target labels which head (by its tensor).

    A target of whole numbers in a head's shape without one axis names classes: that axis, if the head has none yet, is theirs.

    Args:
        example: the heads' values for some samples, their first axis being the sample.
        targets: of all samples.
    """
    judged: list[Head] = []
    labels: dict[str, str] = {}
    for head, value in zip(found, example):
        name = next((n for n, target in targets.items() if n not in labels.values() and _labels(head, value, target)), None)
        axis = head.axis
        if name is not None:
            labels[head.tensor] = name
            axis = -1 if axis is None else axis
        judged.append(Head(head.tensor, head.output, axis))
    return judged, labels


def _labels(head: Head, value: Any, target: Array) -> bool:
    if target.dtype.kind not in "iu" or value.dim() < 2:
        return False
    axis = (-1 if head.axis is None else head.axis) % value.dim()
    shape = [size for i, size in enumerate(value.shape) if i != axis][1:]
    inside = value.shape[axis] > 1 and int(target.min()) >= 0 and int(target.max()) < value.shape[axis]
    return inside and int(np.prod(target.shape[1:])) == int(np.prod(shape))


@dataclass(frozen=True)
class Loss:
    """The loss of a batch.

    Attributes:
        temperature: softens both distributions.
        hard: share of the labels' cross-entropy where there are labels; 1 = the teacher is not asked.
        scales: variance of the teacher's values by tensor, of heads without classes.
    """

    heads: Sequence[Head]
    labels: Mapping[str, str]
    temperature: float
    hard: float
    scales: Mapping[str, float]

    def __call__(self, student: Sequence[Any], teacher: Sequence[Any], targets: Mapping[str, Any]) -> Any:
        """A scalar; `student` and `teacher` hold the heads' values, `targets` the labels of the same samples."""
        total: Any = torch.zeros(())
        for head, mine, its in zip(self.heads, student, teacher):
            label = self.labels.get(head.tensor)
            hard = self.hard if label is not None else 0.0
            if hard < 1:
                total = total + (1 - hard) * self._soft(head, mine, its)
            if label is not None and hard > 0:
                logits = mine.movedim(head.axis, -1).reshape(-1, mine.shape[head.axis])
                total = total + hard * functional.cross_entropy(logits, targets[label].reshape(-1).long())
        return total

    def _soft(self, head: Head, mine: Any, its: Any) -> Any:
        if head.axis is None:
            return functional.mse_loss(mine, its) / max(self.scales.get(head.tensor, 1.0), 1e-12)
        t = self.temperature
        ours, theirs = (torch.log_softmax(logits / t, head.axis) for logits in (mine, its))
        return functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(head.axis).mean() * t * t

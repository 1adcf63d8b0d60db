"""The teacher: the model as it was, run by ONNX Runtime, so that it may hold any operator. What it says is kept if that is not too much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import onnxruntime
import torch

from edgefarm.model import FailureKind
from optimizer.onnx_files import first_line
from optimizer.passes import PassFailure
from optimizer.training.losses import Head
from optimizer.training.samples import Samples, joinable

_KEPT_BYTES = 2**29


class Teacher:
    """Gives a model's heads for samples by index.

    Args:
        model: a ModelProto; below 2 GiB.
        found: its heads.
        samples: those that it will be asked for.

    Raises:
        PassFailure: LOAD.
    """

    def __init__(self, model: Any, found: Sequence[Head], samples: Samples) -> None:
        asked = onnx.ModelProto()
        asked.CopyFrom(model)
        del asked.graph.output[:]
        typed = {v.name: v for values in (model.graph.output, model.graph.value_info) for v in values}
        for head in found:
            known = typed.get(head.tensor)
            kind = known.type.tensor_type.elem_type if known is not None else onnx.TensorProto.FLOAT
            asked.graph.output.append(onnx.helper.make_tensor_value_info(head.tensor, kind, None))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(asked.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise PassFailure(FailureKind.LOAD, f"the teacher does not load: {first_line(error)}") from error
        self._order = samples.order
        self._samples = Samples(samples.data, samples.order, batched=joinable(self._run, samples.data, samples.order))
        self._kept: dict[int, list[Any]] = {}
        self._room = _KEPT_BYTES

    def __call__(self, indices: Sequence[int]) -> list[Any]:
        """The heads of some samples, joined along their first axis."""
        new = [int(i) for i in indices if int(i) not in self._kept]
        fresh: dict[int, list[Any]] = {}
        for group in self._samples.groups(new) if new else ():
            values = self._run(*self._samples.inputs(group))
            parts = [value.chunk(len(group)) if len(group) > 1 else (value,) for value in values]
            fresh.update({index: [part[k] for part in parts] for k, index in enumerate(group)})
        for index, values in fresh.items():
            size = sum(value.numel() * value.element_size() for value in values)
            if size <= self._room:
                self._room -= size
                self._kept[index] = [value.clone() for value in values]
        found = [self._kept.get(int(i)) or fresh[int(i)] for i in indices]
        return [torch.cat(values) if len(values) > 1 else values[0] for values in zip(*found)]

    def ask(self, inputs: Sequence[Any]) -> list[Any]:
        """The heads of inputs that are no samples, joined along their first axis; nothing is kept."""
        if self._samples.batched:
            return self._run(*inputs)
        rows = [self._run(*(value[i : i + 1] for value in inputs)) for i in range(len(inputs[0]))]
        return [torch.cat(values) for values in zip(*rows)]

    def _run(self, *inputs: Any) -> list[Any]:
        given = {name: value.numpy() for name, value in zip(self._order, inputs)}
        return [torch.from_numpy(value) for value in self._session.run(None, given)]

"""What a run would meet only after minutes of work, looked at before anything is begun."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from controller.config import Fleet
from controller.config.schema import MetricFunction
from controller.optimizing import make_plans
from controller.workload import Workload
from edgefarm.errors import UserError
from edgefarm.model import AccuracyWork, Reduction
from optimizer import user_metric
from optimizer.evaluate import find_metric
from optimizer.source import TensorSpec

_INDEX_BYTES = 8


def check(fleet: Fleet, workload: Workload) -> None:
    """Holds recipes and metric against model and data. Raises FleetFileError, UserError."""
    make_plans(fleet, workload)
    metric, reduction = fleet.file.data.metric, Reduction("raw")
    if isinstance(metric, MetricFunction):
        user_metric.check(metric.function, fleet.path.parent)
    else:
        try:
            reduction = find_metric(metric).reduction(workload.source.signature.outputs, workload.evaluation.targets)
        except UserError as error:
            raise UserError(f"{fleet.data['evaluation']}: {error}") from error
    _refuse_what_devices_cannot_give_back(fleet, workload, reduction)


def _refuse_what_devices_cannot_give_back(fleet: Fleet, workload: Workload, reduction: Reduction) -> None:
    """Outputs of which the metric needs more bytes than a device returns, as far as the model's shapes tell."""
    outputs = [o for o in workload.source.signature.outputs if reduction.output in ("", o.name)]
    each, limit = least_bytes(outputs, reduction), AccuracyWork.output_bytes_limit
    samples = max(split.n for split in workload.splits)
    if each * samples > limit:
        metric = fleet.file.data.metric
        name = f"metric {metric}" if isinstance(metric, str) else f"the metric {metric.function}"
        shapes = ", ".join(f"{o.name!r} {o}" for o in outputs)
        remedy = "end the graph with what the metric needs (ArgMax, a mean …), or use a metric that devices reduce (top1, top5, agreement)"
        few = f", or give at most {limit // each} samples" if each <= limit else ""
        raise UserError(
            f"{fleet.data['evaluation']}: {name} needs the outputs of {samples} samples from each device, at least "
            f"{each * samples / 2**20:.0f} MiB ({shapes}), and a device gives back {limit / 2**20:.0f} MiB: {remedy}{few}"
        )


def least_bytes(outputs: Sequence[TensorSpec], reduction: Reduction) -> int:
    """Bytes that a device gives back for a sample at least: axes of unknown size count as 1."""
    if reduction.kind == "topk":
        return sum(_elements(o.shape[:-1]) * reduction.k * _INDEX_BYTES for o in outputs)
    return sum(_elements(o.shape) * _item_bytes(o.dtype) for o in outputs)


def _elements(shape: Sequence[int | None]) -> int:
    return math.prod(size or 1 for size in shape)


def _item_bytes(dtype: str) -> int:
    """Of text and of types that numpy does not have: 0."""
    try:
        return np.dtype(dtype).itemsize
    except TypeError:
        return 0

"""What a run would meet only after minutes of work, looked at before anything is begun."""

from __future__ import annotations

from controller.config import Fleet
from controller.config.schema import MetricFunction
from controller.driver import make_plans
from controller.workload import Workload
from edgefarm.errors import UserError
from optimizer import user_metric
from optimizer.evaluate import find_metric


def check(fleet: Fleet, workload: Workload) -> None:
    """Holds recipes and metric against model and data. Raises FleetFileError, UserError."""
    make_plans(fleet, workload)
    metric = fleet.file.data.metric
    if isinstance(metric, MetricFunction):
        user_metric.check(metric.function, fleet.path.parent)
        return
    try:
        find_metric(metric).reduction(workload.source.signature.outputs, workload.evaluation.targets)
    except UserError as error:
        raise UserError(f"{fleet.data['evaluation']}: {error}") from error

"""What is known of a run's candidates from elsewhere: its other device classes, and earlier runs on the same controller."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

from controller.control import Control
from controller.evidence import SCREEN, Evidence, Group, Launch, fold
from controller.planner import Step, next_step
from controller.transfer import Table
from controller.verdicts import statistic
from edgefarm.model import CANCELLED, LatencyWork, OrderStatus

_RUNS = 8  # earlier ones that are looked at: each has to be fetched


class Knowledge:
    """Plans a run's groups with what other devices showed. Candidates are the same where their keys are: bytes, runtime, options.

    Args:
        earlier: tables of runs that have ended.
    """

    def __init__(self, earlier: Mapping[str, Table] | None = None) -> None:
        self._earlier = dict(earlier or {})
        self._screened: dict[str, Table] = {}

    def next_step(self, group: Group, evidence: Evidence, *, searching: bool = False) -> Step:
        """As the planner's; a class whose screening is over is a table for the others."""
        others = [t for name, t in self._screened.items() if name != group.device_class]
        step = next_step(group, evidence, [*self._earlier.values(), *others], searching=searching)
        if step.stage != SCREEN:
            self._screened.setdefault(group.device_class, table(evidence, group.baseline.key))
        return step


def table(evidence: Evidence, baseline: str) -> Table:
    """Log of candidate over baseline, of all that were screened or compared."""
    launches: dict[str, tuple[Launch, ...]] = {key: (launch,) for key, launch in evidence.screened.items()}
    launches.update(evidence.launches)
    return {baseline: 0.0, **{key: fmean(map(_log, found)) for key, found in launches.items() if key != baseline}}


def earlier(control: Control, run: str) -> dict[str, Table]:
    """Tables of the newest runs that had ended when `run` began, by run, device class and baseline: a restart finds the same.

    Cancelled ones tell nobody their results any more. Raises what `control` raises.
    """
    runs = control.runs(brief=True)
    began = next(r.started_unix_ms for r in runs if r.name == run)
    ended = [r for r in runs if r.ended and r.state != CANCELLED and r.name != run and r.finished_unix_ms <= began]
    found: dict[str, Table] = {}
    for old in sorted(ended, key=lambda r: (r.started_unix_ms, r.name))[-_RUNS:]:
        orders = control.progress(old.name).orders
        for (device_class, baseline), statuses in _by_baseline(orders).items():
            found[f"{old.name}/{device_class}/{baseline}"] = table(fold(statuses, device_class, {}), baseline)
    return found


def _by_baseline(statuses: tuple[OrderStatus, ...]) -> dict[tuple[str, str], list[OrderStatus]]:
    """Orders of latency by class and reference: log ratios to different references are different tables."""
    found: dict[tuple[str, str], list[OrderStatus]] = {}
    for status in statuses:
        if isinstance(status.order.work, LatencyWork):
            found.setdefault((status.order.device_class, status.order.work.contenders[0].key), []).append(status)
    return found


def _log(launch: Launch) -> float:
    return math.log(statistic(launch.result, "latency_p50") / statistic(launch.reference, "latency_p50"))

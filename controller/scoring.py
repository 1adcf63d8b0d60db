"""Turns outputs that a device gave back into scores, per split and paired with the baseline's on the same samples."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from controller.config import Fleet
from controller.config.schema import MetricFunction
from controller.control import Control
from controller.evidence import Score, Scores
from controller.workload import Workload
from edgefarm.digest import atomic_write, canonical_json, digest_file
from edgefarm.errors import EdgefarmError, UserError
from edgefarm.model import AccuracyResult, Failure, FailureKind, Reduction, Stage
from edgefarm.statistics import Interval, paired_difference, resolvable_difference, samples_to_resolve
from edgefarm.tensors import Tensor, unpack
from optimizer.dataset import Dataset
from optimizer.evaluate import Metric, find_metric
from optimizer.user_metric import score as user_score

Outputs = Mapping[str, Sequence[Tensor]]


class Scoring:
    """Scores results of one run; remembers them, in `folder` those of the user's own function, which may be slow."""

    def __init__(self, fleet: Fleet, workload: Workload, control: Control, folder: Path) -> None:
        self._fleet, self._workload, self._control, self._folder = fleet, workload, control, folder
        self._confidence = fleet.file.select.confidence
        limit = [t.constraints.accuracy_drop for t in fleet.targets if t.constraints.accuracy_drop]
        self._limit: float | None = min(limit, default=None)
        self._known: dict[tuple[str, str, str], Score | Failure] = {}
        metric = fleet.file.data.metric
        self._function = metric if isinstance(metric, MetricFunction) else None
        self._metric: Metric | None = None if isinstance(metric, MetricFunction) else find_metric(metric)
        self.reduction = self._reduction()

    @property
    def _name(self) -> str:
        return self._metric.name if self._metric else self._function.function if self._function else ""

    @property
    def _higher_is_better(self) -> bool:
        return self._metric.higher_is_better if self._metric else bool(self._function and self._function.higher_is_better)

    def _reduction(self) -> Reduction:
        """What devices give back. Raises UserError if metric and targets do not fit each other."""
        if self._metric is None:
            return Reduction("raw")
        return self._metric.reduction(self._workload.source.signature.outputs, self._workload.evaluation.targets)

    def scores(
        self, chosen_by: tuple[AccuracyResult, AccuracyResult], reported_on: tuple[AccuracyResult, AccuracyResult] | None
    ) -> Scores | Failure:
        """Scores of a candidate, or NUMERIC where its outputs give none that are finite.

        Args:
            chosen_by: results of the candidate and of the baseline on the samples of the selection.
            reported_on: the same on those of the evaluation, if that is another set and was run.

        Raises:
            UserError: the user's metric fails, or the baseline itself gives no finite scores.
        """
        selection = self._scored(self._workload.selection, *chosen_by)
        if isinstance(selection, Failure):
            return selection
        same = self._workload.same_data
        evaluation = self._scored(self._workload.evaluation, *reported_on) if reported_on and not same else None
        if isinstance(evaluation, Failure):
            return evaluation
        return Scores(selection, selection if same else evaluation, self._name, self._higher_is_better, same)

    def _scored(self, split: Dataset, result: AccuracyResult, baseline: AccuracyResult) -> Score | Failure:
        identity = (result.outputs, baseline.outputs, split.digest)
        if identity not in self._known:
            self._known[identity] = self._on(split, result, baseline)
        return self._known[identity]

    def _on(self, split: Dataset, result: AccuracyResult, baseline: AccuracyResult) -> Score | Failure:
        mine, base = (_cut(unpack(self._control.get(r.outputs)), split.n) for r in (result, baseline))
        if result.key != baseline.key and (name := _not_finite(mine, base)):
            return Failure(FailureKind.NUMERIC, f"output '{name}' is NaN or infinite where the baseline's is not", Stage.RUN)
        score = self._score(split, mine, base, (result.outputs, baseline.outputs))
        if not math.isfinite(score.baseline):
            raise UserError(f"data.metric: {self._name} gives {score.baseline} for the baseline's own outputs; choose another metric")
        if not math.isfinite(score.value):
            return Failure(FailureKind.NUMERIC, f"{self._name} gives {score.value} for its outputs", Stage.RUN)
        return score

    def _score(self, split: Dataset, mine: Outputs, base: Outputs, identity: tuple[str, str]) -> Score:
        if self._metric is None:
            return self._user_score(split, mine, base, identity)
        outputs = self._workload.source.signature.outputs
        reference = split.targets if self._metric.needs_targets else base
        values = [float(v) for v in self._metric.per_sample(mine, reference, outputs)]
        before = [float(v) for v in self._metric.per_sample(base, reference, outputs)]
        sign = 1.0 if self._higher_is_better else -1.0
        gained, had = [sign * v for v in values], [sign * v for v in before]
        if not all(map(math.isfinite, (*gained, *had))):
            return Score(math.fsum(values) / len(values), math.fsum(before) / len(before), len(values), math.nan)
        difference = paired_difference(had, gained)
        resolvable = resolvable_difference(had, gained)
        needed = samples_to_resolve(had, gained, self._limit) if self._limit and resolvable > self._limit else None
        drop_high = -paired_difference(had, gained, self._confidence).low if self._confidence else None
        mean, mean_before = math.fsum(values) / len(values), math.fsum(before) / len(before)
        return Score(mean, mean_before, len(values), -difference.value, difference, drop_high, resolvable, needed)

    def _user_score(self, split: Dataset, mine: Outputs, base: Outputs, identity: tuple[str, str]) -> Score:
        assert self._function is not None
        assert self._fleet.metric_file is not None
        confidence = self._confidence or 0.95
        key = hashlib.sha256(canonical_json([*identity, split.digest, digest_file(self._fleet.metric_file[0]), confidence])).hexdigest()
        kept = self._folder / f"{key}.json"
        if not kept.exists():
            here, batch = self._fleet.path.parent, max(1, split.batch)
            scored = user_score(self._function.function, here, mine, base, split.targets, batch=batch, confidence=confidence)
            self._folder.mkdir(parents=True, exist_ok=True)
            atomic_write(kept, json.dumps(asdict(scored)).encode())
        return _from_user(json.loads(kept.read_text()), self._higher_is_better, self._confidence is not None)


def _from_user(stored: Mapping[str, Any], higher_is_better: bool, confident: bool) -> Score:
    raw = stored["difference"]
    sign = 1.0 if higher_is_better else -1.0
    low, high = sorted((sign * raw["low"], sign * raw["high"]))
    difference = Interval(sign * raw["value"], low, high, raw["n"])
    if not difference.known:
        reason = "the metric could not be resampled"
        return Score(stored["value"], stored["reference"], raw["n"], -difference.value, reason=reason)
    drop_high = -low if confident else None
    return Score(stored["value"], stored["reference"], raw["n"], -difference.value, difference, drop_high, (high - low) / 2)


def _cut(outputs: Outputs, count: int) -> dict[str, Sequence[Tensor]]:
    """The first samples: an agent of an earlier order may have run more."""
    for name, samples in outputs.items():
        if len(samples) < count:
            raise EdgefarmError(f"output '{name}' has {len(samples)} samples, {count} were asked for")
    return {name: samples[:count] for name, samples in outputs.items()}


def _not_finite(mine: Outputs, base: Outputs) -> str:
    """Name of an output that holds NaN or infinity in a sample in which the baseline's holds none; empty if there is none."""
    for name, samples in mine.items():
        for got, want in zip(samples, base.get(name, ())):
            if got.dtype.kind == "f" and not np.isfinite(got).all() and np.isfinite(want).all():
                return name
    return ""

"""Metrics: what a sample scores, from a variant's outputs and the sample's targets. A set's score is the mean over its samples.

A metric states which outputs must travel: the k largest indices along the last axis (`topk`), or all values (`raw`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgefarm.errors import UserError
from edgefarm.model import Reduction
from edgefarm.tensors import Tensor
from optimizer.source import TensorSpec

Scores = NDArray[np.float64]
Outputs = Mapping[str, Sequence[Tensor]]  # output name -> one array per sample, reduced as the metric's reduction says
_TINY = 1e-12


@dataclass(frozen=True)
class Metric:
    """A built-in metric.

    Attributes:
        k: how many indices are needed, 0 = raw values.
        needs_targets: else the reference is the baseline's outputs, reduced alike.
        compare: (output of one sample, target of one sample) -> score.
    """

    name: str
    higher_is_better: bool
    k: int
    needs_targets: bool
    compare: Callable[[Tensor, Tensor], float]

    def reduction(self, outputs: Sequence[TensorSpec], targets: Mapping[str, Tensor]) -> Reduction:
        """What a device must give back. Raises UserError where the target or its output can't be told, or is no class label."""
        output, target = pick_target(outputs, targets) if self.needs_targets else (_main_output(outputs), "")
        if self.k and self.needs_targets:
            try:
                _require_classes(targets[target])
            except _Misfit as error:
                raise UserError(f"metric {self.name}: target {target!r}: {error}") from error
        return Reduction("topk", output, self.k) if self.k else Reduction("raw", output)

    def per_sample(self, outputs: Outputs, targets: Mapping[str, Tensor] | Outputs, specs: Sequence[TensorSpec] = ()) -> Scores:
        """Scores `float64[n]`.

        Args:
            outputs: reduced outputs of the variant.
            targets: the data set's targets, or the baseline's reduced outputs where the metric needs no targets.
            specs: the model's outputs; needed only to pick one of several.

        Raises:
            UserError: targets that don't fit the outputs.
        """
        known = tuple(specs) or tuple(TensorSpec(name, "", (), False) for name in outputs)
        if self.needs_targets:
            output, target = pick_target([s for s in known if s.name in outputs] or known, targets)
        else:
            output = target = _main_output([s for s in known if s.name in outputs])
        got, want = outputs[output], targets[target]
        if len(got) != len(want):
            raise UserError(f"{self.name}: {len(got)} samples of output {output!r}, but {len(want)} of target {target!r}")
        try:
            return np.array([self.compare(np.asarray(g), np.asarray(w)) for g, w in zip(got, want)], dtype=np.float64)
        except _Misfit as error:
            raise UserError(f"metric {self.name}: target {target!r} does not fit output {output!r}: {error}") from error


class _Misfit(ValueError):
    """A sample's target does not fit its output; the text says how."""


def pick_target(outputs: Sequence[TensorSpec], targets: Mapping[str, object]) -> tuple[str, str]:
    """(output name, target name): a target that is named like an output belongs to it; a single one to the single output.

    Raises:
        UserError: no target, or more than one way to pair them.
    """
    names = [o.name for o in outputs]
    matching = [t for t in targets if t in names]
    if len(matching) == 1:
        return matching[0], matching[0]
    if not targets:
        raise UserError("the evaluation set has no targets: every array that is no input is one; add the labels, or use metric: agreement")
    if len(targets) == 1 and len(names) == 1:
        return names[0], next(iter(targets))
    if len(targets) == 1:
        target = next(iter(targets))
        near = difflib.get_close_matches(target, names, n=1)
        hint = f"; is {near[0]!r} meant?" if near else ""
        raise UserError(f"target {target!r}: the model has outputs {names}; name the target array like the output it belongs to{hint}")
    raise UserError(f"targets {list(targets)}: one of them must be named like an output of the model ({', '.join(names)})")


def _main_output(outputs: Sequence[TensorSpec]) -> str:
    """The output that agreement is judged by: the first of floats, else the first."""
    floats = [o.name for o in outputs if o.dtype.startswith("float")]
    return (floats or [o.name for o in outputs])[0]


def _require_classes(want: Tensor) -> None:
    if want.dtype.kind not in "iub":
        raise _Misfit(f"class labels must be integers, these are {want.dtype.name}; use labels.argmax(-1) for scores per class")


def _labels(got: Tensor, want: Tensor) -> tuple[Tensor, Tensor]:
    """Indices `[rows, k]` and labels `[rows]` of one sample."""
    _require_classes(want)
    rows = got.reshape(-1, got.shape[-1]) if got.ndim else got.reshape(1, 1)
    labels = want.reshape(-1)
    if len(rows) != len(labels):
        raise _Misfit(f"{len(labels)} labels for {len(rows)} predictions in a sample; the classes must lie on the output's last axis")
    return rows, labels


def _top(got: Tensor, want: Tensor) -> float:
    rows, labels = _labels(got, want)
    return float((rows == labels[:, None]).any(axis=1).mean())


def _agreement(got: Tensor, want: Tensor) -> float:
    if got.shape != want.shape:
        raise _Misfit(f"shapes {list(got.shape)} and {list(want.shape)}")
    return float((got == want).mean())


def _values(got: Tensor, want: Tensor) -> tuple[Scores, Scores]:
    if got.size != want.size:
        raise _Misfit(f"{want.size} values for {got.size} outputs in a sample")
    return got.reshape(-1).astype(np.float64), want.reshape(-1).astype(np.float64)


def _mae(got: Tensor, want: Tensor) -> float:
    a, b = _values(got, want)
    return float(np.abs(a - b).mean())


def _mse(got: Tensor, want: Tensor) -> float:
    a, b = _values(got, want)
    return float(np.square(a - b).mean())


def _cosine(got: Tensor, want: Tensor) -> float:
    a, b = _values(got, want)
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), _TINY))


METRICS: Mapping[str, Metric] = {
    m.name: m
    for m in (
        Metric("top1", True, 1, True, _top),
        Metric("top5", True, 5, True, _top),
        Metric("mae", False, 0, True, _mae),
        Metric("mse", False, 0, True, _mse),
        Metric("cosine", True, 0, True, _cosine),
        Metric("agreement", True, 1, False, _agreement),
    )
}


def find_metric(name: str) -> Metric:
    """The built-in metric of that name. Raises UserError with the nearest name."""
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, n=1)
        raise UserError(f"unknown metric {name!r}; " + (f"is {near[0]!r} meant?" if near else f"there are {', '.join(METRICS)}"))
    return METRICS[name]

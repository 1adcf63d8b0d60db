"""Outputs of a whole evaluation set, reduced and packed; and golden samples, made and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from agent.runner.mapping import Feeds, Tensor
from agent.runtimes import RuntimeFailure
from edgefarm.model import FailureKind
from edgefarm.tensors import pack, unpack

_INPUT, _OUTPUT = "input:", "output:"


class Collector:
    """Gathers outputs sample by sample: `topk` indices of one output, or one or all outputs (`raw`), within a budget of bytes."""

    def __init__(self, names: Sequence[str], *, kind: str, output: str, k: int, golden_samples: int, output_bytes_limit: int) -> None:
        self._names, self._kind, self._k = tuple(names), kind, k
        self._golden_samples, self._limit = golden_samples, output_bytes_limit
        if kind not in ("topk", "raw"):
            raise _changed(f"reduction {kind!r} is unknown: topk and raw are known")
        self._output = self._one(output) if kind == "topk" or output else ""
        self._kept: dict[str, list[Tensor]] = {name: [] for name in ([self._output] if self._output else self._names)}
        self._golden: dict[str, list[Tensor]] = {}
        self._bytes = self.n = 0

    def add(self, feeds: Feeds, outputs: Sequence[Tensor]) -> None:
        """Takes what one sample gave. Raises RuntimeFailure when the budget is spent."""
        named = {name: np.asarray(value) for name, value in zip(self._names, outputs)}
        if self.n < self._golden_samples:
            for prefix, values in ((_INPUT, feeds), (_OUTPUT, named)):
                for name, value in values.items():
                    self._golden.setdefault(prefix + name, []).append(value.copy())
        for name, kept in self._kept.items():
            value = top(named[name], self._k, name) if self._kind == "topk" else named[name]
            kept.append(value.copy())
            self._bytes += value.nbytes
        self.n += 1
        if self._bytes > self._limit:
            given = f"the outputs of {self.n} samples are more than the {self._limit / 2**20:.3g} MiB that a device gives back"
            remedy = "end the graph with what the metric needs (ArgMax, a mean …), use a metric that devices reduce (top1) or fewer samples"
            raise RuntimeFailure(FailureKind.OOM, f"{given}: {remedy}")

    def write(self, outputs: Path, golden: Path) -> int:
        """Writes both packs; returns the number of samples run."""
        if not self.n:
            raise _changed("the shards hold no samples")
        outputs.write_bytes(pack(self._kept))
        golden.write_bytes(pack(self._golden))
        return self.n

    def _one(self, output: str) -> str:
        if output in self._names:
            return output
        if not output and len(self._names) == 1:
            return self._names[0]
        raise _changed(f"the metric needs one output; {output!r} is none of {', '.join(self._names)}")


def top(values: Tensor, k: int, name: str = "") -> Tensor:
    """Indices of the k largest along the last axis, largest first; equal values: the lowest index first. int64[..., k]."""
    if not values.ndim or not 0 < k <= values.shape[-1]:
        raise _changed(f"output {name!r} of shape {list(values.shape)} has no {k} values along its last axis")
    if values.dtype.kind == "f" and np.isnan(values).any():
        raise RuntimeFailure(FailureKind.NUMERIC, f"output {name!r} is NaN: nothing can be ranked")
    backwards = np.argsort(values[..., ::-1], axis=-1, kind="stable")[..., ::-1]
    return np.ascontiguousarray(values.shape[-1] - 1 - backwards[..., :k]).astype(np.int64)


def count_not_finite(outputs: Sequence[Tensor]) -> int:
    """NaN and infinite values over all floating-point outputs."""
    return sum(int((~np.isfinite(o)).sum()) for o in map(np.asarray, outputs) if o.dtype.kind == "f")


def read_golden(path: Path) -> tuple[dict[str, Sequence[Tensor]], dict[str, Sequence[Tensor]]]:
    """Inputs and outputs of a golden pack, under their own names. Raises RuntimeFailure if it is none."""
    try:
        tensors = unpack(path)
    except ValueError as error:
        raise _changed(f"golden samples are not a tensor pack: {str(error).split('.')[0]}") from error
    sides = [{n[len(p) :]: v for n, v in tensors.items() if n.startswith(p)} for p in (_INPUT, _OUTPUT)]
    if not sides[1] or not all(len(v) for v in sides[1].values()):
        raise _changed("golden samples: the pack holds no outputs")
    return sides[0], sides[1]


def compare(sample: int, got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], relative: float, absolute: float) -> None:
    """Raises RuntimeFailure unless |got - want| <= absolute + relative * max|want| everywhere, with equal dtypes and shapes.

    NaN equals NaN, and an infinity the same infinity.
    """
    for name, want in wanted.items():
        if name not in got:
            raise _changed(f"golden output {name!r} is missing; the model gives {', '.join(got)}")
        have = np.asarray(got[name])
        if have.dtype != want.dtype or have.shape != want.shape:
            promised, given = f"{want.dtype}{list(want.shape)}", f"{have.dtype}{list(have.shape)}"
            raise _changed(f"golden output {name!r} is {promised}, the model gives {given} (sample {sample})")
        _compare_values(f"output {name!r}, sample {sample}", have, want, relative, absolute)


def _compare_values(place: str, have: Tensor, want: Tensor, relative: float, absolute: float) -> None:
    if want.dtype.kind not in "fiub":
        if not np.array_equal(have, want):
            raise RuntimeFailure(FailureKind.NUMERIC, f"{place}: differs from the golden output")
        return
    a, b = have.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
        raise RuntimeFailure(FailureKind.NUMERIC, f"{place}: NaN or infinite where the golden output is not, or the reverse")
    allowed = absolute + relative * float(np.max(np.abs(b[finite]), initial=0.0))
    worst = float(np.max(np.abs(a[finite] - b[finite]), initial=0.0))
    if worst > allowed:
        raise RuntimeFailure(FailureKind.NUMERIC, f"{place}: differs by {worst:.6g} from the golden output, {allowed:.6g} is allowed")


def _changed(detail: str) -> RuntimeFailure:
    return RuntimeFailure(FailureKind.IO_CHANGED, detail)

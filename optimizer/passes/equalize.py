"""Cross-layer equalisation: evens out the ranges of weights between convolutions, so that one scale per tensor fits all channels.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.1. Between two convolutions
stands nothing or a positively homogeneous activation, f(s*x) = s*f(x) for s > 0, so a factor per channel moves through it: the function
stays, the weights' ranges change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from edgefarm.model import FailureKind
from optimizer.passes import Changed, Context, PassFailure, PassParameters

if TYPE_CHECKING:
    from edgefarm.tensors import Tensor
    from optimizer.dataset import Dataset
    from optimizer.onnx_wiring import Wiring

_HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu")
_SWEEPS = 40  # chains of pairs converge within a few
_STILL = 1e-3  # factors this close to 1 change nothing that 8 bits can show
_LIMIT = 100.0  # a channel of almost no weights would otherwise blow up its bias, and with it the range of activations


class EqualizeParameters(PassParameters):
    """Parameters of equalisation.

    Attributes:
        replace_clip: a Clip from 0 (ReLU6) is not homogeneous; where no calibration sample reaches its upper bound it becomes a Relu and
            its pair is equalised. Off, or where one does, the pair is left alone.
        samples: at most so many calibration samples are run, evenly spread over the set.
    """

    replace_clip: bool = False
    samples: Annotated[int, Field(ge=1)] = 256

    @property
    def needs_calibration(self) -> bool:
        """Whether a bound is reached is seen on samples."""
        return self.replace_clip


@dataclass(frozen=True)
class _Pair:
    """Two convolutions and the Clip between them, None where the activation is homogeneous."""

    first: Any
    second: Any
    clip: Any | None = None


class Equalize:
    """Cross-layer equalisation of float models."""

    name: ClassVar[str] = "equalize"
    version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    writes: ClassVar[str] = ""
    extra: ClassVar[str] = "optimizer"
    toolchain: ClassVar[str] = ""
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "numpy")
    parameters: ClassVar[type[PassParameters]] = EqualizeParameters
    evidence: ClassVar[str] = "structure"
    must_change: ClassVar[bool] = True
    drift: ClassVar[float] = 1e-3

    def run(self, source: Path, out_dir: Path, parameters: EqualizeParameters, calibration: Dataset | None, context: Context) -> Changed:
        """Finds the pairs, settles their factors together, scales the weights; what is not evened out stays as it is."""
        from optimizer import onnx_files
        from optimizer.onnx_wiring import Wiring

        model, original = onnx_files.load(source), onnx_files.load(source)
        wiring = Wiring(model)
        found = [pair for node in model.graph.node if (pair := _pair(wiring, node)) is not None]
        clipped = [pair for pair in found if pair.clip is not None]
        idle: list[_Pair] = []
        if parameters.replace_clip:
            if calibration is None:
                raise PassFailure(FailureKind.UNSUPPORTED_OP, "replacing Clip needs calibration samples (data.calibration)")
            idle = _idle(wiring, clipped, calibration, parameters.samples, context.work_dir)
        usable = [pair for pair in found if pair.clip is None or pair in idle]
        scaled = [(pair, factor) for pair, factor in zip(usable, _factors(wiring, usable)) if abs(factor - 1).max() > _STILL]
        for pair, factor in scaled:
            _scale(wiring, pair, factor)
        relus = [pair.clip for pair, _ in scaled if pair.clip is not None]
        for clip in relus:
            _make_relu(clip)
        onnx_files.save(model, out_dir, like=original)
        return Changed(_describe(len(scaled), len(relus), len(clipped) - len(idle), parameters.replace_clip))


def _describe(scaled: int, relus: int, left: int, looked: bool) -> str:
    parts = [f"{scaled} pairs of convolutions equalised"]
    if relus:
        parts.append(f"{relus} Clip that no calibration sample drives to its bound became Relu")
    if left:
        parts.append(f"{left} pairs left alone: {'their Clip acts' if looked else 'a Clip stands between'}")
    return "; ".join(parts)


def _pair(wiring: Wiring, first: Any) -> _Pair | None:
    """The pair that a convolution begins, if nothing else reads what passes between its two and their weights are their own."""
    if first.op_type != "Conv" or not _has_own_weights(wiring, first):
        return None
    between = wiring.only_reader(first.output[0])
    clip = None
    if between is not None and between.input[0] == first.output[0]:
        if between.op_type == "Clip":
            clip = between
            if _bounds(wiring, clip) is None:
                return None
        passes = clip is not None or between.op_type in _HOMOGENEOUS
        second = wiring.only_reader(between.output[0]) if passes else between
        through = between.output[0] if passes else first.output[0]
        if second is not None and second.op_type == "Conv" and second.input[0] == through and _has_own_weights(wiring, second):
            return _Pair(first, second, clip)
    return None


def _has_own_weights(wiring: Wiring, node: Any) -> bool:
    return all(wiring.own_constant(name) is not None for name in node.input[1:] if name)


def _bounds(wiring: Wiring, clip: Any) -> tuple[float, float] | None:
    """(0, upper bound) of a Clip that is a Relu but for its bound; None for others. Before opset 11 bounds are attributes."""
    attributes = {a.name: a.f for a in clip.attribute}
    values = [wiring.constant(name) if name else None for name in clip.input[1:3]]
    low, high = [None if value is None else float(value) for value in [*values, None, None][:2]]
    low, high = attributes.get("min", low), attributes.get("max", high)
    return (low, high) if low == 0 and high is not None and high > 0 else None


def _idle(wiring: Wiring, pairs: list[_Pair], samples: Dataset, limit: int, work_dir: Path) -> list[_Pair]:
    """The pairs whose Clip no sample drives to its upper bound."""
    from optimizer.onnx_wiring import observe, spread

    if not pairs:
        return []
    run = observe(wiring.model, [pair.first.output[0] for pair in pairs], work_dir)
    highest = [float("-inf")] * len(pairs)
    for feeds in spread(samples, limit):
        highest = [max(a, float(value.max())) for a, value in zip(highest, run(feeds))]
    bounds = [_bounds(wiring, pair.clip) for pair in pairs]
    return [pair for pair, seen, bound in zip(pairs, highest, bounds) if bound is not None and seen < bound[1]]


def _groups(node: Any) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "group"), 1)


def _input_ranges(weight: Tensor, groups: int) -> Tensor:
    """Largest magnitude per input channel of weights float[O, I/groups, ...]."""
    import numpy as np

    grouped = np.abs(weight).reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return np.asarray(grouped.max(axis=(1, 3)).reshape(-1))


def _output_ranges(weight: Tensor) -> Tensor:
    import numpy as np

    return np.asarray(np.abs(weight).reshape(weight.shape[0], -1).max(axis=1))


def _per_input(factor: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Factors per input channel, shaped to multiply weights float[O, I/groups, ...] with."""
    import numpy as np

    rows = np.repeat(factor.reshape(groups, weight.shape[1]), weight.shape[0] // groups, axis=0)
    return np.asarray(rows.reshape(rows.shape + (1,) * (weight.ndim - 2)))


def _factors(wiring: Wiring, pairs: list[_Pair]) -> list[Tensor]:
    """What each pair's channels are divided by before and multiplied with after: s = sqrt(range before / range after), until all rest."""
    import numpy as np

    names = {node.input[1] for pair in pairs for node in (pair.first, pair.second)}
    weights: Mapping[str, Tensor] = {name: np.array(wiring.constant(name), np.float64) for name in names}
    total = [np.ones(len(weights[pair.first.input[1]])) for pair in pairs]
    for _ in range(_SWEEPS):
        moved = 0.0
        for index, pair in enumerate(pairs):
            before, after, groups = weights[pair.first.input[1]], weights[pair.second.input[1]], _groups(pair.second)
            outputs, inputs = _output_ranges(before), _input_ranges(after, groups)
            alive = (outputs > 0) & (inputs > 0)
            step = np.where(alive, np.sqrt(np.where(alive, outputs, 1) / np.where(alive, inputs, 1)), 1.0)
            step = np.clip(total[index] * step, 1 / _LIMIT, _LIMIT) / total[index]
            before /= step.reshape((-1,) + (1,) * (before.ndim - 1))
            after *= _per_input(step, after, groups)
            total[index] *= step
            moved = max(moved, float(np.abs(step - 1).max()))
        if moved < _STILL / 10:
            break
    return total


def _scale(wiring: Wiring, pair: _Pair, factor: Tensor) -> None:
    """Divides the first convolution's channels and multiplies the second's."""
    import numpy as np

    for name in filter(None, pair.first.input[1:3]):
        value = np.array(wiring.constant(name), np.float64)
        wiring.store(name, value / factor.reshape((-1,) + (1,) * (value.ndim - 1)))
    name = pair.second.input[1]
    value = np.array(wiring.constant(name), np.float64)
    wiring.store(name, value * _per_input(factor, value, _groups(pair.second)))


def _make_relu(clip: Any) -> None:
    clip.op_type = "Relu"
    del clip.attribute[:]
    del clip.input[1:]

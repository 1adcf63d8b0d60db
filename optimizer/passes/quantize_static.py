"""Weights and activations as 8-bit integers with ranges taken from calibration samples, as QuantizeLinear/DequantizeLinear pairs.

MinMax takes the extremes, Percentile cuts the tails, Entropy minimises the Kullback-Leibler divergence of the histograms (Migacz,
"8-bit Inference with TensorRT", GTC 2017). What parameters add to that is in `optimizer.sensitivity`, `optimizer.power_of_two` and
`optimizer.bias_correction`, applied in that order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from edgefarm.model import FailureKind
from optimizer.passes import Changed, Context, PassFailure, PassParameters

if TYPE_CHECKING:
    from optimizer.dataset import Dataset

_STRIDE = 16  # histograms keep all activations of a stride in memory


class StaticParameters(PassParameters):
    """Parameters of static quantisation.

    Attributes:
        activation: unsigned activations fuse on x86, signed symmetric ones suit ARM and accelerators.
        percentile: share of the activations inside the range, for `calibration: percentile`.
        reduce_range: 7-bit weights, against saturation on x86 without VNNI.
        op_types: operators to quantise, joined by commas (`Conv`, `MatMul,Gemm`); empty = all that can be.
        samples: at most so many calibration samples are run, evenly spread over the set.
        float_layers: so many layers with weights stay in float, those that harm the outputs most when they alone are quantised. The model
            is calibrated twice then.
        scales: `pow2` rounds all scales up to powers of two.
        bias_correction: takes the shift of each layer's mean, seen on calibration samples, out of its bias.
    """

    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"
    per_channel: bool = False
    activation: Literal["u8", "s8"] = "u8"
    weight: Literal["s8", "u8"] = "s8"
    activation_symmetric: bool = False
    weight_symmetric: bool = True
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    reduce_range: bool = False
    op_types: str = ""
    samples: Annotated[int, Field(ge=1)] = 256
    float_layers: Annotated[int, Field(ge=0)] = 0
    scales: Literal["any", "pow2"] = "any"
    bias_correction: bool = False

    @property
    def needs_calibration(self) -> bool:
        """Ranges come from samples."""
        return True

    @property
    def changes_nodes(self) -> bool:
        """Whether more is asked for than ONNX Runtime's quantiser does."""
        return self.float_layers > 0 or self.scales != "any" or self.bias_correction


class QuantizeStatic:
    """ONNX Runtime's static quantisation, QDQ format."""

    name: ClassVar[str] = "quantize_static"
    version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    writes: ClassVar[str] = ""
    extra: ClassVar[str] = "optimizer"
    toolchain: ClassVar[str] = ""
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "onnxslim", "numpy")
    parameters: ClassVar[type[PassParameters]] = StaticParameters
    evidence: ClassVar[str] = "integer"
    must_change: ClassVar[bool] = True
    drift: ClassVar[float] = 1.0

    def run(self, source: Path, out_dir: Path, parameters: StaticParameters, calibration: Dataset | None, context: Context) -> Changed:
        """Folds, raises the opset where pairs would be invalid (per-channel ones below 13), calibrates, quantises, corrects."""
        from optimizer import onnx_facts, onnx_files

        if calibration is None:
            raise PassFailure(FailureKind.UNSUPPORTED_OP, "static quantisation needs calibration samples (data.calibration)")
        original = onnx_files.load(source)
        prepared = onnx_files.prepare(source, context.work_dir, opset=13 if parameters.per_channel else 11)
        if not parameters.changes_nodes:
            model = _quantize(prepared, parameters, calibration, context.work_dir, large=onnx_files.is_large(original))
            notes: list[str] = []
        else:
            model, notes = _improved(prepared, parameters, calibration, context.work_dir, large=onnx_files.is_large(original))
        onnx_files.save(model, out_dir, like=original)
        return Changed("; ".join([onnx_facts.quantized_summary(original, model), *notes]))


def _quantize(
    prepared: Path, parameters: StaticParameters, calibration: Dataset, work_dir: Path, *, large: bool, without: Sequence[str] = ()
) -> Any:
    """Calibrates and quantises, but for the nodes `without`."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    from optimizer import onnx_files

    types = {"u8": QuantType.QUInt8, "s8": QuantType.QInt8}
    methods = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
    reader = _Reader(calibration, parameters.samples)
    raw = work_dir / "quantized.onnx"
    quantize_static(
        prepared,
        raw,
        reader,
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=onnx_files.op_types(parameters.op_types),
        nodes_to_exclude=list(without),
        per_channel=parameters.per_channel,
        reduce_range=parameters.reduce_range,
        activation_type=types[parameters.activation],
        weight_type=types[parameters.weight],
        use_external_data_format=large,
        calibrate_method=CalibrationMethod[methods[parameters.calibration]],
        extra_options=_options(parameters, reader.count),
    )
    return onnx_files.load(raw)


def _improved(prepared: Path, parameters: StaticParameters, calibration: Dataset, work_dir: Path, *, large: bool) -> tuple[Any, list[str]]:
    """The quantised model with what the parameters ask for beyond ONNX Runtime's, and what that was, for people."""
    from optimizer import bias_correction, onnx_files, onnx_wiring, power_of_two, sensitivity

    notes: list[str] = []
    plain = onnx_files.load(prepared)
    named = onnx_wiring.save_named(plain, work_dir)
    plain = onnx_files.load(named)
    model = _quantize(named, parameters, calibration, work_dir, large=large)
    if parameters.float_layers:
        layers = sensitivity.rank(plain, model, calibration, parameters.float_layers, work_dir)
        model = _quantize(named, parameters, calibration, work_dir, large=large, without=layers)
        notes.append(f"left in float, most harmful first: {', '.join(layers) or 'none'}")
    if parameters.scales == "pow2":
        notes.append(f"{power_of_two.round_scales(plain, model)} scales are powers of two")
    if parameters.bias_correction:
        notes.append(f"bias of {bias_correction.correct(plain, model, calibration, work_dir)} layers corrected")
    return model, notes


def _options(parameters: StaticParameters, count: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "ActivationSymmetric": parameters.activation_symmetric,
        "WeightSymmetric": parameters.weight_symmetric,
        "CalibTensorRangeSymmetric": parameters.activation_symmetric,
        "CalibPercentile": parameters.percentile,
    }
    if parameters.calibration != "minmax" and count > _STRIDE:
        options["CalibStridedMinMax"] = _STRIDE  # despite its name it strides the histograms too
    return options


class _Reader:
    """Hands samples to the calibrator: `count` of them, evenly spread, a multiple of the stride where there are more."""

    def __init__(self, samples: Dataset, limit: int) -> None:
        count = min(limit, samples.n)
        self.count = count - count % _STRIDE if count > _STRIDE else count
        self._samples = samples
        self._next, self._end = 0, self.count

    def get_next(self) -> dict[str, Any] | None:
        """The next feed, None after the last."""
        if self._next >= self._end:
            return None
        index = self._next * self._samples.n // self.count
        self._next += 1
        return self._samples.feeds(index)

    def __len__(self) -> int:
        return self.count

    def set_range(self, start_index: int, end_index: int) -> None:
        """Restricts the following feeds to a stride."""
        self._next, self._end = start_index, end_index

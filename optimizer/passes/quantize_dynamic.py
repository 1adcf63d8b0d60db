"""Weights as 8-bit integers, activations quantised at run time. Fast for matrix products, often slow for convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from edgefarm.model import FailureKind
from optimizer.passes import Changed, Context, PassFailure, PassParameters

if TYPE_CHECKING:
    from optimizer.dataset import Dataset


class DynamicParameters(PassParameters):
    """Parameters of dynamic quantisation.

    Attributes:
        op_types: operators to quantise, joined by commas (`Conv`, `MatMul,Gemm`); empty = all that can be.
        float_layers: so many layers with weights stay in float, those that harm the outputs most when they alone are quantised.
    """

    weight: Literal["u8", "s8"] = "u8"
    per_channel: bool = False
    reduce_range: bool = False
    op_types: str = ""
    float_layers: Annotated[int, Field(ge=0)] = 0

    @property
    def needs_calibration(self) -> bool:
        """Which layers do harm is seen on samples."""
        return self.float_layers > 0


class QuantizeDynamic:
    """ONNX Runtime's dynamic quantisation (ConvInteger, MatMulInteger)."""

    name: ClassVar[str] = "quantize_dynamic"
    version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    writes: ClassVar[str] = ""
    extra: ClassVar[str] = "optimizer"
    toolchain: ClassVar[str] = ""
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "onnxslim")
    parameters: ClassVar[type[PassParameters]] = DynamicParameters
    evidence: ClassVar[str] = "integer"
    must_change: ClassVar[bool] = True
    drift: ClassVar[float] = 1.0

    def run(self, source: Path, out_dir: Path, parameters: DynamicParameters, calibration: Dataset | None, context: Context) -> Changed:
        """Folds constants first: weights that are Constant nodes would stay as they are, without a word."""
        from optimizer import onnx_facts, onnx_files

        original = onnx_files.load(source)
        prepared = onnx_files.prepare(source, context.work_dir, opset=13 if parameters.per_channel else 11)
        large, notes = onnx_files.is_large(original), list[str]()
        if not parameters.float_layers:
            model = _quantize(prepared, parameters, context.work_dir, large=large)
        elif calibration is None:
            raise PassFailure(FailureKind.UNSUPPORTED_OP, "to rank layers needs calibration samples (data.calibration)")
        else:
            model, note = _mixed(prepared, parameters, calibration, context.work_dir, large=large)
            notes.append(note)
        onnx_files.save(model, out_dir, like=original)
        return Changed("; ".join([onnx_facts.quantized_summary(original, model), *notes]))


def _quantize(prepared: Path, parameters: DynamicParameters, work_dir: Path, *, large: bool, without: Sequence[str] = ()) -> Any:
    """Quantises, but for the nodes `without`."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from optimizer import onnx_files

    raw = work_dir / "quantized.onnx"
    quantize_dynamic(
        prepared,
        raw,
        op_types_to_quantize=onnx_files.op_types(parameters.op_types, matmul_for_gemm=True),
        nodes_to_exclude=list(without),
        per_channel=parameters.per_channel,
        reduce_range=parameters.reduce_range,
        weight_type=QuantType.QUInt8 if parameters.weight == "u8" else QuantType.QInt8,
        use_external_data_format=large,
    )
    return onnx_files.load(raw)


def _mixed(prepared: Path, parameters: DynamicParameters, calibration: Dataset, work_dir: Path, *, large: bool) -> tuple[Any, str]:
    """The quantised model without its most harmful layers, and which these are, for people."""
    from optimizer import gemm_rewrite, onnx_files, onnx_wiring, sensitivity

    plain = onnx_files.load(prepared)
    gemm_rewrite.to_matmul(plain)  # as the quantiser would, under names that are known before
    named = onnx_wiring.save_named(plain, work_dir)
    plain = onnx_files.load(named)
    whole = _quantize(named, parameters, work_dir, large=large)
    layers = sensitivity.rank_dynamic(plain, whole, calibration, parameters.float_layers, work_dir)
    model = _quantize(named, parameters, work_dir, large=large, without=layers)
    return model, f"left in float, most harmful first: {', '.join(layers) or 'none'}"

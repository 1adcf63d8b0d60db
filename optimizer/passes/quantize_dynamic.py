"""Weights as 8-bit integers, activations quantised at run time. Fast for matrix products, often slow for convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from optimizer.passes import Changed, Context, PassParameters

if TYPE_CHECKING:
    from optimizer.dataset import Dataset


class DynamicParameters(PassParameters):
    """`op_types`: operators to quantise, joined by commas (`Conv`, `MatMul,Gemm`); empty = all that can be."""

    weight: Literal["u8", "s8"] = "u8"
    per_channel: bool = False
    reduce_range: bool = False
    op_types: str = ""


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
        from onnxruntime.quantization import QuantType, quantize_dynamic

        from optimizer import onnx_facts, onnx_files

        original = onnx_files.load(source)
        prepared = onnx_files.prepare(source, context.work_dir, opset=13 if parameters.per_channel else 11)
        raw = context.work_dir / "quantized.onnx"
        quantize_dynamic(
            prepared,
            raw,
            op_types_to_quantize=onnx_files.op_types(parameters.op_types, matmul_for_gemm=True),
            per_channel=parameters.per_channel,
            reduce_range=parameters.reduce_range,
            weight_type=QuantType.QUInt8 if parameters.weight == "u8" else QuantType.QInt8,
            use_external_data_format=onnx_files.is_large(original),
        )
        model = onnx_files.load(raw)
        onnx_files.save(model, out_dir, like=original)
        return Changed(onnx_facts.quantized_summary(original, model))

"""Stores and computes in half precision; inputs and outputs stay float32."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from optimizer.passes import Changed, Context, PassParameters

if TYPE_CHECKING:
    from optimizer.dataset import Dataset


class Float16Parameters(PassParameters):
    """`keep_float32`: operators left alone besides those that have no half kernel, joined by commas."""

    keep_float32: str = ""


class ConvertFloat16:
    """float32 -> float16."""

    name: ClassVar[str] = "convert_float16"
    version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    writes: ClassVar[str] = ""
    extra: ClassVar[str] = "optimizer"
    toolchain: ClassVar[str] = ""
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime")
    parameters: ClassVar[type[PassParameters]] = Float16Parameters
    evidence: ClassVar[str] = "float16"
    must_change: ClassVar[bool] = True
    drift: ClassVar[float] = 0.05

    def run(self, source: Path, out_dir: Path, parameters: Float16Parameters, calibration: Dataset | None, context: Context) -> Changed:
        """Converts weights and nodes; values beyond half precision's range are clipped (the drift check sees what that costs)."""
        from onnxruntime.transformers import float16

        from optimizer import onnx_facts, onnx_files

        before = onnx_files.load(source)
        blocked = [*float16.DEFAULT_OP_BLOCK_LIST, *(n.strip() for n in parameters.keep_float32.split(",") if n.strip())]
        model = float16.convert_float_to_float16(
            onnx_files.load(source), keep_io_types=True, op_block_list=blocked, disable_shape_infer=onnx_files.is_large(before)
        )
        onnx_files.save(model, out_dir, like=before)
        weights = onnx_facts.weight_counts(before).get("float32", 0)
        halves = onnx_facts.weight_counts(model).get("float16", 0) - onnx_facts.weight_counts(before).get("float16", 0)
        return Changed(f"{halves} of {weights} weights in float16")

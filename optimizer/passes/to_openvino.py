"""OpenVINO's own format: a graph in .xml, its weights in .bin. It loads faster than the file that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgefarm.model import FailureKind
from optimizer.passes import Changed, Context, PassFailure, PassParameters

if TYPE_CHECKING:
    from optimizer.dataset import Dataset

MAIN = "model.xml"


class OpenVinoParameters(PassParameters):
    """`compress_to_fp16`: weights are stored in half precision; what is computed in is the device's choice."""

    compress_to_fp16: bool = False


class ToOpenVino:
    """ONNX or TFLite -> OpenVINO."""

    name: ClassVar[str] = "to_openvino"
    version: ClassVar[int] = 2
    formats: ClassVar[tuple[str, ...]] = ("onnx", "tflite")
    writes: ClassVar[str] = "openvino"
    extra: ClassVar[str] = "openvino"
    toolchain: ClassVar[str] = ""
    tools: ClassVar[tuple[str, ...]] = ("openvino",)
    parameters: ClassVar[type[PassParameters]] = OpenVinoParameters
    evidence: ClassVar[str] = "format"
    must_change: ClassVar[bool] = True
    drift: ClassVar[float] = 0.05

    def run(self, source: Path, out_dir: Path, parameters: OpenVinoParameters, calibration: Dataset | None, context: Context) -> Changed:
        """Reads with the library's own front end and writes both files; tensors that it renames are mapped by their order."""
        from optimizer.engines import import_openvino, is_unsupported
        from optimizer.io_maps import by_order
        from optimizer.source import inspect_model

        library, before, readable = import_openvino(), inspect_model(source), source
        if before.format == "tflite":
            from optimizer.tflite_files import settle

            readable = settle(source, context.work_dir / source.name)
        try:
            model = library.Core().read_model(str(readable))
        except RuntimeError as error:
            kind = FailureKind.UNSUPPORTED_OP if is_unsupported(error) else FailureKind.LOAD
            raise PassFailure(kind, f"OpenVINO does not read it: {str(error).strip()[:500]}") from error
        library.save_model(model, str(out_dir / MAIN), compress_to_fp16=parameters.compress_to_fp16)
        after = inspect_model(out_dir / MAIN)
        halves = after.weight_dtypes.get("float16", 0)
        if parameters.compress_to_fp16 and not halves:
            raise PassFailure(FailureKind.UNCHANGED, "no weight was stored in half precision")
        detail = f"{sum(before.op_types.values())} nodes of {before.format} as {sum(after.op_types.values())} layers"
        detail += f", {halves} weights in float16" if halves else ""
        return Changed(detail, by_order(before, after), plain=not parameters.compress_to_fp16)

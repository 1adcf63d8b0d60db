"""Weights, or weights and activations, of a TFLite model as integers.

`static` takes the ranges of activations from calibration samples and computes in integers; `dynamic` finds them at run time;
`weight_only` stores small weights and computes in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from edgefarm.model import FailureKind
from optimizer.passes import Changed, Context, PassFailure, PassParameters

if TYPE_CHECKING:
    from optimizer.dataset import Dataset
    from optimizer.source import Signature
    from optimizer.tflite_files import Prepared

MAIN = "model.tflite"
_NARROW = ("int8", "int4")


class TfliteParameters(PassParameters):
    """Parameters of TFLite quantisation.

    Attributes:
        activation_bits: of `static`; 16 keeps more accuracy, and most kernels for it are slow.
        weight_bits: 4 only where activations stay in float32.
        algorithm: of the weights' ranges: their extremes, or the clipping that loses least (OCTAV, arXiv:2206.06501).
        calibration: of the activations' ranges under `static`: their extremes over all samples, or a moving average of each sample's
            extremes, which leaves out what is rare.
        op_types: operators to quantise, joined by commas (`CONV_2D,FULLY_CONNECTED`); empty = all that can be.
        samples: at most so many calibration samples are run, evenly spread over the set.
    """

    mode: Literal["static", "dynamic", "weight_only"] = "static"
    activation_bits: Literal[8, 16] = 8
    weight_bits: Literal[4, 8] = 8
    per_channel: bool = True
    algorithm: Literal["minmax", "octav"] = "minmax"
    calibration: Literal["minmax", "average"] = "minmax"
    op_types: str = ""
    samples: Annotated[int, Field(ge=1)] = 256

    @property
    def needs_calibration(self) -> bool:
        """Only static ranges come from samples."""
        return self.mode == "static"

    @model_validator(mode="after")
    def _fitting(self) -> TfliteParameters:
        if self.mode != "static" and self.activation_bits != 8:
            raise ValueError(f"activation_bits {self.activation_bits} needs mode static: under {self.mode} activations stay float32")
        if self.mode == "static" and self.weight_bits != 8:
            raise ValueError(f"weight_bits {self.weight_bits} needs mode dynamic or weight_only: static kernels take 8")
        return self


class QuantizeTflite:
    """AI Edge Quantizer, https://github.com/google-ai-edge/ai-edge-quantizer."""

    name: ClassVar[str] = "quantize_tflite"
    version: ClassVar[int] = 2
    formats: ClassVar[tuple[str, ...]] = ("tflite",)
    writes: ClassVar[str] = ""
    extra: ClassVar[str] = "quantizer"
    toolchain: ClassVar[str] = ""
    tools: ClassVar[tuple[str, ...]] = ("ai-edge-quantizer", "ai-edge-litert", "numpy")
    parameters: ClassVar[type[PassParameters]] = TfliteParameters
    evidence: ClassVar[str] = "integer"
    must_change: ClassVar[bool] = True
    drift: ClassVar[float] = 1.0

    def run(self, source: Path, out_dir: Path, parameters: TfliteParameters, calibration: Dataset | None, context: Context) -> Changed:
        """Calibrates where it must, and quantises; inputs and outputs stay float32, though their names may change."""
        from ai_edge_quantizer import Quantizer

        from optimizer import tflite_files
        from optimizer.io_maps import by_order
        from optimizer.source import inspect_model

        before = inspect_model(source)
        prepared = tflite_files.prepare(source, context.work_dir)
        quantizer = Quantizer(str(prepared.path))
        for operator in _operators(parameters.op_types, before):
            _configure(quantizer, operator, parameters)
        _leave_ends(quantizer)
        ranges = None
        if parameters.needs_calibration:
            if calibration is None:
                raise PassFailure(FailureKind.UNSUPPORTED_OP, "static quantisation needs calibration samples (data.calibration)")
            ranges = _ranges(quantizer, prepared, _samples(calibration, prepared, parameters.samples), parameters.calibration)
        quantizer.quantize(ranges).export_model(str(context.work_dir / MAIN))
        tflite_files.settle(context.work_dir / MAIN, out_dir / MAIN)
        after = inspect_model(out_dir / MAIN)
        return Changed(_summary(before, after, prepared.folded), by_order(before, after))


def _operators(text: str, signature: Signature) -> list[str]:
    """The quantiser's names. Raises PassFailure for an operator that the model does not have."""
    names = [name.strip().upper() for name in text.split(",") if name.strip()]
    if absent := [name for name in names if name not in signature.op_types]:
        there = ", ".join(sorted(signature.op_types))
        raise PassFailure(FailureKind.UNSUPPORTED_OP, f"op_types names {absent[0]}, which the model does not have; it has {there}")
    return names or ["*"]


def _configure(quantizer: Any, operator: str, parameters: TfliteParameters) -> None:
    from ai_edge_quantizer import qtyping, recipe

    algorithms = {"minmax": recipe.AlgorithmName.MIN_MAX_UNIFORM_QUANT, "octav": recipe.AlgorithmName.OCTAV}
    granularity = qtyping.QuantGranularity.CHANNELWISE if parameters.per_channel else qtyping.QuantGranularity.TENSORWISE
    common: dict[str, Any] = {
        "regex": ".*",
        "operation_name": qtyping.TFLOperationName(operator),
        "algorithm_key": algorithms[parameters.algorithm],
    }
    if parameters.mode == "static":
        bits = {"activation_num_bits": parameters.activation_bits, "weight_num_bits": parameters.weight_bits}
        quantizer.add_static_config(**common, **bits, weight_granularity=granularity)
        return
    add = quantizer.add_dynamic_config if parameters.mode == "dynamic" else quantizer.add_weight_only_config
    add(**common, num_bits=parameters.weight_bits, granularity=granularity)


def _leave_ends(quantizer: Any) -> None:
    """Keeps inputs and outputs in float32."""
    from ai_edge_quantizer import qtyping, recipe

    for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        quantizer.update_quantization_recipe(".*", end, algorithm_key=recipe.AlgorithmName.NO_QUANTIZE)


def _ranges(quantizer: Any, prepared: Prepared, samples: list[dict[str, Any]], calibration: str) -> Any:
    """Statistics of the activations that the quantiser's recipe asks for; its own `calibrate` knows the moving average only."""
    from ai_edge_quantizer import calibrator, recipe_manager
    from ai_edge_quantizer.utils import qsv_utils

    update = {"minmax": qsv_utils.min_max_update, "average": qsv_utils.moving_average_update}[calibration]
    wanted = recipe_manager.RecipeManager()
    wanted.load_quantization_recipe(quantizer.get_quantization_recipe())
    measuring = calibrator.Calibrator(str(prepared.path), num_threads=1, qsv_update_func=update)
    measuring.calibrate({prepared.signature: samples}, wanted)
    return measuring.get_model_qsvs()


def _samples(calibration: Dataset, prepared: Prepared, limit: int) -> list[dict[str, Any]]:
    count = min(limit, calibration.n)
    chosen = (calibration.feeds(i * calibration.n // count) for i in range(count))
    return [{prepared.names[name]: array for name, array in feed.items()} for feed in chosen]


def _summary(before: Signature, after: Signature, folded: int) -> str:
    floats = sum(before.weight_dtypes.get(dtype, 0) for dtype in ("float32", "float16"))
    narrow = {dtype: after.weight_dtypes.get(dtype, 0) - before.weight_dtypes.get(dtype, 0) for dtype in _NARROW}
    parts = [f"{count} of {floats} weights in {dtype}" for dtype, count in narrow.items() if count > 0]
    return (", ".join(parts) or "no weight quantised") + (f"; {folded} were float16" if folded else "")

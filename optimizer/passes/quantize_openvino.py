"""Weights and activations of an OpenVINO model as integers, by NNCF: what OpenVINO's own plugins have kernels for.

https://github.com/openvinotoolkit/nncf. Ranges come from calibration samples; what the rounding shifts on average is corrected.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from edgefarm.model import FailureKind
from optimizer.passes import Changed, Context, PassFailure, PassParameters

if TYPE_CHECKING:
    from optimizer.dataset import Dataset

MAIN = "model.xml"


class OpenVinoIntegers(PassParameters):
    """Parameters of NNCF's post-training quantisation.

    Attributes:
        preset: `performance`: symmetric activations; `mixed`: asymmetric ones, for activations that are not around 0 (ELU, Swish).
        bias_correction: `fast` corrects each layer by its own statistics; `thorough` runs the model again after each layer.
        transformer: the model's attention is kept in what such models bear.
        samples: at most so many calibration samples are run, evenly spread over the set.
    """

    preset: Literal["performance", "mixed"] = "performance"
    bias_correction: Literal["fast", "thorough"] = "fast"
    transformer: bool = False
    samples: Annotated[int, Field(ge=1)] = 256

    @property
    def needs_calibration(self) -> bool:
        """Ranges come from samples."""
        return True


class QuantizeOpenVino:
    """OpenVINO -> OpenVINO with integers."""

    name: ClassVar[str] = "quantize_openvino"
    version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("openvino",)
    writes: ClassVar[str] = ""
    extra: ClassVar[str] = ""
    toolchain: ClassVar[str] = "nncf"
    tools: ClassVar[tuple[str, ...]] = ("nncf", "openvino", "numpy", "scipy")
    parameters: ClassVar[type[PassParameters]] = OpenVinoIntegers
    evidence: ClassVar[str] = "integer"
    must_change: ClassVar[bool] = True
    drift: ClassVar[float] = 1.0

    def run(self, source: Path, out_dir: Path, parameters: OpenVinoIntegers, calibration: Dataset | None, context: Context) -> Changed:
        """Quantises; inputs and outputs stay what they were. Raises PassFailure without samples, or with NNCF's own words."""
        from optimizer.engines import import_openvino
        from optimizer.source import inspect_model

        if calibration is None:
            raise PassFailure(FailureKind.UNSUPPORTED_OP, "it needs calibration samples (data.calibration)")
        library = import_openvino()
        model = library.Core().read_model(str(source))
        before = inspect_model(source)
        quantised = _quantised(model, calibration, parameters)
        library.save_model(quantised, str(out_dir / MAIN), compress_to_fp16=False)
        after = inspect_model(out_dir / MAIN)
        points = after.op_types.get("FakeQuantize", 0) - before.op_types.get("FakeQuantize", 0)
        weights = sum(after.weight_dtypes.get(d, 0) - before.weight_dtypes.get(d, 0) for d in ("int8", "uint8"))
        return Changed(f"{weights} weights of 8 bits, {points} places where activations are rounded")


def _quantised(model: Any, calibration: Dataset, parameters: OpenVinoIntegers) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nncf

        count = min(calibration.n, parameters.samples)
        samples = [calibration.feeds(i * calibration.n // count) for i in range(count)]
        presets = {"performance": nncf.QuantizationPreset.PERFORMANCE, "mixed": nncf.QuantizationPreset.MIXED}
        try:
            return nncf.quantize(
                model,
                nncf.Dataset(samples),
                preset=presets[parameters.preset],
                subset_size=count,
                fast_bias_correction=parameters.bias_correction == "fast",
                model_type=nncf.ModelType.TRANSFORMER if parameters.transformer else None,
            )
        except Exception as error:  # of its graph transformations: there is no common one
            said = " ".join((str(error).strip() or type(error).__name__).split())
            raise PassFailure(FailureKind.UNSUPPORTED_OP, f"NNCF does not quantise it: {said[:500]}") from error

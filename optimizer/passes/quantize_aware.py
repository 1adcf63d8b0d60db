"""Trains a network so that it bears being quantised: what comes out is float still, its weights on the grid of the integers to come.

`quantize_static` after it, with the same bits, makes the integers; the model before training is the teacher.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from optimizer.passes import Changed, Context
from optimizer.training.parameters import ANY_DRIFT, TrainingParameters

if TYPE_CHECKING:
    from optimizer.dataset import Dataset

Bits = Annotated[int, Field(ge=2, le=8)]


class QuantizeAwareParameters(TrainingParameters):
    """Parameters of quantisation-aware training: bits of weights (7 suits `reduce_range`) and of what layers are given."""

    epochs: Annotated[float, Field(ge=0, le=1000)] = 2.0
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 2e-4
    weight_bits: Bits = 8
    activation_bits: Bits = 8


class QuantizeAware:
    """Quantisation-aware training with distillation."""

    name: ClassVar[str] = "quantize_aware"
    version: ClassVar[int] = 2
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    writes: ClassVar[str] = ""
    extra: ClassVar[str] = "torch"
    toolchain: ClassVar[str] = ""
    tools: ClassVar[tuple[str, ...]] = ("torch", "onnx", "onnxruntime", "numpy")
    parameters: ClassVar[type[QuantizeAwareParameters]] = QuantizeAwareParameters
    evidence: ClassVar[str] = "structure"
    must_change: ClassVar[bool] = True
    drift: ClassVar[float] = ANY_DRIFT

    def run(
        self, source: Path, out_dir: Path, parameters: QuantizeAwareParameters, calibration: Dataset | None, context: Context
    ) -> Changed:
        """Rounds in the forward pass, trains for `epochs`, and leaves the weights rounded."""
        from optimizer.training import fake_quant
        from optimizer.training.lesson import open_lesson

        lesson = open_lesson(source, context)
        count = fake_quant.insert(lesson.student, parameters.weight_bits, parameters.activation_bits)
        bits = f"{count} layers with weights on {parameters.weight_bits} bits, inputs on {parameters.activation_bits}"
        trained = f"; {lesson.fit(parameters)}" if parameters.epochs else ""
        fake_quant.settle(lesson.student)
        lesson.save(out_dir)
        return Changed(f"{bits}{trained}")

"""Sets the least important weights to zero, and trains the others: sparse weights in the shapes that they had.

Dense kernels are no faster for it: it pays where the file is compressed on its way, before a codebook, or on hardware that knows the
pattern (`2:4`: two of four weights in a row, which NVIDIA's tensor cores skip from Ampere on).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from optimizer.passes import Changed, Context
from optimizer.training.parameters import ANY_DRIFT, TrainingParameters

if TYPE_CHECKING:
    from optimizer.dataset import Dataset


class PruneWeightsParameters(TrainingParameters):
    """Parameters of unstructured pruning.

    Attributes:
        sparsity: share of the weights that become zero; `2:4` is always a half.
        pattern: `any`, or two of four in a row along the input channels.
        importance: `magnitude` of weights, or `gradient`: the first-order Taylor term |weight * gradient| of the loss.
        scope: `global` zeroes the least important of all layers, `layer` the same share of each.
        rounds: the sparsity is reached in so many steps along a cubic curve (Zhu and Gupta, "To prune, or not to prune", 2017), each
            followed by its share of the training.
    """

    sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.5
    pattern: Literal["any", "2:4"] = "any"
    importance: Literal["magnitude", "gradient"] = "magnitude"
    scope: Literal["global", "layer"] = "global"
    rounds: Annotated[int, Field(ge=1, le=20)] = 3


class PruneWeights:
    """Unstructured and 2:4 pruning, with recovery by distillation."""

    name: ClassVar[str] = "prune_weights"
    version: ClassVar[int] = 2
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    writes: ClassVar[str] = ""
    extra: ClassVar[str] = "torch"
    toolchain: ClassVar[str] = ""
    tools: ClassVar[tuple[str, ...]] = ("torch", "onnx", "onnxruntime", "numpy")
    parameters: ClassVar[type[PruneWeightsParameters]] = PruneWeightsParameters
    evidence: ClassVar[str] = "structure"
    must_change: ClassVar[bool] = True
    drift: ClassVar[float] = ANY_DRIFT

    def run(
        self, source: Path, out_dir: Path, parameters: PruneWeightsParameters, calibration: Dataset | None, context: Context
    ) -> Changed:
        """Prunes in rounds, training after each."""
        from optimizer.training import zeros
        from optimizer.training.lesson import open_lesson

        lesson = open_lesson(source, context)
        rule = zeros.Rule(parameters.pattern, parameters.importance, parameters.scope)
        fitted = None
        for round_, share in enumerate(zeros.schedule(parameters.sparsity, parameters.rounds)):
            loss = lesson.loss_of_some(lesson.student, parameters) if parameters.importance == "gradient" else None
            zeros.prune(lesson.student, share, rule, loss)
            if parameters.epochs:
                fitted = lesson.fit(parameters.model_copy(update={"epochs": parameters.epochs / parameters.rounds}), stage=f"round{round_}")
        count = zeros.settle(lesson.student)
        lesson.save(out_dir)
        return Changed(f"{count}" + (f"; {fitted}" if fitted else ""))

"""Trains a student towards the user's model, its teacher: the same network, or a slimmer one.

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. It needs no labels; where `data.train` has them, `hard` says how much
they count, and with `hard: 1` the student learns from them alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from optimizer.passes import Changed, Context, PassFailure
from optimizer.training.parameters import ANY_DRIFT, TrainingParameters

if TYPE_CHECKING:
    from optimizer.dataset import Dataset


class DistillParameters(TrainingParameters):
    """Parameters of distillation.

    Attributes:
        width: share of the channels that the student has; 1 = the network as it is, trained further.
        fresh: the student begins with random weights instead of the teacher's most important ones.
        multiple: its channels are multiples of it.
    """

    epochs: Annotated[float, Field(ge=0, le=1000)] = 10.0
    width: Annotated[float, Field(gt=0, le=1)] = 1.0
    fresh: bool = False
    multiple: Annotated[int, Field(ge=1, le=256)] = 8


class Distill:
    """Knowledge distillation."""

    name: ClassVar[str] = "distill"
    version: ClassVar[int] = 2
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    writes: ClassVar[str] = ""
    extra: ClassVar[str] = "torch"
    toolchain: ClassVar[str] = ""
    tools: ClassVar[tuple[str, ...]] = ("torch", "torch-pruning", "onnx", "onnxruntime", "numpy")
    parameters: ClassVar[type[DistillParameters]] = DistillParameters
    evidence: ClassVar[str] = "structure"
    must_change: ClassVar[bool] = True
    drift: ClassVar[float] = ANY_DRIFT

    def run(self, source: Path, out_dir: Path, parameters: DistillParameters, calibration: Dataset | None, context: Context) -> Changed:
        """Slims, then trains for `epochs`. Raises PassFailure where labels alone are to be learnt from and there are none."""
        from edgefarm.model import FailureKind
        from optimizer.training import channels
        from optimizer.training.lesson import open_lesson

        lesson = open_lesson(source, context)
        if parameters.hard == 1 and not lesson.labelled:
            raise PassFailure(FailureKind.UNSUPPORTED_OP, "hard: 1 learns from labels alone, and data.train has none that fit an output")
        lesson.normalise()
        details = []
        if parameters.width < 1:
            shears = channels.Shears(1 - parameters.width, "l2", parameters.multiple)
            slim, cut = channels.prune(lesson.student, lesson.example(), shears, lambda network: lesson.loss_of_some(network, parameters))
            lesson.student = slim
            details.append(f"{cut}")
        if parameters.fresh:
            lesson.student.forget()
            details.append("weights forgotten")
        details.append(f"{lesson.fit(parameters)}" if parameters.epochs else "not trained")
        lesson.save(out_dir)
        return Changed("; ".join(details))

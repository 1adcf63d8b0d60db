"""Takes whole channels out of a network and trains the rest towards the model that it was: smaller and faster in every runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from optimizer.passes import Changed, Context
from optimizer.training.parameters import ANY_DRIFT, TrainingParameters

if TYPE_CHECKING:
    from optimizer.dataset import Dataset


class PruneStructuredParameters(TrainingParameters):
    """Parameters of structured pruning.

    Attributes:
        ratio: share of the channels that goes; of two layers in a row a half leaves a quarter of the products.
        importance: by what channels are ranked: norms of weights, first-order Taylor expansion of the loss, size of activations.
        multiple: channels are left in multiples of it.
        scope: `layer` takes the same share of each layer, `global` the least important of all.
    """

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5
    importance: Literal["l1", "l2", "taylor", "activation"] = "l2"
    multiple: Annotated[int, Field(ge=1, le=256)] = 8
    scope: Literal["layer", "global"] = "layer"


class PruneStructured:
    """Structured pruning, with recovery by distillation."""

    name: ClassVar[str] = "prune_structured"
    version: ClassVar[int] = 3
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    writes: ClassVar[str] = ""
    extra: ClassVar[str] = "torch"
    toolchain: ClassVar[str] = ""
    tools: ClassVar[tuple[str, ...]] = ("torch", "torch-pruning", "onnx", "onnxruntime", "numpy")
    parameters: ClassVar[type[PruneStructuredParameters]] = PruneStructuredParameters
    evidence: ClassVar[str] = "structure"
    must_change: ClassVar[bool] = True
    drift: ClassVar[float] = ANY_DRIFT

    def run(
        self, source: Path, out_dir: Path, parameters: PruneStructuredParameters, calibration: Dataset | None, context: Context
    ) -> Changed:
        """Prunes once, then trains for `epochs`."""
        from optimizer.training import channels
        from optimizer.training.lesson import open_lesson

        lesson = open_lesson(source, context)
        lesson.normalise()
        shears = channels.Shears(parameters.ratio, parameters.importance, parameters.multiple, parameters.scope)

        def loss(network: Any) -> Any:
            return lesson.loss_of_some(network, parameters)

        lesson.student, cut = channels.prune(lesson.student, lesson.example(), shears, loss)
        detail = f"{cut}"
        if parameters.epochs:
            detail += f"; {lesson.fit(parameters)}"
        lesson.save(out_dir)
        return Changed(detail)

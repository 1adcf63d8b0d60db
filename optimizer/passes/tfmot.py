"""The TensorFlow Model Optimization Toolkit (https://www.tensorflow.org/model_optimization) on the Keras model that was given.

Weights are pruned by magnitude while training goes on, then clustered without filling the gaps, then trained with the roundings of int8
in the forward pass, each keeping what came before; the model before is the teacher. What comes out is TFLite.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, model_validator

from edgefarm.model import FailureKind
from optimizer.passes import Changed, Context, PassFailure, PassParameters

if TYPE_CHECKING:
    from optimizer.dataset import Dataset

MAIN = "model.tflite"


class TfmotParameters(PassParameters):
    """What is done, one after the other, and how each of it trains.

    Attributes:
        original: digest of the Keras file; not written by hand.
        sparsity: share of the weights that become zero; 0 = no pruning.
        two_of_four: of each four weights in a row two become zero, whatever `sparsity` says.
        clusters: different values that a layer's weights may have; 0 = no clustering.
        quantize_aware: the result computes in int8.
        epochs: passes over the training samples, of each method.
        batch: samples per step.
        learning_rate: at its highest.
        hard: share of the labels in the loss where `data.train` has labels; the rest is what the original model says.
    """

    original: str = ""
    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.0
    two_of_four: bool = False
    clusters: Annotated[int, Field(ge=0, le=256)] = 0
    quantize_aware: bool = True
    epochs: Annotated[float, Field(gt=0, le=1000)] = 2.0
    batch: Annotated[int, Field(ge=1, le=65536)] = 64
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 5e-4
    hard: Annotated[float, Field(ge=0, le=1)] = 0.3

    @property
    def needs_training(self) -> bool:
        """All of it trains."""
        return True

    @property
    def needs_original(self) -> bool:
        """TFLite files can't be trained."""
        return True

    @property
    def prunes(self) -> bool:
        """Whether weights become zero."""
        return self.sparsity > 0 or self.two_of_four

    @model_validator(mode="after")
    def _something(self) -> TfmotParameters:
        if not (self.prunes or self.clusters or self.quantize_aware):
            raise ValueError("choose one or more of sparsity, two_of_four, clusters and quantize_aware")
        if self.clusters == 1:
            raise ValueError("clusters: 1 leaves each layer one weight; 16 or more are usual")
        return self


class Tfmot:
    """Keras -> pruned, clustered, quantised -> TFLite."""

    name: ClassVar[str] = "tfmot"
    version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("tflite",)
    writes: ClassVar[str] = ""
    extra: ClassVar[str] = ""
    toolchain: ClassVar[str] = "keras"
    tools: ClassVar[tuple[str, ...]] = ("tensorflow-model-optimization", "tensorflow", "tf-keras", "keras", "ai-edge-litert", "numpy")
    parameters: ClassVar[type[PassParameters]] = TfmotParameters
    evidence: ClassVar[str] = "own"
    must_change: ClassVar[bool] = True
    drift: ClassVar[float] = 1.0

    def run(self, source: Path, out_dir: Path, parameters: TfmotParameters, calibration: Dataset | None, context: Context) -> Changed:
        """Trains the Keras model, and converts what it became.

        Raises PassFailure: LOAD where the Keras file is gone or has no equal in Keras 2; UNSUPPORTED_OP where nothing in it can be changed,
        or TensorFlow's converter does not take it.
        """
        from optimizer.io_maps import by_order
        from optimizer.keras import files, lite, methods, rebuild
        from optimizer.keras.lesson import Lesson, settle
        from optimizer.source import inspect_model

        path = context.given.get(parameters.original)
        if path is None:
            raise PassFailure(FailureKind.LOAD, "the Keras file that the model was exported from is not there")
        if context.train is None:
            raise PassFailure(FailureKind.UNSUPPORTED_OP, "training needs samples (data.train)")
        before = inspect_model(source)
        settle(context.seed)
        try:
            model = files.load_legacy(path)
            lesson = Lesson(model, context, parameters, [spec.name for spec in before.inputs])
            model, done = methods.apply(model, lesson, parameters)
            lite.to_tflite(model, out_dir / MAIN, integers=parameters.quantize_aware)
        except (files.Unreadable, rebuild.NotRebuilt) as error:
            raise PassFailure(FailureKind.LOAD, f"{path.name}: {error}") from error
        except (methods.NotApplicable, lite.NotConverted) as error:
            raise PassFailure(FailureKind.UNSUPPORTED_OP, str(error)) from error
        after = inspect_model(out_dir / MAIN)
        if parameters.quantize_aware and after.integers <= before.integers:
            raise PassFailure(FailureKind.UNCHANGED, "TensorFlow's converter left no operator and no weight in integers")
        return Changed("; ".join(done), by_order(before, after))

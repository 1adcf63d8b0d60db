"""What a pass needs to train a model: student, teacher, samples and loss, made of what the pass is given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from edgefarm.model import FailureKind
from optimizer import onnx_files
from optimizer.dataset import Dataset
from optimizer.passes import Context, PassFailure
from optimizer.training import norms
from optimizer.training.fit import Fit, Fitted, Settings
from optimizer.training.losses import Head, Loss, heads, with_labels
from optimizer.training.network import Network
from optimizer.training.parameters import TrainingParameters
from optimizer.training.samples import Samples, joinable
from optimizer.training.teacher import Teacher

_OPSET = 11
_LOOKED_AT = 64  # samples by which outputs are judged and normalisations set


@dataclass
class Lesson:
    """A student and whom it learns from.

    Attributes:
        original: the model as it was read.
        labels: which target labels which head.
        scales: variance of the teacher's values, of heads without classes.
    """

    original: Any
    student: Network
    teacher: Teacher
    samples: Samples
    heads: list[Head]
    labels: dict[str, str]
    scales: dict[str, float]
    context: Context

    @property
    def labelled(self) -> bool:
        """Whether there are labels for any head."""
        return bool(self.labels)

    def loss(self, parameters: TrainingParameters) -> Loss:
        """The loss that the parameters describe. Without labels the teacher's word is all there is."""
        return Loss(self.heads, self.labels, parameters.temperature, parameters.hard, self.scales)

    def some(self, count: int = _LOOKED_AT) -> list[int]:
        """Indices of samples, evenly spread."""
        n = min(count, self.samples.n)
        return [i * self.samples.n // n for i in range(n)]

    def batches(self, count: int = _LOOKED_AT, size: int = 16) -> Iterator[list[Any]]:
        """Inputs of some samples."""
        chosen = self.some(count)
        for start in range(0, len(chosen), size):
            for group in self.samples.groups(chosen[start : start + size]):
                yield self.samples.inputs(group)

    def example(self) -> list[Any]:
        """Inputs of two samples, or of one where samples are not joined."""
        return self.samples.inputs(self.some(2) if self.samples.batched else self.some(1))

    def loss_of_some(self, network: Network, parameters: TrainingParameters) -> Any:
        """A network's loss over some samples, with its gradient."""
        loss = self.loss(parameters)
        total: Any = torch.zeros(())
        for group in self.samples.groups(self.some()):
            total = total + loss(network(*self.samples.inputs(group)), self.teacher(group), self.samples.targets(group)) * len(group)
        return total / len(self.some())

    def normalise(self) -> int:
        """Puts normalisations behind the student's convolutions where samples are joined; returns how many."""
        return norms.insert(self.student, self.batches()) if self.samples.batched else 0

    def fit(self, parameters: TrainingParameters, stage: str = "") -> Fitted:
        """Trains the student. `stage` tells apart the trainings of one pass. Raises PassFailure where `mix` is asked for and can't be."""
        if parameters.mix and not self.samples.blendable:
            raise PassFailure(FailureKind.UNSUPPORTED_OP, "mix blends inputs, which have to be floats in samples that can be joined")
        settings = Settings(
            parameters.epochs,
            parameters.batch,
            parameters.learning_rate,
            parameters.l1,
            parameters.l2,
            parameters.patience,
            self.context.seed,
            parameters.mix,
        )
        checkpoints = self.context.checkpoints
        if checkpoints is not None and stage:
            checkpoints = checkpoints / stage
        loss, tell = self.loss(parameters), self.context.tell
        return Fit(self.student, self.teacher, self.samples, loss, settings, checkpoints, tell, self.teacher.ask).run()

    def save(self, out_dir: Path) -> Any:
        """Writes the student as it is now, and returns it."""
        model = self.student.to_model()
        onnx_files.save(model, out_dir, like=self.original)
        return model


def open_lesson(source: Path, context: Context) -> Lesson:
    """Reads a model and makes ready to train it, with the user's own model as the teacher.

    Raises:
        PassFailure: UNSUPPORTED_OP for what cannot be trained, with the reason.
    """
    torch.set_num_threads(1)  # passes run side by side, as many as there are cores
    torch.manual_seed(context.seed)
    if context.train is None:
        raise PassFailure(FailureKind.UNSUPPORTED_OP, "training needs samples (data.train)")
    original = onnx_files.load(source)
    if onnx_files.is_large(original):
        raise PassFailure(FailureKind.UNSUPPORTED_OP, "training knows no models above 1.5 GiB")
    student = Network(onnx_files.load(onnx_files.prepare(source, context.work_dir, _OPSET)))
    found = heads(student.model)
    if not found:
        raise PassFailure(FailureKind.UNSUPPORTED_OP, "no output tells how near a result is: all are indices, truth values or text")
    student.output_names = [head.tensor for head in found]
    student.eval()
    samples = _samples(student, context.train)
    _same_as_before(student, samples, original)
    teacher = _teacher(student, source, context, found, samples)
    lesson = Lesson(original, student, teacher, samples, found, {}, {}, context)
    seen = teacher(lesson.some())
    judged, labels = with_labels(found, seen, context.train.targets)
    scales = {head.tensor: float(value.float().var()) for head, value in zip(found, seen) if value.numel() > 1}
    return replace(lesson, heads=judged, labels=labels, scales=scales)


def _samples(student: Network, data: Dataset) -> Samples:
    alone = Samples(data, student.input_names, batched=False)
    student.relax_reshapes(alone.inputs([0]))
    return replace(alone, batched=joinable(student, data, student.input_names))


def _same_as_before(student: Network, samples: Samples, original: Any) -> None:
    """Raises PassFailure where torch computes something else than ONNX Runtime: what is trained would not be what runs."""
    before = Teacher(original, [Head(name, name) for name in (v.name for v in original.graph.output)], replace(samples, batched=False))
    heads_asked, student.output_names = student.output_names, [v.name for v in student.model.graph.output]
    with torch.no_grad():
        got, wanted = student(*samples.inputs([0])), before([0])
    student.output_names = heads_asked
    for name, a, b in zip((v.name for v in original.graph.output), got, wanted):
        if not a.is_floating_point():
            continue
        off = float((a.double() - b.double()).norm()) / max(float(b.double().norm()), 1e-12)
        if off > 1e-2:
            raise PassFailure(
                FailureKind.UNSUPPORTED_OP, f"training computes output {name!r} otherwise: it is off by {off:.2g} (relative L2)"
            )


def _teacher(student: Network, source: Path, context: Context, found: list[Head], samples: Samples) -> Teacher:
    """The user's own model where it has the student's heads; else what the student was made of."""
    origin = context.origin
    if origin is not None and origin.suffix == ".onnx" and origin != source:
        folder = context.work_dir / "teacher"
        folder.mkdir()
        model = onnx_files.load(onnx_files.prepare(origin, folder, _OPSET))
        its = heads(model)
        if [head.output for head in its] == [head.output for head in found]:
            return Teacher(model, its, samples)
    return Teacher(student.model, found, samples)

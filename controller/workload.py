"""What a run works with: the source model, the samples, and how both are given to devices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from controller.config import Fleet
from edgefarm.errors import UserError
from edgefarm.tensors import SHARD_BYTES, pack, shards
from optimizer import keras_source
from optimizer.dataset import Dataset
from optimizer.passes import ALTERNATIVE
from optimizer.recipe import Space, Step
from optimizer.source import Source, load_source

SPLIT_FLOOR = 400  # samples from which one evaluation set is halved into selection and evaluation
_SPLIT_SEED = 20
_LATENCY_SAMPLES = 32


@dataclass(frozen=True)
class Workload:
    """The source, its alternatives and samples. `selection` and `evaluation` are one object where one set serves for both.

    `train`: samples for passes that train, with whatever targets there are. `original`: the file that the source was exported from.
    """

    source: Source
    calibration: Dataset | None
    selection: Dataset
    evaluation: Dataset
    alternatives: tuple[Source, ...] = ()
    train: Dataset | None = None
    original: Source | None = None

    @property
    def others(self) -> tuple[Source, ...]:
        """What steps name by its digest."""
        return (*self.alternatives, self.original) if self.original else self.alternatives

    def space(self, formats: frozenset[str] | None = None) -> Space:
        """What plans may be made of. `formats`: those that some device runs, None = not known."""
        train = self.train.n if self.train else 0
        given = ((Step(ALTERNATIVE, {"file": a.path.name, "digest": a.artifact.digest}), a.signature) for a in self.alternatives)
        original = self.original.artifact.digest if self.original else ""
        return Space(self.source.signature, self.calibration is not None, tuple(given), formats, train, original)

    @property
    def same_data(self) -> bool:
        """Whether the winner is chosen on the very samples that it is reported on."""
        return self.selection is self.evaluation

    @property
    def splits(self) -> tuple[Dataset, ...]:
        """The distinct sets that devices run."""
        return (self.selection,) if self.same_data else (self.selection, self.evaluation)

    def shards(self) -> tuple[list[bytes], list[bytes]]:
        """Tensor packs of the samples that candidates are chosen by, and of those that they are reported on; none if they are the same."""
        return shards(self.selection.inputs), [] if self.same_data else shards(self.evaluation.inputs)

    def latency_inputs(self) -> bytes:
        """A few samples that latency is measured with, as one tensor pack."""
        per_sample = max(1, sum(a[:1].nbytes for a in self.selection.inputs.values()))
        count = max(1, min(_LATENCY_SAMPLES, self.selection.n, SHARD_BYTES // per_sample))
        return pack({name: array[:count] for name, array in self.selection.inputs.items()})

    def probe(self, count: int = 8) -> Dataset:
        """A few samples that variants are checked with on the host."""
        return self.selection.take(range(min(count, self.selection.n)))


def load_workload(fleet: Fleet) -> Workload:
    """Reads model and data and holds them against each other. Raises UserError with the file and what is wrong."""
    source = load_source(fleet.model)
    evaluation = Dataset.load(fleet.data["evaluation"], source.signature, with_targets=True)
    calibration = _optional(fleet.data.get("calibration"), source, targets=False)
    selection = _optional(fleet.data.get("selection"), source, targets=True)
    if selection is None and evaluation.n >= SPLIT_FLOOR:
        selection, evaluation = evaluation.split(_SPLIT_SEED, 0.5)
    if selection is not None and set(selection.targets) != set(evaluation.targets):
        wanted, got = sorted(evaluation.targets), sorted(selection.targets)
        raise UserError(f"{fleet.data['selection']}: targets {got}, but the evaluation set has {wanted}; give both the same arrays")
    train = _optional(fleet.data.get("train"), source, targets=True)
    alternatives = tuple(load_source(path) for path in fleet.alternatives)
    original = keras_source.original(fleet.exported) if fleet.exported else None
    return Workload(source, calibration, selection or evaluation, evaluation, alternatives, train, original)


def _optional(path: Path | None, source: Source, *, targets: bool) -> Dataset | None:
    return None if path is None else Dataset.load(path, source.signature, with_targets=targets)

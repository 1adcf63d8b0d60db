"""How source tensors become what a variant takes, and its outputs the source's again. Applied inside the timed region.

A shard holds, for each source input, one array per sample whose shape is exactly what is fed, batch axis included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.runtimes import Model, RuntimeFailure, TensorSpec
from edgefarm.mapping import decoder, encoder, lost
from edgefarm.model import FailureKind, Io, TensorMap

Tensor = NDArray[Any]
Feeds = dict[str, Tensor]


class Bound:
    """A loaded model that takes and gives source tensors.

    Attributes:
        outputs: names of the source's outputs, in the order of what `run` returns.
        encode: source tensors as the model itself is fed.
        run: one inference, mapping included.
    """

    outputs: tuple[str, ...]
    encode: Callable[[Feeds], Feeds]
    run: Callable[[Feeds], list[Tensor]]

    def __init__(self, model: Model, io: Io | None) -> None:
        """Raises RuntimeFailure(IO_CHANGED) if `io` names what the model does not have."""
        self.model = model
        if io is None:
            self._sources = {spec.name: spec for spec in model.inputs}
            self._into: dict[str, TensorMap] = {}
            self.outputs = tuple(spec.name for spec in model.outputs)
            self.encode = dict
            self.run = model.run  # nothing in between: what is timed is what the user's program would do
            return
        inputs = {spec.name: spec for spec in model.inputs}
        _check_names("input", [m.name for m in io.inputs], inputs)
        positions = {spec.name: index for index, spec in enumerate(model.outputs)}
        _check_names("output", [m.name for m in io.outputs], positions, complete=False)
        self._sources = {m.source: inputs[m.name] for m in io.inputs}
        self._into = {m.source: m for m in io.inputs}
        self.outputs = tuple(m.source for m in io.outputs)
        encoders = [(m.source, m.name, _encoder(m, inputs[m.name])) for m in io.inputs]
        decoders = [(positions[m.name], decoder(m)) for m in io.outputs]
        infer = model.run

        def run(feeds: Feeds) -> list[Tensor]:
            results = infer({name: encode(feeds[source]) for source, name, encode in encoders})
            return [decode(results[position]) for position, decode in decoders]

        self.encode = lambda feeds: {name: encode(feeds[source]) for source, name, encode in encoders}
        self.run = run

    def batch_axes(self) -> dict[str, int | None]:
        """Source input -> length of the axis that the source's first one becomes; None where the model takes any length."""
        axes: dict[str, int | None] = {}
        for name, spec in self._sources.items():
            mapping = self._into.get(name)
            axis = mapping.permutation.index(0) if mapping and 0 in mapping.permutation else 0
            axes[name] = spec.shape[axis] if spec.shape else 1
        return axes

    def feeds(self, shard: Mapping[str, Sequence[Tensor]]) -> list[Feeds]:
        """One dictionary per sample. Raises RuntimeFailure(IO_CHANGED) if the shard lacks an input or holds another dtype or shape."""
        absent = [name for name in self._sources if name not in shard]
        if absent:
            raise _changed(f"the inputs lack {', '.join(map(repr, absent))}; they hold {', '.join(map(repr, shard)) or 'nothing'}")
        counts = {name: len(shard[name]) for name in self._sources}
        if len(set(counts.values())) > 1:
            raise _changed(f"the inputs differ in their number of samples: {counts}")
        count = next(iter(counts.values()), 1)
        samples = [{name: np.asarray(shard[name][index]) for name in self._sources} for index in range(count)]
        for sample in samples:
            for name, spec in self._sources.items():
                _check_tensor(name, sample[name], spec, self._into.get(name))
        return samples


def _check_names(side: str, wanted: Sequence[str], present: Mapping[str, object], complete: bool = True) -> None:
    unknown = [name for name in wanted if name not in present]
    if unknown:
        raise _changed(f"the io mapping names {side} {unknown[0]!r}, which the variant does not have; it has {', '.join(present)}")
    unmapped = [name for name in present if name not in wanted]
    if complete and unmapped:
        raise _changed(f"the io mapping leaves {side} {unmapped[0]!r} of the variant without a source")


def _check_tensor(name: str, value: Tensor, spec: TensorSpec, mapping: TensorMap | None) -> None:
    permutation = mapping.permutation if mapping else ()
    quantised = mapping is not None and mapping.scale is not None
    dtype = "str" if value.dtype.kind in "UO" else value.dtype.name
    if quantised and value.dtype.kind != "f":
        raise _changed(f"input {name!r} is {dtype}, but quantising it needs floating point")
    wanted = (mapping and mapping.dtype) or spec.dtype
    if not quantised and dtype != wanted:
        raise _changed(f"input {name!r} is {dtype}, but the model takes {wanted}")
    if wanted != spec.dtype and not quantised and (value_lost := lost(value, spec.dtype)) is not None:
        raise _changed(f"input {name!r} holds {value_lost}, but the variant takes {spec.dtype}, which does not hold that number")
    if permutation and sorted(permutation) != list(range(value.ndim)):
        raise _changed(f"input {name!r} has {value.ndim} axes, which the permutation {list(permutation)} does not fit")
    shape = tuple(value.shape[axis] for axis in permutation) if permutation else value.shape
    if len(shape) != len(spec.shape) or any(want is not None and want != got for want, got in zip(spec.shape, shape)):
        axes = "[" + ", ".join("?" if d is None else str(d) for d in spec.shape) + "]"
        raise _changed(f"input {name!r} has shape {list(shape)}, but the model takes {axes}")


def _encoder(mapping: TensorMap, spec: TensorSpec) -> Callable[[Tensor], Tensor]:
    try:
        return encoder(mapping, spec.dtype)
    except ValueError as error:
        raise _changed(str(error)) from error


def _changed(detail: str) -> RuntimeFailure:
    return RuntimeFailure(FailureKind.IO_CHANGED, detail)

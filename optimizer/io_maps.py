"""Mappings between the tensors of a model and those of what was made of it: chained, applied to samples, written down.

`TensorMap.source` names the parent's tensor, `TensorMap.name` the child's: child = parent transposed, then quantised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from edgefarm.mapping import decoder, encoder, holds, lost
from edgefarm.model import FailureKind, Io, TensorMap
from edgefarm.tensors import Tensor
from optimizer.dataset import Dataset
from optimizer.passes import PassFailure
from optimizer.signature import Signature, TensorSpec

Run = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def chain(parent: Io | None, child: Io | None) -> Io | None:
    """The mapping from the grandparent's tensors to the child's; None keeps everything as it is.

    Outputs of the parent that the grandparent does not have are left out. Raises ValueError where both quantise one tensor.
    """
    if parent is None or child is None:
        return parent if child is None else child
    return Io(_chain_side(parent.inputs, child.inputs), _chain_side(parent.outputs, child.outputs))


def _chain_side(parent: Sequence[TensorMap], child: Sequence[TensorMap]) -> tuple[TensorMap, ...]:
    made = {m.source: m for m in child}
    return tuple(_chain_one(m, made[m.name]) for m in parent)


def _chain_one(first: TensorMap, second: TensorMap) -> TensorMap:
    if first.scale is not None and (second.scale is not None or second.dtype):
        raise ValueError(f"tensor {second.name!r} would be quantised twice")
    p, q = first.permutation, second.permutation
    permutation = tuple(p[axis] for axis in q) if p and q else p or q
    given = second if first.scale is None else first
    plain = permutation == tuple(range(len(permutation)))
    return TensorMap(first.source, second.name, () if plain else permutation, given.scale, given.zero_point, first.dtype or second.dtype)


def by_order(before: Signature, after: Signature) -> Io | None:
    """The mapping of tensors that a converter renamed, or gave another type, and kept in their order; None where it kept all of it.

    Raises PassFailure(IO_CHANGED) where their number changed.
    """
    sides = []
    for old, new in ((before.inputs, after.inputs), (before.outputs, after.outputs)):
        if len(old) != len(new):
            raise PassFailure(FailureKind.IO_CHANGED, f"{[s.name for s in old]} became {[s.name for s in new]}")
        same = {s.name for s in old} == {s.name for s in new}
        pairs = [(a, next(s for s in new if s.name == a.name) if same else b) for a, b in zip(old, new)]
        sides.append(tuple(TensorMap(a.name, b.name, dtype=a.dtype if _held(a.dtype, b.dtype) else "") for a, b in pairs))
    io = Io(*sides)
    return None if is_plain(io) else io


def _held(dtype: str, other: str) -> bool:
    """Whether a tensor's type is another one now that may hold its numbers."""
    return dtype != other and holds(dtype, other)


def is_plain(io: Io) -> bool:
    """Whether a mapping changes nothing, not even a name: then there is none."""
    return all(m == TensorMap(m.source, m.source) for m in (*io.inputs, *io.outputs))


def feeds(samples: Dataset, io: Io | None, inputs: Sequence[TensorSpec]) -> Dataset:
    """Samples of a source as a variant with these inputs takes them; targets are left behind.

    Raises PassFailure(IO_CHANGED) for a number that the variant's type does not hold.
    """
    if io is None:
        return Dataset(samples.inputs, batch=samples.batch)
    dtypes = {spec.name: spec.dtype for spec in inputs}
    for m in io.inputs:
        refuse_lost(m, samples.inputs[m.source], dtypes[m.name])
    encoded = {m.name: (samples.inputs[m.source], encoder(m, dtypes[m.name])) for m in io.inputs}
    return Dataset({name: np.stack([encode(x) for x in array]) for name, (array, encode) in encoded.items()}, batch=samples.batch)


def refuse_lost(mapping: TensorMap, values: Tensor, dtype: str) -> None:
    """Raises PassFailure(IO_CHANGED) if the variant's input, of type `dtype`, does not hold one of a source input's numbers."""
    if mapping.dtype and mapping.scale is None and (value := lost(values, dtype)) is not None:
        held = f"input {mapping.source!r} holds {value}, but {mapping.name!r} is {dtype}, which does not hold that number"
        raise PassFailure(FailureKind.IO_CHANGED, held)


def through(run: Run, io: Io | None, signature: Signature) -> Run:
    """A variant's function with the names and layouts of the source's tensors."""
    if io is None:
        return run
    dtypes = {spec.name: spec.dtype for spec in signature.inputs}
    encoders = [(m.source, m.name, encoder(m, dtypes[m.name])) for m in io.inputs]
    decoders = [(m.source, m.name, decoder(m)) for m in io.outputs]

    def mapped(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        results = run({name: encode(given[source]) for source, name, encode in encoders})
        return {source: decode(results[name]) for source, name, decode in decoders}

    return mapped


def as_json(io: Io | None) -> dict[str, Any] | None:
    """Plain values."""
    return None if io is None else asdict(io)


def from_json(value: Mapping[str, Any] | None) -> Io | None:
    """Inverse of `as_json`; an empty mapping is None too."""
    if not value:
        return None
    sides = ([TensorMap(**{**t, "permutation": tuple(t["permutation"])}) for t in value[side]] for side in ("inputs", "outputs"))
    return Io(*(tuple(side) for side in sides))

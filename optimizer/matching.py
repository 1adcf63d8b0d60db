"""Finds how the tensors of a network in another format map to the source's, and proves it by running both.

Signatures alone leave several ways: an image of 224 by 224 may be turned, two inputs of one shape may be swapped. Every way that fits
is run on samples of the user's data; the one whose outputs agree is the mapping. Where several agree equally well, names decide,
then the layouts that converters make (channels first or last); what is left is ambiguous and refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgefarm.mapping import decoder, holds
from edgefarm.model import FailureKind, Io, TensorMap
from edgefarm.tensors import Tensor
from optimizer.dataset import Dataset
from optimizer.drift import drift
from optimizer.io_maps import Run, through
from optimizer.passes import PassFailure
from optimizer.signature import Signature, TensorSpec
from optimizer.ways import Way, changed, layouts, plain_name, rounds, unless_float32

_ALIKE = 2.0  # drifts within this factor say nothing about which way is right
_NOTHING = 1e-5  # a drift that is due to the order of additions
_ENOUGH_FOR_A_TIE = 8  # indices, of which one may differ
_INDEX_BYTES = 4  # from this size on integers are indices and counts, below it quantised numbers and pixels
Outputs = Mapping[str, Sequence[Tensor]]


def match(source: Signature, run_source: Run, other: Signature, run_other: Run, samples: Dataset, limit: float) -> Io:
    """The mapping from the source's tensors to the other's.

    Args:
        samples: as the source takes them; both models are run on all of them.
        limit: largest drift of an output at which both are the same network.

    Raises:
        PassFailure: IO_CHANGED where nothing fits or several ways agree, NUMERIC where what fits does not agree; names the tensor.
    """
    want = _outputs(run_source, samples)
    tried: list[tuple[Way, list[Way]]] = []
    agreeing: list[tuple[Way, list[Way]]] = []
    refused: list[PassFailure] = []
    for ways in rounds(source, other, samples):
        for way in ways:
            try:
                got = _outputs(through(run_other, _into(way, other), other), samples)
                tried.append((way, [_best_output(spec, want[spec.name], other, got) for spec in source.outputs]))
            except PassFailure as failure:  # fed that way it does not run, or gives other shapes
                refused.append(failure)
        if agreeing := [(way, outs) for way, outs in tried if _worst(outs) <= limit]:
            break
    if not tried:
        raise refused[0]
    if not agreeing:
        raise _disagreement(source, min(tried, key=lambda t: _worst(t[1])), limit)
    best = min(_worst(outs) for _, outs in agreeing)
    close = [(w, o) for w, o in agreeing if _worst(o) <= max(_NOTHING, _ALIKE * best)]
    first = min(close, key=lambda t: t[0].rank)
    equal = [w for w, _ in close if w.rank == first[0].rank]
    if len(equal) > 1:
        raise _ambiguity(equal[0], equal[1])
    return Io(first[0].maps, _distinct(tuple(m for way in first[1] for m in way.maps)))


def _outputs(run: Run, samples: Dataset) -> dict[str, list[Tensor]]:
    rows = [run(samples.feeds(i)) for i in range(samples.n)]
    return {name: [row[name] for row in rows] for name in rows[0]}


def _into(way: Way, other: Signature) -> Io:
    """Feeds the inputs that way and leaves the outputs as they are."""
    return Io(way.maps, tuple(TensorMap(spec.name, spec.name) for spec in other.outputs))


def _worst(ways: Sequence[Way]) -> float:
    return max(way.drift for way in ways)


def _best_output(spec: TensorSpec, want: Sequence[Tensor], other: Signature, got: Outputs) -> Way:
    """The other's output that is nearest to the source's; of several that are equally near the one that is named alike."""
    found: list[Way] = []
    for candidate in other.outputs:
        arrays = got[candidate.name]
        named = int(plain_name(spec.name) == plain_name(candidate.name))
        for permutation, natural in layouts(want[0].shape, arrays[0].shape):
            mapping = _out(spec.name, want[0].dtype, candidate, arrays[0].dtype, permutation)
            decoded = [decoder(mapping)(a) for a in arrays] if mapping else []
            if mapping and all(a.shape == b.shape for a, b in zip(want, decoded)):
                found.append(Way((mapping,), named, natural, _apart(want, decoded)))
    if not found:
        there = ", ".join(f"{s.name!r} {s}" for s in other.outputs)
        raise changed(f"output {spec.name!r} of the source, {want[0].dtype.name}{list(want[0].shape)}, fits none of {there}")
    best = min(way.drift for way in found)
    return min((w for w in found if w.drift <= max(_NOTHING, _ALIKE * best)), key=lambda way: (way.rank, way.drift))


def _out(name: str, wanted: np.dtype[Any], candidate: TensorSpec, got: np.dtype[Any], permutation: tuple[int, ...]) -> TensorMap | None:
    """How an output of type `got` becomes the source's, of type `wanted`; None where it can't."""
    if got == wanted or (got.kind == wanted.kind and got.kind in "US"):
        return TensorMap(name, candidate.name, permutation)
    if candidate.scale is not None and wanted.kind == "f":
        dtype = unless_float32(wanted.name)
        return TensorMap(name, candidate.name, permutation, candidate.scale, candidate.zero_point, dtype)
    return TensorMap(name, candidate.name, permutation, dtype=wanted.name) if holds(wanted.name, got.name) else None


def _apart(want: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Drift of numbers; of indices, text and truth values the share that differs: class 7 is not nearly class 8."""
    kind = want[0].dtype
    if kind.kind == "f" or (kind.kind in "iu" and kind.itemsize < _INDEX_BYTES):
        return drift(want, got)
    differing, count = sum(int(np.sum(a != b)) for a, b in zip(want, got)), sum(a.size for a in want)
    tie = int(count >= _ENOUGH_FOR_A_TIE)  # between two that were equal but for rounding
    return max(0, differing - tie) / max(1, count)


def _distinct(maps: tuple[TensorMap, ...]) -> tuple[TensorMap, ...]:
    """Raises PassFailure where two outputs of the source were found in one of the other's."""
    names = [m.name for m in maps]
    if twice := next((m for m in maps if names.count(m.name) > 1), None):
        both = [m.source for m in maps if m.name == twice.name]
        raise changed(f"outputs {both[0]!r} and {both[1]!r} of the source both look like its output {twice.name!r}; name them alike")
    return maps


def _disagreement(source: Signature, nearest: tuple[Way, Sequence[Way]], limit: float) -> PassFailure:
    way, outs = nearest
    worst = max(outs, key=lambda o: o.drift)
    fed = ", ".join(f"{m.source!r} as {m.name!r}{f' transposed by {list(m.permutation)}' if m.permutation else ''}" for m in way.maps)
    off = f"{worst.drift:.3g}" if math.isfinite(worst.drift) else "not finite"
    return PassFailure(
        FailureKind.NUMERIC,
        f"it is not the same network: fed with {fed}, its output {worst.maps[0].name!r} is off by {off} from "
        f"{worst.maps[0].source!r} (relative L2, of indices the share), allowed is {limit:g}",
    )


def _ambiguity(one: Way, two: Way) -> PassFailure:
    a, b = next((a, b) for a, b in zip(one.maps, two.maps) if a != b)
    how = "in two layouts" if a.name == b.name else f"as {a.name!r} and as {b.name!r}"
    return changed(f"input {a.source!r} may be fed {how}, and both give the source's outputs; export it with the source's input names")

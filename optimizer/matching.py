"""Finds how the tensors of a network in another format map to the source's, and proves it by running both.

Signatures alone leave several ways: an image of 224 by 224 may be turned, two inputs of one shape may be swapped. Every way that fits
is run on samples of the user's data; the one whose outputs agree is the mapping. Where several agree equally well, names decide,
then the layouts that converters make (channels first or last); what is left is ambiguous and refused.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgefarm.mapping import decoder
from edgefarm.model import FailureKind, Io, TensorMap
from edgefarm.tensors import Tensor
from optimizer.dataset import Dataset
from optimizer.drift import drift
from optimizer.io_maps import Run, through
from optimizer.passes import PassFailure
from optimizer.signature import Signature, TensorSpec

_MOST_WAYS = 64  # of feeding the inputs; each is run
_ALIKE = 2.0  # drifts within this factor say nothing about which way is right
_NOTHING = 1e-5  # a drift that is due to the order of additions
Outputs = Mapping[str, Sequence[Tensor]]


@dataclass(frozen=True)
class _Way:
    """A way that may be right. `named`: tensors that are called alike; `natural`: whether all layouts are such as converters make."""

    maps: tuple[TensorMap, ...]
    named: int
    natural: bool
    drift: float = 0.0

    @property
    def rank(self) -> tuple[int, bool]:
        return -self.named, not self.natural


def match(source: Signature, run_source: Run, other: Signature, run_other: Run, samples: Dataset, limit: float) -> Io:
    """The mapping from the source's tensors to the other's.

    Args:
        samples: as the source takes them; both models are run on all of them.
        limit: largest drift of an output at which both are the same network.

    Raises:
        PassFailure: IO_CHANGED where nothing fits or several ways agree, NUMERIC where what fits does not agree; names the tensor.
    """
    want = _outputs(run_source, samples)
    tried: list[tuple[_Way, list[_Way]]] = []
    for way in _ways_in(source, other, samples):
        got = _outputs(through(run_other, _into(way, other), other), samples)
        tried.append((way, [_best_output(spec, want[spec.name], other, got) for spec in source.outputs]))
    agreeing = [(way, outs) for way, outs in tried if _worst(outs) <= limit]
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


def _into(way: _Way, other: Signature) -> Io:
    """Feeds the inputs that way and leaves the outputs as they are."""
    return Io(way.maps, tuple(TensorMap(spec.name, spec.name) for spec in other.outputs))


def _worst(ways: Sequence[_Way]) -> float:
    return max(way.drift for way in ways)


def _ways_in(source: Signature, other: Signature, samples: Dataset) -> list[_Way]:
    if len(source.inputs) != len(other.inputs):
        raise _changed(f"it has {_count(other.inputs, 'input')}, the source has {_count(source.inputs, 'input')}")
    fed = samples.feeds(0)
    ways: list[_Way] = []
    for chosen in itertools.permutations(other.inputs):
        pairs = list(zip(source.inputs, chosen))
        options = [list(_fits(a, b, fed[a.name].shape)) for a, b in pairs]
        named = sum(_plain_name(a.name) == _plain_name(b.name) for a, b in pairs)
        for maps in itertools.product(*options):
            ways.append(_Way(tuple(m for m, _ in maps), named, all(natural for _, natural in maps)))
            if len(ways) > _MOST_WAYS:
                raise _changed("its inputs fit those of the source in too many ways; export it with the source's input names")
    if ways and (sure := [w for w in ways if w.named == len(source.inputs)]):
        return sure
    if not ways:
        raise _nothing_fits(source, other, fed)
    return ways


def _nothing_fits(source: Signature, other: Signature, fed: Mapping[str, Tensor]) -> PassFailure:
    there = ", ".join(f"{spec.name!r} {spec}" for spec in other.inputs)
    for spec in source.inputs:
        if not any(True for b in other.inputs for _ in _fits(spec, b, fed[spec.name].shape)):
            return _changed(f"input {spec.name!r} of the source, fed as {spec.dtype}{list(fed[spec.name].shape)}, fits none of {there}")
    return _changed(f"the source's inputs don't fit {there} all at once")


def _fits(a: TensorSpec, b: TensorSpec, shape: tuple[int, ...]) -> Iterator[tuple[TensorMap, bool]]:
    """Ways to feed `b` with what `a` is fed as, and whether converters make them."""
    quantised = a.dtype != b.dtype
    if quantised and (b.scale is None or not a.dtype.startswith("float")):
        return
    for permutation, natural in layouts(shape, b.shape):
        scale, zero = (b.scale, b.zero_point) if quantised else (None, None)
        yield TensorMap(a.name, b.name, permutation, scale, zero), natural


def layouts(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> Iterator[tuple[tuple[int, ...], bool]]:
    """Permutations that bring `shape` into the form of `wanted`, best expectations first, no two of equal effect.

    The identity is (). Moving an axis of one element has no effect on the values, so it makes no new way.
    """
    rank = len(shape)
    if rank != len(wanted):
        return
    identity = tuple(range(rank))
    converters = [identity, (0, *range(2, rank), 1), (0, rank - 1, *range(1, rank - 1))] if rank > 2 else [identity]
    seen: set[tuple[int, ...]] = set()
    for permutation in dict.fromkeys([*converters, *itertools.permutations(identity)]):
        effect = tuple(axis for axis in permutation if shape[axis] != 1)
        if effect in seen or any(want not in (None, shape[axis]) for want, axis in zip(wanted, permutation)):
            continue
        seen.add(effect)
        yield () if permutation == identity else permutation, permutation in converters


def _best_output(spec: TensorSpec, want: Sequence[Tensor], other: Signature, got: Outputs) -> _Way:
    """The other's output that is nearest to the source's; of several that are equally near the one that is named alike."""
    found: list[_Way] = []
    for candidate in other.outputs:
        arrays = got[candidate.name]
        quantised = want[0].dtype != arrays[0].dtype and candidate.scale is not None
        for permutation, natural in layouts(want[0].shape, arrays[0].shape):
            scale, zero = (candidate.scale, candidate.zero_point) if quantised else (None, None)
            mapping = TensorMap(spec.name, candidate.name, permutation, scale, zero)
            decoded = [decoder(mapping)(a) for a in arrays]
            named = int(_plain_name(spec.name) == _plain_name(candidate.name))
            if decoded[0].dtype == want[0].dtype and all(a.shape == b.shape for a, b in zip(want, decoded)):
                found.append(_Way((mapping,), named, natural, _apart(want, decoded)))
    if not found:
        there = ", ".join(f"{s.name!r} {s}" for s in other.outputs)
        raise _changed(f"output {spec.name!r} of the source, {want[0].dtype.name}{list(want[0].shape)}, fits none of {there}")
    best = min(way.drift for way in found)
    return min((w for w in found if w.drift <= max(_NOTHING, _ALIKE * best)), key=lambda way: way.rank)


def _apart(want: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Drift of numbers; of text and truth values the share that differs."""
    if want[0].dtype.kind in "fiu":
        return drift(want, got)
    return float(np.mean([np.mean(a != b) for a, b in zip(want, got)]))


def _distinct(maps: tuple[TensorMap, ...]) -> tuple[TensorMap, ...]:
    """Raises PassFailure where two outputs of the source were found in one of the other's."""
    names = [m.name for m in maps]
    if twice := next((m for m in maps if names.count(m.name) > 1), None):
        both = [m.source for m in maps if m.name == twice.name]
        raise _changed(f"outputs {both[0]!r} and {both[1]!r} of the source both look like its output {twice.name!r}; name them alike")
    return maps


def _plain_name(name: str) -> str:
    """A name without what converters add: `serving_default_x:0` is `x`."""
    return re.sub(r":\d+$", "", name).removeprefix("serving_default_").lower()


def _disagreement(source: Signature, nearest: tuple[_Way, Sequence[_Way]], limit: float) -> PassFailure:
    way, outs = nearest
    worst = max(outs, key=lambda o: o.drift)
    fed = ", ".join(f"{m.source!r} as {m.name!r}{f' transposed by {list(m.permutation)}' if m.permutation else ''}" for m in way.maps)
    off = f"{worst.drift:.3g}" if math.isfinite(worst.drift) else "not finite"
    return PassFailure(
        FailureKind.NUMERIC,
        f"it is not the same network: fed with {fed}, its output {worst.maps[0].name!r} is off by {off} (relative L2) from "
        f"{worst.maps[0].source!r}, allowed is {limit:g}",
    )


def _ambiguity(one: _Way, two: _Way) -> PassFailure:
    a, b = next((a, b) for a, b in zip(one.maps, two.maps) if a != b)
    how = "in two layouts" if a.name == b.name else f"as {a.name!r} and as {b.name!r}"
    return _changed(f"input {a.source!r} may be fed {how}, and both give the source's outputs; export it with the source's input names")


def _count(specs: Sequence[TensorSpec], what: str) -> str:
    return f"{len(specs)} {what}{'' if len(specs) == 1 else 's'}"


def _changed(detail: str) -> PassFailure:
    return PassFailure(FailureKind.IO_CHANGED, detail)

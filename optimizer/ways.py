"""Ways in which the inputs of one network may be those of another: names, types and layouts that fit. Pure."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgefarm.mapping import holds, lost
from edgefarm.model import FailureKind, TensorMap
from edgefarm.tensors import Tensor
from optimizer.dataset import Dataset
from optimizer.passes import PassFailure
from optimizer.signature import Signature, TensorSpec

_MOST_WAYS = 64  # of feeding the inputs; each is run
_MOST_PAIRINGS = 10_000  # looked at to find them
Option = tuple[TensorMap, bool]  # a way to feed one input, and whether converters make it


@dataclass(frozen=True)
class Way:
    """A way that may be right. `named`: tensors that are called alike; `natural`: whether all layouts are such as converters make."""

    maps: tuple[TensorMap, ...]
    named: int
    natural: bool
    drift: float = 0.0

    @property
    def rank(self) -> tuple[int, bool]:
        """Least first."""
        return -self.named, not self.natural


def rounds(source: Signature, other: Signature, samples: Dataset) -> Iterator[list[Way]]:
    """Ways to try: first those in which all inputs keep their names; the others only if none of these is right.

    Raises PassFailure where there is no way, or too many to try them all.
    """
    if len(source.inputs) != len(other.inputs):
        raise changed(f"it has {_count(other.inputs, 'input')}, the source has {_count(source.inputs, 'input')}")
    options = {a.name: {b.name: found for b in other.inputs if (found := _fits(a, b, samples.inputs[a.name]))} for a in source.inputs}
    plain = {plain_name(b.name): b.name for b in other.inputs}
    same = {a: plain.get(plain_name(a), "") for a in options}
    named = len(set(same.values())) == len(same) and all(b in options[a] for a, b in same.items())
    if named:
        yield _ways([same], options)
    try:
        others = [pairing for pairing in _pairings(options) if not named or pairing != same]
        ways = _ways(others, options)
    except PassFailure:
        if not named:
            raise
        return  # that the names mislead is the less likely, the more inputs there are
    if ways:
        yield ways
    elif not named:
        raise _nothing_fits(source, other, samples)


def _pairings(options: Mapping[str, Mapping[str, object]]) -> list[dict[str, str]]:
    """Each way to give every input of the source one of the other's that fits it. Raises PassFailure where they are too many."""
    found: list[dict[str, str]] = []
    for count, pairing in enumerate(_paired(sorted(options, key=lambda name: len(options[name])), options, frozenset())):
        if count >= _MOST_PAIRINGS:
            raise _too_many()
        if pairing is not None:
            found.append(pairing)
    return found


def _paired(wanted: Sequence[str], options: Mapping[str, Mapping[str, object]], taken: frozenset[str]) -> Iterator[dict[str, str] | None]:
    """Pairings of `wanted` with what is not `taken`; None for a dead end, so that those are counted too."""
    if not wanted:
        yield {}
        return
    free = [name for name in options[wanted[0]] if name not in taken]
    if not free:
        yield None
    for name in free:
        for rest in _paired(wanted[1:], options, taken | {name}):
            yield None if rest is None else {wanted[0]: name, **rest}


def _ways(pairings: Sequence[Mapping[str, str]], options: Mapping[str, Mapping[str, Sequence[Option]]]) -> list[Way]:
    """All layouts of some pairings; where those are too many the layouts that converters make. Raises PassFailure if they still are."""
    for wanted in ((False, True), (True,)):
        chosen = [{a: [o for o in options[a][b] if o[1] in wanted] for a, b in pairing.items()} for pairing in pairings]
        if sum(math.prod(map(len, each.values())) for each in chosen) <= _MOST_WAYS:
            break
    else:
        raise _too_many()
    ways = []
    for pairing, layouts_ in zip(pairings, chosen):
        named = sum(plain_name(a) == plain_name(b) for a, b in pairing.items())
        for maps in itertools.product(*(layouts_[name] for name in options)):
            ways.append(Way(tuple(m for m, _ in maps), named, all(natural for _, natural in maps)))
    return ways


def _nothing_fits(source: Signature, other: Signature, samples: Dataset) -> PassFailure:
    there = ", ".join(f"{spec.name!r} {spec}" for spec in other.inputs)
    for spec in source.inputs:
        fed = samples.inputs[spec.name]
        found = [(b, lost(fed, b.dtype)) for b in other.inputs if any(layouts(fed.shape[1:], b.shape)) and holds(spec.dtype, b.dtype)]
        if not any(_fits(spec, b, fed) for b in other.inputs):
            why = "".join(f"; {b.name!r} does not hold {value}" for b, value in found if value is not None)
            return changed(f"input {spec.name!r} of the source, fed as {spec.dtype}{list(fed.shape[1:])}, fits none of {there}{why}")
    return changed(f"the source's inputs don't fit {there} all at once")


def _fits(a: TensorSpec, b: TensorSpec, fed: Tensor) -> list[Option]:
    """Ways to feed `b` with what `a` is fed as (the first axis is the sample), and whether converters make them."""
    scale = zero = None
    dtype = ""
    if a.dtype != b.dtype:
        if b.scale is not None and a.dtype.startswith("float"):
            scale, zero, dtype = b.scale, b.zero_point, unless_float32(a.dtype)
        elif holds(a.dtype, b.dtype) and lost(fed, b.dtype) is None:
            dtype = a.dtype
        else:
            return []
    return [
        (TensorMap(a.name, b.name, permutation, scale, zero, dtype), natural) for permutation, natural in layouts(fed.shape[1:], b.shape)
    ]


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


def unless_float32(dtype: str) -> str:
    """A mapping that quantises names the source's type only where it is not float32."""
    return "" if dtype == "float32" else dtype


def plain_name(name: str) -> str:
    """A name without what converters add: `serving_default_x:0` is `x`."""
    return re.sub(r":\d+$", "", name).removeprefix("serving_default_").lower()


def _too_many() -> PassFailure:
    return changed("its inputs fit those of the source in too many ways; export it with the source's input names")


def _count(specs: Sequence[TensorSpec], what: str) -> str:
    return f"{len(specs)} {what}{'' if len(specs) == 1 else 's'}"


def changed(detail: str) -> PassFailure:
    """An IO_CHANGED."""
    return PassFailure(FailureKind.IO_CHANGED, detail)

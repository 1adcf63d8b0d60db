"""What every output of a pass must stand before it may become a candidate. Runs in the pass's process; a failure is a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgefarm.errors import UserError
from edgefarm.model import FailureKind, Io, TensorMap
from optimizer.dataset import Dataset
from optimizer.drift import Distance
from optimizer.engines import Run, open_model
from optimizer.io_maps import through
from optimizer.passes import Pass, PassFailure
from optimizer.source import Signature, TensorSpec, inspect_model

_OTHERS = 0.5  # a rough quantiser changes some classes, a broken one most
VERSION = 2  # raised when a check judges otherwise; part of the cache key


class Unchanged(Exception):
    """The pass left no evidence of its work."""


def check(parent: Path, output: Path, used: Pass, probe: Dataset | None, io: Io | None = None) -> float | None:
    """Checks a pass's output against its parent, whose tensors `io` maps to the output's.

    Returns:
        The largest drift of an output over the probe samples; None without samples, or where no output has a distance.

    Raises:
        Unchanged: the evidence that the pass names is not there.
        PassFailure: LOAD, UNSUPPORTED_OP, IO_CHANGED or NUMERIC, with the detail that a person needs.
    """
    before = inspect_model(parent)
    try:
        after = inspect_model(output)
    except UserError as error:
        raise PassFailure(FailureKind.LOAD, f"the pass wrote a file that is no model: {error}") from error
    if changed := io_difference(before, _seen_through(io, after), fixed=used.evidence == "format"):
        raise PassFailure(FailureKind.IO_CHANGED, changed)
    if parent.read_bytes() == output.read_bytes():
        raise Unchanged("the same bytes")
    EVIDENCE[used.evidence](parent, output, before, after)
    run = through(open_model(output), io, after)
    return None if probe is None else _compare_outputs(open_model(parent), run, before, used.drift, probe)


def io_difference(before: Signature, after: Signature, *, fixed: bool = False) -> str:
    """How inputs or outputs differ in name, dtype, rank or size, as text; empty if whoever ran the one can run the other.

    `fixed`: an input's open axis may have become the size that is fed, as in formats that know no other.
    """
    for side, old, new in (("input", before.inputs, after.inputs), ("output", before.outputs, after.outputs)):
        if [s.name for s in old] != [s.name for s in new]:
            return f"{side}s were {[s.name for s in old]}, are {[s.name for s in new]}"
        for was, now in zip(old, new):
            if was.dtype != now.dtype or not _fits(was, now, strict=side == "input" and not fixed):
                return f"{side} {was.name!r} was {was}, is {now}"
    return ""


def _seen_through(io: Io | None, after: Signature) -> Signature:
    """The output's signature in the parent's terms. Raises PassFailure where the mapping names what is not there."""
    if io is None:
        return after
    sides = []
    for maps, specs in ((io.inputs, after.inputs), (io.outputs, after.outputs)):
        known = {spec.name: spec for spec in specs}
        if unknown := [m.name for m in maps if m.name not in known]:
            raise PassFailure(FailureKind.IO_CHANGED, f"the mapping names {unknown[0]!r}, there are {', '.join(map(repr, known))}")
        sides.append(tuple(_turned_back(m, known[m.name]) for m in maps))
    return replace(after, inputs=sides[0], outputs=sides[1])


def _turned_back(mapping: TensorMap, spec: TensorSpec) -> TensorSpec:
    shape = spec.shape
    if mapping.permutation and len(mapping.permutation) == len(shape):
        shape = tuple(shape[mapping.permutation.index(axis)] for axis in range(len(shape)))
    return replace(spec, name=mapping.source, shape=shape, dtype=mapping.dtype or ("float32" if mapping.scale is not None else spec.dtype))


def _fits(was: TensorSpec, now: TensorSpec, *, strict: bool) -> bool:
    """Ranks and fixed sizes agree; an input that took any size must still do so."""
    if not (was.ranked and now.ranked):
        return True
    if len(was.shape) != len(now.shape):
        return False
    return all(b is None or a == b or (a is None and not strict) for a, b in zip(was.shape, now.shape))


def _integer_evidence(parent: Path, output: Path, before: Signature, after: Signature) -> None:
    if after.integers <= before.integers:
        raise Unchanged("no integer operator and no 8-bit weight was added")


def _float16_evidence(parent: Path, output: Path, before: Signature, after: Signature) -> None:
    if after.weight_dtypes.get("float16", 0) <= before.weight_dtypes.get("float16", 0):
        raise Unchanged("no float16 weight was added")


def _structure_evidence(parent: Path, output: Path, before: Signature, after: Signature) -> None:
    from optimizer import onnx_facts, onnx_files

    if onnx_facts.structure(onnx_files.load(parent)) == onnx_facts.structure(onnx_files.load(output)):
        raise Unchanged("operators, attributes and weights are the same")


def _own_evidence(parent: Path, output: Path, before: Signature, after: Signature) -> None:
    """The pass has looked itself, where only it can: in what the output was converted from."""


def _format_evidence(parent: Path, output: Path, before: Signature, after: Signature) -> None:
    if after.format == before.format:
        raise Unchanged(f"the output is {after.format}, as its parent is")


EVIDENCE: Mapping[str, Callable[[Path, Path, Signature, Signature], None]] = {
    "integer": _integer_evidence,
    "float16": _float16_evidence,
    "structure": _structure_evidence,
    "format": _format_evidence,
    "own": _own_evidence,
}


def _compare_outputs(parent: Run, output: Run, signature: Signature, limit: float, probe: Dataset) -> float | None:
    """The largest drift.

    Raises PassFailure if an output is not finite where the parent's is, has another shape, or is farther from it than `limit`.

    Where all outputs are indices, truth values or text, which have no distance, most have to be the parent's.
    """
    distances = {spec.name: Distance() for spec in signature.outputs}
    others = {spec.name: _Others() for spec in signature.outputs}
    floats = False
    for index in range(probe.n):
        sample = probe.feeds(index)
        want, got = parent(sample), output(sample)
        floats = floats or any(np.asarray(value).dtype.kind == "f" for value in want.values())
        for spec in signature.outputs:
            pair = want[spec.name], got[spec.name]
            if _is_comparable(spec, *pair, sample=index):
                distances[spec.name].add(*pair)
            else:
                others[spec.name].add(*pair)
    compared = {name: distance for name, distance in distances.items() if distance.n}
    for name, distance in compared.items():
        if distance.value > limit:
            raise PassFailure(FailureKind.NUMERIC, f"output {name!r} is off by {distance.value:.3g} (relative L2), allowed is {limit:g}")
    for name, other in others.items():
        if not floats and other.share > _OTHERS:
            raise PassFailure(FailureKind.NUMERIC, f"output {name!r}: {other.share:.0%} of the values are others than the parent's")
    return max((distance.value for distance in compared.values()), default=None)


@dataclass
class _Others:
    """How many values of an output are others than the parent's, as far as shapes agree."""

    differing: int = 0
    count: int = 0

    def add(self, want: Any, got: Any) -> None:
        a, b = np.asarray(want), np.asarray(got)
        if a.shape == b.shape:
            self.differing += int(np.sum(a != b))
            self.count += a.size

    @property
    def share(self) -> float:
        return self.differing / max(1, self.count)


def _is_comparable(spec: TensorSpec, want: Any, got: Any, *, sample: int) -> bool:
    """Whether two outputs have a distance. Raises PassFailure for another shape, or what is not finite where the parent's is."""
    if not isinstance(want, np.ndarray) or want.dtype.kind != "f":
        return False  # indices and text have none
    if want.shape != got.shape:
        if None in spec.shape or not spec.ranked:
            return False  # a size that depends on the data: boxes that were found
        raise PassFailure(FailureKind.IO_CHANGED, f"output {spec.name!r} had shape {list(want.shape)}, has {list(got.shape)}")
    usable = np.isfinite(want)
    if not np.isfinite(got[usable]).all():
        value = "NaN" if np.isnan(got[usable]).any() else "infinity"
        raise PassFailure(FailureKind.NUMERIC, f"output {spec.name!r} holds {value} for probe sample {sample}, its parent's is finite")
    return True

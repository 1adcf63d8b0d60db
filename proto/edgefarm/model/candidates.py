"""What is measured: artifacts, and candidates made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Union

from edgefarm.digest import canonical_json

Scalar = Union[bool, int, float, str]


Options = Mapping[str, Scalar]


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact."""

    name: str
    digest: str
    bytes: int


@dataclass(frozen=True)
class Artifact:
    """Immutable bytes, addressed by digest (see `edgefarm.digest.artifact_digest`); `bytes` is the sum over `files`."""

    digest: str
    bytes: int
    format: str
    files: tuple[FileEntry, ...]

    @property
    def main_file(self) -> str:
        """Name of the file that a runtime opens."""
        suffix = {"openvino": ".xml"}.get(self.format, f".{self.format}")
        return next((f.name for f in self.files if f.name.endswith(suffix)), self.files[0].name)


@dataclass(frozen=True)
class TensorMap:
    """Variant tensor `name` = source tensor `source` transposed by `permutation`, then quantised (real = scale * (q - zero_point)).

    `dtype`: numpy's name of the source's type where the variant holds the same numbers in another; empty: types are equal, or the
    source's is float32 and quantised.
    """

    source: str
    name: str
    permutation: tuple[int, ...] = ()
    scale: float | None = None
    zero_point: int | None = None
    dtype: str = ""


@dataclass(frozen=True)
class Io:
    """How a variant's inputs and outputs map to the source's."""

    inputs: tuple[TensorMap, ...]
    outputs: tuple[TensorMap, ...]


@dataclass(frozen=True)
class Candidate:
    """Variant x runtime x options; `io` is None where the variant takes and gives exactly what the source does."""

    artifact: Artifact
    runtime: str
    options: Options = field(default_factory=dict)
    io: Io | None = None

    @property
    def key(self) -> str:
        """16 hex digits that equal candidates share, on every machine."""
        mapping = None if self.io is None else [[_stated(t) for t in side] for side in (self.io.inputs, self.io.outputs)]
        identity = [self.artifact.digest, self.runtime, dict(self.options), mapping]
        return hashlib.sha256(canonical_json(identity)).hexdigest()[:16]


def _stated(tensor: TensorMap) -> dict[str, object]:
    """Its fields, without a `dtype` that says nothing: keys of before it was there stay as they are."""
    return {name: value for name, value in vars(tensor).items() if name != "dtype" or value}

"""Samples as the model takes them: .npz in, arrays whose first axis is the sample out, each sample exactly what is fed.

An array with the input's rank is batched on its first axis: a dynamic batch is fed one by one, a fixed batch b in groups of b.
An array with one axis more holds whole inputs (a state of shape [2, 1, 128]: [N, 2, 1, 128]).
"""

from __future__ import annotations

import difflib
import hashlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edgefarm.digest import PREFIX, atomic_write, canonical_json
from edgefarm.errors import UserError
from edgefarm.tensors import Tensor, pack, unpack
from optimizer.source import Signature, TensorSpec, inspect_model

__all__ = ["Dataset", "Signature", "TensorSpec", "inspect_model", "load_npz"]


def load_npz(path: Path) -> dict[str, Tensor]:
    """Arrays of an .npz by name. Raises UserError for a missing, broken or pickled file."""
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; give an .npz file (numpy.savez)")
    try:
        archive: Any = np.load(path, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise UserError(f"{path}: holds one array without a name; save it with numpy.savez(path, NAME=array)")
        with archive:
            return {name: archive[name] for name in archive.files}
    except ValueError as error:
        if "pickle" in str(error).lower():
            raise UserError(f"{path}: holds pickled objects, which are never read: they can run code; save plain arrays") from error
        raise UserError(f"{path}: not a readable .npz file: {error}") from error
    # zipfile raises NotImplementedError for a compression that it does not know.
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, OSError, NotImplementedError) as error:
        raise UserError(f"{path}: not a whole .npz file: {error}; save or copy it again") from error


@dataclass(frozen=True)
class Dataset:
    """Samples of all inputs, and what belongs to them.

    Attributes:
        inputs: input name -> array[n, *shape of one fed input].
        targets: name -> array whose first axis is the sample: [n, …], or [n, b, …] where b rows are fed at once.
        batch: rows of the user's arrays that one sample holds; 0 where the arrays hold whole inputs.
    """

    inputs: Mapping[str, Tensor]
    targets: Mapping[str, Tensor] = field(default_factory=dict)
    batch: int = 1

    @classmethod
    def load(cls, path: Path, signature: Signature, with_targets: bool) -> Dataset:
        """Reads an .npz for a model. Without `with_targets` arrays that are no input are left out.

        Raises:
            UserError: names file and array, what is expected, what was got, and how to mend it.
        """
        arrays = load_npz(path)
        return _Fitter(path, signature, arrays).dataset(with_targets)

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(next(iter(self.inputs.values())))

    def feeds(self, index: int) -> dict[str, Tensor]:
        """What is fed for one sample."""
        return {name: array[index] for name, array in self.inputs.items()}

    def take(self, indices: Sequence[int] | Tensor) -> Dataset:
        """The samples at `indices`, in that order."""
        chosen = np.asarray(indices, dtype=np.intp)
        return Dataset({k: v[chosen] for k, v in self.inputs.items()}, {k: v[chosen] for k, v in self.targets.items()}, self.batch)

    def split(self, seed: int, fraction: float) -> tuple[Dataset, Dataset]:
        """Two disjoint parts, the first with round(fraction * n) samples; equal for an equal seed, order kept."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must lie in 0..1, got {fraction}")
        order = np.random.default_rng(seed).permutation(self.n)
        cut = round(fraction * self.n)
        return self.take(np.sort(order[:cut])), self.take(np.sort(order[cut:]))

    @cached_property
    def digest(self) -> str:
        """`sha256:…` over names, dtypes, shapes and values of inputs and targets."""
        state = hashlib.sha256(str(self.batch).encode())
        for side in (self.inputs, self.targets):
            for name in sorted(side):
                array = np.ascontiguousarray(side[name])
                state.update(canonical_json([name, array.dtype.str, list(array.shape)]))
                state.update(array.reshape(-1).view(np.uint8).data if array.nbytes else b"")
        return PREFIX + state.hexdigest()

    def save(self, path: Path) -> None:
        """Writes inputs and targets for another process, durably."""
        sides = (("input", self.inputs), ("target", self.targets))
        atomic_write(path, pack({f"{side} {name}": array for side, arrays in sides for name, array in arrays.items()}))

    @classmethod
    def open(cls, path: Path) -> Dataset:
        """Inverse of `save`."""
        sides: dict[str, dict[str, Tensor]] = {"input": {}, "target": {}}
        for written, samples in unpack(path).items():
            side, name = written.split(" ", 1)
            sides[side][name] = np.asarray(samples)
        return cls(sides["input"], sides["target"])

    def save_inputs(self, path: Path) -> None:
        """Writes the inputs for another process, durably."""
        atomic_write(path, pack({name: list(array) for name, array in self.inputs.items()}))

    @classmethod
    def open_inputs(cls, path: Path) -> Dataset:
        """Inverse of `save_inputs`."""
        return cls({name: np.asarray(samples) for name, samples in unpack(path).items()})


class _Fitter:
    """Brings one file's arrays into the form of a model's inputs."""

    def __init__(self, path: Path, signature: Signature, arrays: Mapping[str, Tensor]) -> None:
        self.path, self.signature, self.arrays = path, signature, arrays
        self.found: dict[str, Tensor] = {}

    def dataset(self, with_targets: bool) -> Dataset:
        if not self.signature.inputs:
            raise UserError(f"{self.path}: the model takes no inputs, so there is nothing to measure it with")
        self.found = {spec.name: self._array(spec) for spec in self.signature.inputs}
        batch = self._batch()
        fitted = {spec.name: self._fit(spec, self.found[spec.name], batch) for spec in self.signature.inputs}
        counts = {name: len(array) for name, array in fitted.items()}
        if len(set(counts.values())) > 1:
            raise self._wrong("inputs hold unequal numbers of samples: " + ", ".join(f"{k!r} {v}" for k, v in counts.items()))
        n = next(iter(counts.values()))
        if n == 0:
            raise self._wrong("holds no samples: the first axis is empty")
        names = [name for name in self.arrays if name not in fitted] if with_targets else []
        return Dataset(fitted, {name: self._target(name, n, batch) for name in names}, batch)

    def _wrong(self, text: str) -> UserError:
        return UserError(f"{self.path}: {text}")

    def _array(self, spec: TensorSpec) -> Tensor:
        if spec.name not in self.arrays:
            names = sorted(self.arrays)
            near = difflib.get_close_matches(spec.name, names, n=1, cutoff=0.5)
            hint = f"is {near[0]!r} meant?" if near else f"it holds {', '.join(map(repr, names)) or 'nothing'}"
            raise self._wrong(f"no array for the model's input {spec.name!r} ({spec}); {hint} Save it under the input's name")
        array = self.arrays[spec.name]
        got = "str" if array.dtype.kind == "U" else array.dtype.name
        if got != spec.dtype:
            raise self._wrong(f"{spec.name!r} is {got}, the model takes {spec.dtype}; save it with .astype({spec.dtype!r})")
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise self._wrong(f"{spec.name!r} holds NaN; take those samples out")
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))

    def _batch(self) -> int:
        """Rows per sample: the fixed batch that batched inputs share, 1 if theirs is dynamic, 0 if all hold whole inputs."""
        sizes = {s.name: s.shape[0] or 1 for s in self.signature.inputs if s.shape and self.found[s.name].ndim == len(s.shape)}
        fixed = {name: size for name, size in sizes.items() if size > 1}
        if len(set(fixed.values())) > 1:
            listed = ", ".join(f"{k!r} {v}" for k, v in fixed.items())
            raise self._wrong(f"first axes of the model's inputs differ ({listed}), so they are no batch; give arrays with an axis more")
        return max(sizes.values(), default=0)

    def _fit(self, spec: TensorSpec, array: Tensor, batch: int) -> Tensor:
        whole = array.ndim == len(spec.shape) + 1
        if not whole and (array.ndim != len(spec.shape) or not spec.shape):
            raise self._wrong(f"{spec.name!r} has shape {list(array.shape)}, expected {self._expected(spec)}")
        if whole:
            samples = array
        else:
            rows = spec.shape[0] or self._dynamic_rows(array, batch)
            if len(array) % rows:
                raise self._wrong(f"{spec.name!r} has {len(array)} rows, but the model's batch is {rows}; give a multiple of it")
            samples = array.reshape(len(array) // rows, rows, *array.shape[1:])
        if any(want is not None and want != got for want, got in zip(spec.shape, samples.shape[1:])):
            raise self._wrong(f"{spec.name!r} has shape {list(array.shape)}, expected {self._expected(spec)}")
        return np.ascontiguousarray(samples)

    def _dynamic_rows(self, array: Tensor, batch: int) -> int:
        """A dynamic batch goes along with another input's fixed batch if it has as many rows, else one by one."""
        fixed = [self.found[s.name] for s in self.signature.inputs if s.shape and s.shape[0] == batch and batch > 1]
        return batch if any(len(other) == len(array) for other in fixed) else 1

    def _expected(self, spec: TensorSpec) -> str:
        axes = ["any" if s is None else str(s) for s in spec.shape]
        if not axes:
            return "[N]"
        first = "N" if spec.shape[0] in (None, 1) else f"N*{spec.shape[0]}"
        return f"[{', '.join([first, *axes[1:]])}] (or [{', '.join(['N', *axes])}], whole inputs)"

    def _target(self, name: str, n: int, batch: int) -> Tensor:
        array = self.arrays[name]
        rows = max(batch, 1)
        if array.ndim == 0 or len(array) not in (n, n * rows):
            near = difflib.get_close_matches(name, [s.name for s in self.signature.inputs], n=1)
            hint = f"; if it is the input {near[0]!r}, name it so" if near else ""
            size = "no axis" if array.ndim == 0 else f"{len(array)} rows"
            raise self._wrong(f"target {name!r} has {size}, the inputs have {n * rows}{hint}")
        if len(array) == n * rows and rows > 1:
            return np.ascontiguousarray(array.reshape(n, rows, *array.shape[1:]))
        return array

"""Tensor packs: how samples and outputs travel. Needs numpy, so no supervisor imports it.

A pack is an uncompressed npz. For each tensor i: member `i` = array[n, *shape], or, where shapes differ between samples,
`i.flat` (all values) and `i.shapes` (int64[n, rank]). Member `names` holds the tensors' names. Equal content gives equal bytes.
Pickles are refused.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray

Tensor = NDArray[Any]
Samples = Union[Sequence[Tensor], Tensor]  # one array per sample, or one whose first axis is the sample
SHARD_BYTES = 8 * 2**20


def pack(tensors: Mapping[str, Samples]) -> bytes:
    """Packs name -> samples."""
    members: dict[str, Tensor] = {"names": np.array(list(tensors), dtype=np.str_)}
    for index, samples in enumerate(tensors.values()):
        if len({s.shape for s in samples}) <= 1:
            members[str(index)] = np.ascontiguousarray(samples if isinstance(samples, np.ndarray) else np.stack(list(samples)))
        else:
            members[f"{index}.flat"] = np.concatenate([s.reshape(-1) for s in samples])
            members[f"{index}.shapes"] = np.array([s.shape for s in samples], dtype=np.int64)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **members)
    return buffer.getvalue()


def unpack(source: Path | bytes) -> dict[str, Sequence[Tensor]]:
    """Inverse of `pack`: name -> a sequence with one array per sample. Raises ValueError on anything else."""
    stream: Any = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with np.load(stream, allow_pickle=False) as archive:
            members = {name: archive[name] for name in archive.files}
    except (OSError, EOFError, KeyError) as error:
        raise ValueError(f"not a tensor pack: {error}") from error
    if "names" not in members:
        raise ValueError("not a tensor pack: no member 'names'")
    return {str(name): _samples(members, index) for index, name in enumerate(members["names"])}


def _samples(members: Mapping[str, Tensor], index: int) -> Sequence[Tensor]:
    if str(index) in members:
        return members[str(index)]  # type: ignore[return-value]
    if f"{index}.flat" not in members or f"{index}.shapes" not in members:
        raise ValueError(f"not a tensor pack: no member '{index}'")
    flat, shapes = members[f"{index}.flat"], members[f"{index}.shapes"]
    ends = np.cumsum(shapes.prod(axis=1))
    return [part.reshape(shape) for part, shape in zip(np.split(flat, ends[:-1]), shapes)]


def shards(tensors: Mapping[str, Samples], limit: int = SHARD_BYTES) -> list[bytes]:
    """Splits samples into packs of at most `limit` bytes of content (at least one sample each), in order."""
    count = len(next(iter(tensors.values())))
    per_sample = max(1, sum(max((s.nbytes for s in samples), default=0) for samples in tensors.values()))
    step = max(1, limit // per_sample)
    return [pack({n: s[i : i + step] for n, s in tensors.items()}) for i in range(0, count, step)]

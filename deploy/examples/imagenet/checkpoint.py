"""Reads the tensors of a PyTorch checkpoint, and nothing else that its pickles may ask for.

A pickle can name any function and call it, so unpickling a stranger's file runs a stranger's program. Here only four names are
known, none of which does anything but hold data; every other name is refused.

The format is the one that torch.save wrote before version 1.6 (torch/serialization.py, `_legacy_save`): pickles of a magic number, the
protocol version, the system's sizes, the object, the keys of its storages; then per key an int64 count and the raw values.
"""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001


class CheckpointError(ValueError):
    """The file is not a checkpoint of plain tensors, or asks for something that tensors do not need."""


class Storage(NamedTuple):
    """A run of values that one or several tensors look into; its content follows the pickles."""

    dtype: str
    key: str


class View(NamedTuple):
    """One tensor: a window on a storage. The fields are the arguments of torch's `_rebuild_tensor_v2`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    requires_grad: bool
    hooks: object


# Types are plain strings here: a pickle can neither call them nor change them.
KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "FloatStorage"): "<f4",
    ("torch", "LongStorage"): "<i8",
    ("torch._utils", "_rebuild_tensor_v2"): View,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return KNOWN[module, name]
        except KeyError:
            raise CheckpointError(f"the pickle asks for {module}.{name}, which no tensor needs") from None

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _device, _count, part = pid
        if kind != "storage" or part is not None:
            raise CheckpointError(f"unknown reference {kind!r}")
        return Storage(str(dtype), str(key))


def read_tensors(path: Path) -> dict[str, NDArray[Any]]:
    """Name -> array of a checkpoint that is a flat dictionary of tensors (a state_dict).

    Raises:
        CheckpointError: truncated, another format, or a pickle that names anything but tensors.
    """
    try:
        with path.open("rb") as stream:
            return _read(stream)
    except (pickle.UnpicklingError, EOFError, TypeError, AttributeError, LookupError, struct.error, ValueError) as error:
        raise CheckpointError(f"{path.name}: {error or type(error).__name__}") from error


def _read(stream: BinaryIO) -> dict[str, NDArray[Any]]:
    magic, protocol, _sizes, state, keys = (_Unpickler(stream).load() for _ in range(5))
    if (magic, protocol) != (MAGIC, PROTOCOL):
        raise CheckpointError("not a checkpoint in torch's format before 1.6")
    dtypes = {view.storage.key: view.storage.dtype for view in state.values()}
    contents = {key: _values(stream, dtypes[key]) for key in keys}
    return {str(name): _tensor(view, contents[view.storage.key]) for name, view in state.items()}


def _values(stream: BinaryIO, dtype: str) -> NDArray[Any]:
    (count,) = struct.unpack("<q", stream.read(8))
    wanted = count * np.dtype(dtype).itemsize
    content = stream.read(wanted) if count >= 0 else b""
    if count < 0 or len(content) != wanted:
        raise CheckpointError(f"{count} values announced, {len(content)} bytes there")
    return np.frombuffer(content, dtype)


def _tensor(view: View, values: NDArray[Any]) -> NDArray[Any]:
    """A copy of what `view` shows; strides count values. Every element must lie inside `values`: numpy would read beyond them."""
    if len(view.shape) != len(view.stride) or min((view.offset, *view.shape, *view.stride)) < 0:
        raise CheckpointError(f"a tensor of shape {view.shape}, stride {view.stride}, offset {view.offset}")
    last = view.offset + sum((length - 1) * step for length, step in zip(view.shape, view.stride))
    if 0 in view.shape:
        return np.empty(view.shape, values.dtype)
    if last >= len(values):
        raise CheckpointError(f"a tensor reaches beyond its {len(values)} values")
    strides = [step * values.itemsize for step in view.stride]
    return np.lib.stride_tricks.as_strided(values[view.offset :], view.shape, strides, writeable=False).copy()

"""Fashion-MNIST's files, and how the example splits them. Needs numpy only."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CLASSES = 10
SIDE = 28

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


def read_idx(path: Path) -> Images:
    """Reads one gzipped IDX file of bytes: big-endian magic 0x0000080R, R dimensions, content (format: yann.lecun.com/exdb/mnist)."""
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\x00\x00\x08":
        raise SystemExit(f"{path}: not an IDX file of unsigned bytes")
    rank = content[3]
    shape = tuple(int(d) for d in np.frombuffer(content, ">u4", rank, offset=4))
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def load(folder: Path, part: str) -> tuple[Images, Labels]:
    """Images uint8[n, 28, 28] and labels int64[n] of `part` (`train` or `t10k`)."""
    files = [folder / f"{part}-images-idx3-ubyte.gz", folder / f"{part}-labels-idx1-ubyte.gz"]
    for path in files:
        if not path.is_file():
            raise SystemExit(f"{path} is missing: apt-get install dataset-fashion-mnist, or give its folder with --data")
    return read_idx(files[0]), read_idx(files[1]).astype(np.int64)


def stratified(labels: Labels, sizes: list[int], seed: int) -> list[NDArray[np.int64]]:
    """Disjoint index sets of the given sizes (multiples of CLASSES) with equally many images of each class; the rest comes last."""
    generator = np.random.default_rng(seed)
    pools = [generator.permutation(np.flatnonzero(labels == c)) for c in range(CLASSES)]
    ends = np.cumsum([0, *sizes]) // CLASSES
    parts = [np.concatenate([pool[a:b] for pool in pools]) for a, b in pairwise(ends)]
    parts.append(np.concatenate([pool[ends[-1] :] for pool in pools]))
    return [generator.permutation(part) for part in parts]


def as_input(images: Images) -> NDArray[np.float32]:
    """uint8[n, 28, 28] -> x: float32[n, 1, 28, 28] in [0, 1]."""
    return (images[:, None].astype(np.float32) / np.float32(255)).astype(np.float32)

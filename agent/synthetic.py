"""Makes random inputs for a model, in a process of its own: `python -m agent.synthetic OUT.npz SAMPLES`.

On stdin: a JSON list of [name, dtype, shape]; a null in a shape (a dynamic axis) becomes 1. Floats are normal, integers 0 or 1, so
that they stay inside any table that a model looks them up in.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgefarm.tensors import pack

_SAMPLE_BYTES = 2**28


def random_samples(dtype: str, shape: list[int | None], samples: int, generator: np.random.Generator) -> list[NDArray[Any]]:
    """`samples` arrays of one input. Raises ValueError for a dtype that has no random values, and for a shape too large."""
    kind = np.dtype(dtype)
    fixed = tuple(1 if axis is None else axis for axis in shape)
    if math.prod(fixed) * kind.itemsize > _SAMPLE_BYTES:
        raise ValueError(f"an input of shape {list(fixed)} is too large to be made up")
    if kind.kind == "f":
        return [generator.standard_normal(fixed).astype(kind) for _ in range(samples)]
    if kind.kind in "iub":
        return [generator.integers(0, 2, fixed).astype(kind) for _ in range(samples)]
    raise ValueError(f"no random values of type {dtype}")


def main(target: str, samples: str) -> None:
    """Writes the pack."""
    generator = np.random.default_rng(0)
    made = {name: random_samples(dtype, shape, int(samples), generator) for name, dtype, shape in json.load(sys.stdin)}
    Path(target).write_bytes(pack(made))


if __name__ == "__main__":
    main(*sys.argv[1:])

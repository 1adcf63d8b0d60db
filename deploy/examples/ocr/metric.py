"""Character accuracy of a text recogniser. edgefarm calls `score` beside the command, on what the devices gave back."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLANK = 0  # CTC's "no character"


def score(outputs: Mapping[str, NDArray[Any]], targets: Mapping[str, NDArray[Any]]) -> float:
    """1 - edit distance / length over all lines together.

    Args:
        outputs: `classes: int64[n, steps]`, the most probable class of each step.
        targets: `text: str[n]`.
    """
    texts = [str(text) for text in targets["text"]]
    read = [decode(steps.astype(np.int64).tobytes()) for steps in outputs["classes"]]
    return 1.0 - sum(map(edit_distance, read, texts)) / sum(map(len, texts))


@cache
def characters() -> list[str]:
    """Class -> character: the blank, those that the network's metadata lists, the space."""
    listed = Path(__file__).with_name("build") / "characters.txt"
    return ["", *listed.read_text(encoding="utf-8").split("\n"), " "]


@cache
def decode(steps: bytes) -> str:
    """Greedy CTC decoding of int64 classes: repeated classes are one, then blanks go (Graves et al., ICML 2006)."""
    return "".join(characters()[c] for c, _ in groupby(np.frombuffer(steps, np.int64).tolist()) if c != BLANK)


@cache
def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and replacements that turn `a` into `b` (Levenshtein, 1966)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]

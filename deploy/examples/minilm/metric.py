"""Recall of a search by meaning. edgefarm calls `score` beside the command, on what the devices gave back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def score(outputs: Mapping[str, NDArray[Any]], targets: Mapping[str, NDArray[Any]]) -> float:
    """Share of summaries whose own explanation is the nearest of all, by the cosine.

    Args:
        outputs: `embedding: float32[n, 384]`, each of length 1.
        targets: `pair: int64[n]`, which two belong together; `explains: int64[n]`, 1 for the explanation.
    """
    vectors, pair = outputs["embedding"].astype(np.float64), targets["pair"]
    asked, passage = np.flatnonzero(targets["explains"] == 0), np.flatnonzero(targets["explains"] == 1)
    nearest = passage[np.argmax(vectors[asked] @ vectors[passage].T, axis=1)]
    return float(np.mean(pair[nearest] == pair[asked]))

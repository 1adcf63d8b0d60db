"""Batches for the scenario `offline`: samples put together along the first axis, where the model takes that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from agent.runner.lanes import Feeds, Lane

_MOST_DISTINCT = 4  # batches that are kept at the same time


class NoBatch(Exception):
    """A model can't be run with a batch size; the message says why."""


def batched(lane: Lane, size: int) -> Lane:
    """A lane whose inferences take `size` rows; batches are made beforehand, so putting them together is not timed.

    One batch is run: a model whose outputs don't grow with its inputs computes something else than a batch.

    Raises:
        NoBatch: the model's batch is fixed, its inputs don't fit together, its outputs don't grow, or it fails with that size.
    """
    count = samples_of(lane, size)
    distinct = max(1, min(_MOST_DISTINCT, len(lane.feeds) // count))
    chosen = [[lane.feeds[(first * count + i) % len(lane.feeds)] for i in range(count)] for first in range(distinct)]
    stacks = [stack(samples) for samples in chosen]
    if count > 1:
        _check_rows(lane.run(lane.feeds[0]), _run(lane, stacks[0], size), count)
    inner = Lane(lane.run, stacks)
    inner.rest_ns = lane.rest_ns
    return inner


def samples_of(lane: Lane, size: int) -> int:
    """How many samples make a batch of `size` rows. Raises NoBatch.

    A sample as it is has the rows of its first input: that size can always be run, whatever other inputs look like.
    """
    if size == next((np.shape(value)[0] for value in lane.feeds[0].values() if np.ndim(value)), 1):
        return 1
    counts = {}
    for name, value in lane.feeds[0].items():
        fixed = lane.axes.get(name)
        if np.ndim(value) == 0:
            raise NoBatch(f"input {name!r} is a single value: it has no axis for a batch")
        if fixed is not None and fixed != size:
            raise NoBatch(f"input {name!r} takes batches of {fixed}, no others")
        rows = value.shape[0]
        if not rows or size % rows:
            raise NoBatch(f"a sample of input {name!r} has {rows} rows, of which {size} is no multiple")
        counts[name] = size // rows
    if len(set(counts.values())) != 1:
        raise NoBatch(f"the inputs' samples have different numbers of rows: {', '.join(f'{n} {size // c}' for n, c in counts.items())}")
    return int(next(iter(counts.values())))


def stack(samples: Sequence[Feeds]) -> Feeds:
    """The samples as one. Raises NoBatch if they differ in shape."""
    if len(samples) == 1:
        return samples[0]
    try:
        return {name: np.concatenate([sample[name] for sample in samples]) for name in samples[0]}
    except ValueError as error:
        raise NoBatch(f"the samples differ in shape: {error}") from error


def _run(lane: Lane, stack: Feeds, size: int) -> Sequence[Any]:
    try:
        return lane.run(stack)  # type: ignore[no-any-return]
    except MemoryError:
        raise
    except Exception as error:  # each runtime has its own kinds; what it says is the reason
        raise NoBatch(f"the model does not run with {size} rows: {str(error).strip()}") from error


def _check_rows(alone: Sequence[Any], together: Sequence[Any], count: int) -> None:
    for index, (one, many) in enumerate(zip(alone, together)):
        before, after = np.shape(one), np.shape(many)
        if not before or after[:1] != (count * before[0],):
            raise NoBatch(
                f"output {index} has shape {list(after)} for {count} samples and {list(before)} for one: its first axis is not a batch"
            )

"""Samples as batches of torch tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from optimizer.dataset import Dataset

_CLOSE = 1e-3  # relative distance within which a batch gives what its samples do alone


@dataclass(frozen=True)
class Samples:
    """Training samples of a network.

    Attributes:
        order: the network's inputs, in the order in which it takes them.
        batched: whether samples may be joined along their first axis; else they are run one by one.
    """

    data: Dataset
    order: Sequence[str]
    batched: bool

    @property
    def n(self) -> int:
        """Number of samples."""
        return self.data.n

    @property
    def blendable(self) -> bool:
        """Whether what lies between two samples is an input too."""
        return self.batched and all(self.data.inputs[name].dtype.kind == "f" for name in self.order)

    def inputs(self, indices: Sequence[int]) -> list[Any]:
        """The network's inputs for these samples, joined along their first axis."""
        chosen = np.asarray(indices, dtype=np.intp)
        arrays = (self.data.inputs[name][chosen] for name in self.order)
        return [_laid_out(torch.from_numpy(a.reshape(-1, *a.shape[2:]) if a.ndim > 1 else a)) for a in arrays]

    def targets(self, indices: Sequence[int]) -> dict[str, Any]:
        """Targets of these samples."""
        chosen = np.asarray(indices, dtype=np.intp)
        return {name: torch.from_numpy(np.ascontiguousarray(t[chosen])) for name, t in self.data.targets.items() if t.dtype.kind in "iufb"}

    def groups(self, indices: Sequence[int]) -> Iterator[Sequence[int]]:
        """What is run at once: all, or one by one."""
        if self.batched:
            yield indices
        else:
            for index in indices:
                yield [index]


def _laid_out(tensor: Any) -> Any:
    """Images with the channels last in memory: torch's convolutions on a CPU are 1.2 to 1.5 times as fast then."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def blend(one: Any, other: Any, shares: Any) -> Any:
    """`one` by its `shares` (of each sample) and `other` by what is left of 1; a sample may hold several rows of the first axis."""
    rows = shares.repeat_interleave(one.shape[0] // len(shares)).reshape(-1, *[1] * (one.dim() - 1))
    return rows * one + (1 - rows) * other


def joinable(run: Callable[..., Sequence[Any]], data: Dataset, order: Sequence[str]) -> bool:
    """Whether two samples joined along their first axis give what each gives alone."""
    if data.n < 2 or any(data.inputs[name].ndim < 2 for name in order):
        return False
    whole = Samples(data, order, batched=True)
    with torch.no_grad():
        alone = [run(*whole.inputs([index])) for index in (0, data.n - 1)]
        try:
            together = run(*whole.inputs([0, data.n - 1]))
        except Exception:  # whatever a library says to a batch that the graph does not take
            return False
    for first, second, both in zip(*alone, together):
        if first.dim() == 0 or both.shape[0] != first.shape[0] + second.shape[0]:
            return False
        wanted = torch.cat([first, second]).double()
        if float((both.double() - wanted).norm()) > _CLOSE * float(wanted.norm()) + 1e-6:
            return False
    return True

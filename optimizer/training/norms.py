"""Normalisations for training only: exporters fold them into the weights, and without them a pruned network is hard to train.

Each convolution gets one that changes nothing: its mean and variance are those of the convolution's outputs, scale and shift undo them.
While it trains, whatever was taken out upstream, every channel keeps the mean and variance that the next layer knows. Folded back at the
end, they cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from optimizer.training.layers import Convolution
from optimizer.training.network import Network


def insert(network: Network, batches: Iterable[Sequence[Any]]) -> int:
    """Puts a normalisation behind every convolution that has none; returns how many.

    Args:
        batches: inputs of some samples, to see the outputs' means and variances by.
    """
    layers = [layer for _, layer in network.layer_calls() if isinstance(layer, Convolution) and layer.norm is None]
    sums: dict[int, list[Any]] = {}

    def note(layer: Any, inputs: Any, output: Any) -> None:
        values = output.detach().double().movedim(1, 0).flatten(1)
        seen = sums.setdefault(id(layer), [0.0, 0.0, 0])
        seen[0] = seen[0] + values.sum(1)
        seen[1] = seen[1] + values.square().sum(1)
        seen[2] += values.shape[1]

    hooks = [layer.inner.register_forward_hook(note) for layer in layers]
    network.eval()
    with torch.no_grad():
        for inputs in batches:
            network(*inputs)
    for hook in hooks:
        hook.remove()
    for layer in layers:
        total, squares, count = sums[id(layer.inner)]
        mean = total / count
        layer.add_norm(mean.float(), (squares / count - mean.square()).clamp(min=1e-8).float())
    return len(layers)

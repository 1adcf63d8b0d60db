"""Unstructured pruning by torch.nn.utils.prune: masks over the weights of layers, ranked by magnitude or by gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils import prune as masks

from edgefarm.model import FailureKind
from optimizer.passes import PassFailure
from optimizer.training.layers import Convolution, Product
from optimizer.training.network import Network

_BLOCK, _KEPT = 4, 2


@dataclass(frozen=True)
class Rule:
    """As the pass's parameters of the same names."""

    pattern: str
    importance: str
    scope: str


@dataclass(frozen=True)
class Count:
    """Zeros among the weights of layers."""

    zeros: int
    weights: int
    layers: int

    def __str__(self) -> str:
        return f"{self.zeros / max(1, self.weights):.1%} of {self.weights} weights in {self.layers} layers are zero"


def schedule(sparsity: float, rounds: int) -> list[float]:
    """Sparsity after each round: a cubic curve that ends at `sparsity`."""
    return [sparsity * (1 - (1 - (k + 1) / rounds) ** 3) for k in range(rounds)]


def prune(network: Network, sparsity: float, rule: Rule, loss: Any | None) -> None:
    """Masks weights so that `sparsity` of them are zero; those that are zero stay so.

    Args:
        loss: a loss with a gradient, where importance asks for it.

    Raises:
        PassFailure: UNSUPPORTED_OP where `2:4` fits no layer.
    """
    network.to(memory_format=torch.contiguous_format)  # the library looks at weights as vectors
    layers = list(_layers(network))
    if loss is not None:
        network.zero_grad()
        loss.backward()
    scores = {layer: _importance(layer, rule.importance) for layer in layers}
    if rule.pattern == "2:4":
        fitting = [layer for layer in layers if _rows(layer, layer.weight).shape[1] % _BLOCK == 0]
        if not fitting:
            raise PassFailure(FailureKind.UNSUPPORTED_OP, "2:4: no layer's input channels are a multiple of four")
        for layer in fitting:
            masks.custom_from_mask(layer, "weight", _two_of_four(layer, scores[layer]))
    elif rule.scope == "global":
        named = [(layer, "weight") for layer in layers]
        masks.global_unstructured(
            named, masks.L1Unstructured, {(k, "weight"): v for k, v in scores.items()}, amount=_left(layers, sparsity)
        )
    else:
        for layer in layers:
            masks.l1_unstructured(layer, "weight", _left([layer], sparsity), scores[layer])


def settle(network: Network) -> Count:
    """Makes zeros of what is masked, and drops the masks."""
    zeros = weights = layers = 0
    for layer in _layers(network):
        if masks.is_pruned(layer):
            masks.remove(layer, "weight")
        zeros += int((layer.weight == 0).sum())
        weights += layer.weight.numel()
        layers += 1
    return Count(zeros, weights, layers)


def _layers(network: Network) -> Iterator[Any]:
    for _, layer in network.layer_calls():
        if isinstance(layer, (Convolution, Product)):
            yield layer.inner


def _importance(layer: Any, importance: str) -> Any:
    held, mask = (layer.weight_orig, layer.weight_mask) if masks.is_pruned(layer) else (layer.weight, 1.0)
    weight = held.detach() * mask  # `weight` itself is as old as the last run
    if importance == "gradient":
        weight = weight * (torch.zeros_like(weight) if held.grad is None else held.grad)
    return weight.abs().contiguous()


def _left(layers: list[Any], sparsity: float) -> int:
    """How many weights are to be masked of those that are not yet: the library counts among these."""
    total = sum(layer.weight.numel() for layer in layers)
    masked = sum(int((layer.weight_mask == 0).sum()) for layer in layers if masks.is_pruned(layer))
    return max(0, int(sparsity * total + 0.5) - masked)


def _rows(layer: Any, weight: Any) -> Any:
    """Weights as [outputs and positions, input channels]."""
    return weight.movedim(1, -1).reshape(-1, weight.shape[1])


def _two_of_four(layer: Any, score: Any) -> Any:
    """1 for the two most important of every four along the input channels."""
    rows = _rows(layer, score)
    blocks = rows.reshape(-1, _BLOCK)
    kept = torch.zeros_like(blocks).scatter(1, blocks.topk(_KEPT, 1).indices, 1.0)
    moved = score.movedim(1, -1)
    return kept.reshape(moved.shape).movedim(-1, 1).contiguous()

"""Training that feels integers: weights and inputs of layers are rounded in the forward pass as a quantiser will round them, and gradients
pass through (Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018).

Weights: symmetric, one scale per output channel. Inputs: asymmetric, one scale per tensor, from a moving average of their extremes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from optimizer.training.layers import Convolution, Product
from optimizer.training.network import Network

_MOMENTUM = 0.05


class _RoundedWeight(nn.Module):
    """weight -> the same on the grid of its integers; `axis`: that of the output channels."""

    def __init__(self, bits: int, axis: int) -> None:
        super().__init__()
        self.most, self.axis = 2 ** (bits - 1) - 1, axis

    def forward(self, weight: Any) -> Any:
        scale = weight.detach().abs().movedim(self.axis, 0).flatten(1).amax(1).clamp(min=1e-8) / self.most
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zeros, self.axis, -self.most, self.most)


class _RoundedInput(nn.Module):
    """Rounds a layer's input to `bits` between a moving average of its extremes, zero among them."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.levels = 2**bits - 1
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("high", torch.tensor(0.0))
        self.register_buffer("seen", torch.tensor(0))

    def forward(self, x: Any) -> Any:
        if self.training or not bool(self.seen):
            low, high = x.detach().amin().clamp(max=0.0), x.detach().amax().clamp(min=0.0)
            share = _MOMENTUM if bool(self.seen) else 1.0
            self.low += share * (low - self.low)
            self.high += share * (high - self.high)
            self.seen.fill_(1)
        scale = ((self.high - self.low) / self.levels).clamp(min=1e-8)
        zero = torch.round(-self.low / scale).clamp(0, self.levels).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, self.levels)


def insert(network: Network, weight_bits: int, activation_bits: int) -> int:
    """Makes every layer with constant weights round its inputs and weights from now on; returns how many layers do."""
    count = 0
    for _, layer in network.layer_calls():
        if not isinstance(layer, (Convolution, Product)):
            continue
        axis = 1 if isinstance(layer, Convolution) and layer.transposed else 0
        parametrize.register_parametrization(layer.inner, "weight", _RoundedWeight(weight_bits, axis))
        layer.rounded = _RoundedInput(activation_bits)
        count += 1
    return count


def settle(network: Network) -> None:
    """Leaves the weights on their grid, and rounds nothing any more."""
    for _, layer in network.layer_calls():
        if isinstance(layer, (Convolution, Product)) and parametrize.is_parametrized(layer.inner, "weight"):
            parametrize.remove_parametrizations(layer.inner, "weight", leave_parametrized=True)
            layer.rounded = None

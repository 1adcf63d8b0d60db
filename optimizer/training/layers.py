"""Nodes that hold weights, as torch modules of the well-known kinds, so that libraries for pruning and quantisation know them.

Each layer knows the initialisers that it was made of, and gives back their values as they are now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from edgefarm.tensors import Tensor as Array
from optimizer.training.operators import Attributes
from optimizer.training.pools import Unsupported, padded, spatial_pads


@dataclass(frozen=True)
class Exported:
    """A node's weights and attributes as they are now.

    Attributes:
        weights: by the node's input index; index 2 is the bias.
        attributes: those that depend on the weights' shapes.
    """

    weights: Mapping[int, Array]
    attributes: Mapping[str, Any]


def _array(tensor: Any) -> Array:
    return np.ascontiguousarray(tensor.detach().cpu().numpy())


class Norm(nn.BatchNorm2d):
    """Batch normalisation over axis 1 of any rank."""

    def _check_input_dim(self, input: Any) -> None:
        pass


class Convolution(nn.Module):
    """Conv or ConvTranspose with constant weights, and a normalisation after it that exists in training only.

    `inner` is the torch layer; `norm`, once it is there, is folded into the weights that are given back; `rounded`, while it is there,
    rounds what the layer is given.
    """

    def __init__(self, op_type: str, attributes: Attributes, weight: Any, bias: Any | None) -> None:
        super().__init__()
        rank = weight.dim() - 2
        if rank not in (1, 2, 3):
            raise Unsupported(f"{op_type} over {rank} axes")
        self.transposed = op_type == "ConvTranspose"
        self.attributes = dict(attributes)
        groups = attributes.get("group", 1)
        kind = getattr(nn, f"Conv{'Transpose' if self.transposed else ''}{rank}d")
        first, second = weight.shape[0], weight.shape[1] * groups
        inputs, outputs = (first, second) if self.transposed else (second, first)
        settings = {"stride": attributes.get("strides", [1] * rank), "dilation": attributes.get("dilations", [1] * rank), "groups": groups}
        self.kernel = list(weight.shape[2:])
        self.fixed = self._fixed_padding(rank)
        if self.transposed:
            settings["output_padding"] = tuple(attributes.get("output_padding", [0] * rank))
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        self.inner = kind(inputs, outputs, tuple(self.kernel), padding=self.fixed or 0, bias=bias is not None, **settings)
        self.inner.weight = nn.Parameter(weight.clone())
        if bias is not None:
            self.inner.bias = nn.Parameter(bias.clone())
        self.norm: Norm | None = None
        self.rounded: nn.Module | None = None

    def _fixed_padding(self, rank: int) -> tuple[int, ...] | None:
        """Padding that the torch layer can do itself; None where it depends on the input's size, or differs from side to side."""
        a = self.attributes
        if a.get("auto_pad", "NOTSET") in ("NOTSET", "", "VALID"):
            pads = spatial_pads(a, [1] * rank, self.kernel)
            if all(low == high for low, high in pads):
                return tuple(low for low, _ in pads)
        if self.transposed:
            raise Unsupported("ConvTranspose with unequal or automatic padding")
        return None

    def forward(self, x: Any) -> Any:
        """x: float32[N, C, …]."""
        if self.rounded is not None:
            x = self.rounded(x)
        if self.fixed is None:
            x = padded(x, spatial_pads(self.attributes, x.shape[2:], self.kernel))
        x = self.inner(x)
        return x if self.norm is None else self.norm(x)

    def add_norm(self, mean: Any, variance: Any) -> None:
        """A normalisation that changes nothing yet, given the mean and variance of each of its channels."""
        norm = Norm(len(mean))
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        with torch.no_grad():
            norm.weight.copy_(torch.sqrt(variance + norm.eps))
            norm.bias.copy_(mean)
        norm.train(self.training)
        self.norm = norm

    def export(self) -> Exported:
        """Weights with the normalisation folded in."""
        weight = self.inner.weight.detach()
        bias = None if self.inner.bias is None else self.inner.bias.detach()
        if self.norm is not None:
            n = self.norm
            scale = n.weight.detach() / torch.sqrt(n.running_var + n.eps)
            groups = self.inner.groups
            per_channel = scale.reshape(groups, 1, -1).repeat(1, weight.shape[0] // groups, 1).reshape(weight.shape[0], -1)
            shaped = per_channel if self.transposed else scale.reshape(-1, 1)
            weight = weight * shaped.reshape(*shaped.shape, *([1] * (weight.dim() - 2)))
            bias = ((0.0 if bias is None else bias) - n.running_mean) * scale + n.bias.detach()
        weights = {1: _array(weight)} | ({} if bias is None else {2: _array(bias)})
        return Exported(weights, {"group": self.inner.groups} if "group" in self.attributes or self.inner.groups != 1 else {})


class Product(nn.Module):
    """Gemm or MatMul with a constant second operand, as a linear layer. `transposed`: the graph keeps it as [inputs, outputs].

    `rounded`, while it is there, rounds what the layer is given.
    """

    def __init__(self, weight: Any, bias: Any | None, *, transposed: bool) -> None:
        super().__init__()
        self.transposed = transposed
        self.rounded: nn.Module | None = None
        kept = weight.t() if transposed else weight
        self.inner = nn.Linear(kept.shape[1], kept.shape[0], bias is not None)
        self.inner.weight = nn.Parameter(kept.clone().contiguous())
        if bias is not None:
            self.inner.bias = nn.Parameter(bias.reshape(-1).clone())

    def forward(self, x: Any) -> Any:
        """x: float32[…, inputs] -> float32[…, outputs]."""
        return self.inner(x if self.rounded is None else self.rounded(x))

    def export(self) -> Exported:
        """Weights in the graph's own layout."""
        weight = self.inner.weight.t() if self.transposed else self.inner.weight
        bias = {} if self.inner.bias is None else {2: _array(self.inner.bias)}
        return Exported({1: _array(weight)} | bias, {})


class Normalisation(nn.Module):
    """A BatchNormalization node of the graph."""

    def __init__(self, attributes: Attributes, scale: Any, bias: Any, mean: Any, variance: Any) -> None:
        super().__init__()
        self.inner = Norm(len(scale), eps=attributes.get("epsilon", 1e-5))
        self.inner.weight, self.inner.bias = nn.Parameter(scale.clone()), nn.Parameter(bias.clone())
        self.inner.running_mean.copy_(mean)
        self.inner.running_var.copy_(variance)

    def forward(self, x: Any) -> Any:
        """x: float32[N, C, …]."""
        return self.inner(x)

    def export(self) -> Exported:
        """Scale, bias, mean and variance."""
        n = self.inner
        return Exported({1: _array(n.weight), 2: _array(n.bias), 3: _array(n.running_mean), 4: _array(n.running_var)}, {})

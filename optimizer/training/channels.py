"""Structured pruning: whole channels are taken out, with all that depends on them.

torch-pruning follows the dependencies (Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023) and ranks the channels of a
group: by the L1 or L2 norm of their weights (Li et al., "Pruning Filters for Efficient ConvNets", 2017), by the first-order Taylor
expansion of the loss (Molchanov et al., "Importance Estimation for Neural Network Pruning", 2019), or by the size of their activations.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import nn

from edgefarm.model import FailureKind
from optimizer.passes import PassFailure
from optimizer.training.layers import Convolution, Product
from optimizer.training.network import Network

_MOST = 0.95  # of a layer's channels
IMPORTANCES = ("l1", "l2", "taylor", "activation")


@dataclass(frozen=True)
class Cut:
    """Weights, and multiplications of one sample, before and after."""

    weights: tuple[int, int]
    products: tuple[int, int]

    def __str__(self) -> str:
        weights, products = (f"{_short(a)} -> {_short(b)}" for a, b in (self.weights, self.products))
        return f"{weights} weights, {products} multiply-adds"


def _short(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


@dataclass(frozen=True)
class Shears:
    """How to prune.

    Attributes:
        ratio: share of the channels to take out.
        importance: one of IMPORTANCES.
        multiple: channels are left in multiples of it, since kernels work on as many at a time.
        scope: `layer` = the same share of each, `global` = the least important of all, wherever they are.
    """

    ratio: float
    importance: str = "l2"
    multiple: int = 8
    scope: str = "layer"


def prune(network: Network, example: Sequence[Any], shears: Shears, loss: Callable[[Network], Any]) -> tuple[Network, Cut]:
    """A copy of the network without the least important channels of all layers but the last ones.

    Args:
        example: inputs of a few samples.
        loss: runs a network over some samples and returns their loss, for what importance needs to see.

    Raises:
        PassFailure: UNSUPPORTED_OP where the rest does not fit together, UNCHANGED where nothing can be taken out.
    """
    before = _size(network, example)
    failure: Exception | None = None
    for spare_products in (False, True):
        pruned = copy.deepcopy(network)
        try:
            _prune(pruned, example, shears, loss, spare_products=spare_products)
            after = _size(pruned, example)
        except Exception as error:  # channels that depend on what the library does not follow: attention by fixed shapes, e.g.
            failure = error
            continue
        if after[0] < before[0]:
            return pruned, Cut((before[0], after[0]), (before[1], after[1]))
    if failure is None:
        raise PassFailure(
            FailureKind.UNCHANGED, f"no channel can be taken out at ratio {shears.ratio:g} and multiples of {shears.multiple}"
        )
    said = (str(failure).splitlines() or [""])[0][:300]
    raise PassFailure(FailureKind.UNSUPPORTED_OP, f"its channels can't be taken out: {type(failure).__name__}: {said}") from failure


def _prune(network: Network, example: Sequence[Any], shears: Shears, loss: Callable[[Network], Any], *, spare_products: bool) -> None:
    ignored = {id(layer): layer for layer in last_layers(network)}
    if spare_products:
        ignored.update({id(layer.inner): layer.inner for _, layer in network.layer_calls() if isinstance(layer, Product)})
    network.eval()
    ranking = _ranking(shears.importance)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that parameters outside of layers were found: they are given below
        pruner = torch_pruning.pruner.BasePruner(
            network,
            tuple(example),
            importance=ranking,
            pruning_ratio=shears.ratio,
            max_pruning_ratio=_MOST,
            global_pruning=shears.scope == "global",
            ignored_layers=list(ignored.values()),
            round_to=shears.multiple,
            in_channel_groups={},  # its defaults are shared by all pruners of a process
            out_channel_groups={},
            num_heads={},
            forward_fn=lambda model, inputs: model(*inputs),
            output_transform=lambda outputs: sum(o.sum() for o in outputs if o.is_floating_point()),
            unwrapped_parameters=[(p, _widest(p)) for p in network.constants.parameters()],
            root_module_types=[nn.modules.conv._ConvNd, nn.Linear],
        )
        pruner._round_to = _at_least_one  # the library rounds few channels down to none, and then leaves the layer whole
        if shears.importance == "taylor":
            network.zero_grad()
            loss(network).backward()
            for parameter in network.parameters():
                if parameter.grad is not None:
                    parameter.grad = parameter.grad.contiguous()  # the library looks at them as vectors
        elif shears.importance == "activation":
            with _watched(network):
                loss(network)
        pruner.step()
    with torch.no_grad():
        network(*example)


def _at_least_one(out: int, channels: int, multiple: int) -> int:
    """How many channels to take out so that a multiple is left, at the least one."""
    left = max(channels - out, 0) // multiple * multiple
    return max(0, channels - max(left, multiple))


def _ranking(importance: str) -> Any:
    kinds = torch_pruning.pruner.importance
    if importance in ("l1", "l2"):
        return kinds.GroupMagnitudeImportance(p=int(importance[1]))
    return kinds.GroupTaylorImportance() if importance == "taylor" else kinds.ActivationImportance()


@contextlib.contextmanager
def _watched(network: Network) -> Iterator[None]:
    """Leaves with each layer how large its inputs were, channel by channel, where the library's ranking looks for it.

    The library's own way takes no tensor that is not contiguous, and no convolution but those over two axes.
    """

    def note(layer: Any, inputs: Any, output: Any) -> None:
        axis = -1 if isinstance(layer, nn.Linear) else 1
        layer._importance = inputs[0].detach().abs().movedim(axis, 0).flatten(1).mean(1)

    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    hooks = [layer.register_forward_hook(note) for layer in network.modules() if isinstance(layer, kinds)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _widest(parameter: Any) -> int:
    """The axis along which a constant goes with channels: the only one that is longer than 1, else the last of those."""
    return max((axis for axis, size in enumerate(parameter.shape) if size > 1), default=0)


def last_layers(network: Network) -> list[Any]:
    """Torch layers whose outputs reach an output of the network through no other layer: their channels are what it says."""
    layer_of = {node.output[0]: layer.inner for node, layer in network.layer_calls() if isinstance(layer, (Convolution, Product))}
    made = {name: node for node in network.nodes for name in node.output}
    found, seen, open_names = [], set(), [*network.output_names, *(v.name for v in network.model.graph.output)]
    while open_names:
        name = open_names.pop()
        if name in seen or name not in made:
            continue
        seen.add(name)
        if name in layer_of:
            found.append(layer_of[name])
        else:
            open_names.extend(made[name].input)
    return found


def _size(network: Network, example: Sequence[Any]) -> tuple[int, int]:
    """Weights, and multiplications for the example's samples, per sample."""
    products = 0
    hooks = []

    def count(layer: Any, inputs: Any, output: Any) -> None:
        nonlocal products
        shape = layer.weight.shape
        if isinstance(layer, nn.Linear):
            products += output.numel() // shape[0] * shape.numel()
        elif isinstance(layer, nn.modules.conv._ConvTransposeNd):
            products += inputs[0].numel() // shape[0] * shape.numel()
        else:
            products += output.numel() // shape[0] * shape.numel()

    for _, layer in network.layer_calls():
        if isinstance(layer, (Convolution, Product)):
            hooks.append(layer.inner.register_forward_hook(count))
    with torch.no_grad():
        network(*example)
    for hook in hooks:
        hook.remove()
    return sum(p.numel() for p in network.parameters()), products // max(1, len(example[0]))

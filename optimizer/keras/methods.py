"""Pruning, clustering and quantisation-aware training by the TensorFlow Model Optimization Toolkit, each keeping what came before.

Layers that the toolkit does not know are left as they are. Pruning: Zhu and Gupta, arXiv:1710.01878;
clustering: Han et al., arXiv:1510.00149; quantisation: Jacob et al., arXiv:1712.05877.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from optimizer.keras.lesson import Lesson
    from optimizer.passes.tfmot import TfmotParameters

_KERNELS = ("kernel", "depthwise_kernel", "embeddings")
_FORGOTTEN = 8.0  # time constants of the average in one training: what it started from counts a few per mille then


class NotApplicable(Exception):
    """A method finds nothing in the model that it could change; the text says which."""


def apply(model: Any, lesson: Lesson, parameters: TfmotParameters) -> tuple[Any, list[str]]:
    """Applies what the parameters say, in turn.

    Args:
        model: a `tf_keras.Model`.

    Returns:
        The model as it became, and a sentence for each method. Raises NotApplicable.
    """
    done: list[str] = []
    if parameters.prunes:
        model, said = _prune(model, lesson, parameters)
        done.append(said)
    if parameters.clusters:
        model, said = _cluster(model, lesson, parameters)
        done.append(said)
    if parameters.quantize_aware:
        model, said = _quantize(model, lesson, parameters)
        done.append(said)
    return model, done


def _prune(model: Any, lesson: Lesson, parameters: TfmotParameters) -> tuple[Any, str]:
    from tensorflow_model_optimization.python.core.sparsity.keras import prune_registry
    from tensorflow_model_optimization.sparsity import keras as sparsity

    ratio = 0.5 if parameters.two_of_four else parameters.sparsity
    ends = max(1, lesson.steps // 2)  # what is left learns to do without
    schedule = sparsity.PolynomialDecay(0.0, ratio, 0, ends, frequency=max(1, ends // 20))
    if parameters.two_of_four:
        schedule = sparsity.ConstantSparsity(0.5, 0, frequency=max(1, ends // 20))
    options = {"sparsity_m_by_n": (2, 4)} if parameters.two_of_four else {}

    def wrap(layer: Any) -> Any:
        if not _has_kernel(layer) or not prune_registry.PruneRegistry.supports(layer):
            return layer
        return sparsity.prune_low_magnitude(layer, pruning_schedule=schedule, **options)

    wrapped = _cloned(model, wrap, "pruning")
    said = lesson.train(wrapped, "pruning", [sparsity.UpdatePruningStep()])
    pruned = sparsity.strip_pruning(wrapped)
    zeros, total = _zeros(pruned)
    if not zeros:
        raise NotApplicable("pruning made no weight zero")
    how = "two of four where layers allow it: " if parameters.two_of_four else ""
    return pruned, f"{how}{zeros / total:.1%} of the weights are zero; {said}"


def _cluster(model: Any, lesson: Lesson, parameters: TfmotParameters) -> tuple[Any, str]:
    import tf_keras
    from tensorflow_model_optimization.clustering import keras as clustering
    from tensorflow_model_optimization.python.core.clustering.keras import clustering_registry
    from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster

    names = set()

    def wrap(layer: Any) -> Any:
        depthwise = isinstance(layer, tf_keras.layers.DepthwiseConv2D)  # the toolkit takes it, and leaves it as it is
        if depthwise or not _has_kernel(layer) or not clustering_registry.ClusteringRegistry.supports(layer):
            return layer
        names.add(layer.name)
        return cluster.cluster_weights(
            layer,
            number_of_clusters=parameters.clusters,
            cluster_centroids_init=clustering.CentroidInitialization.KMEANS_PLUS_PLUS,
            preserve_sparsity=parameters.prunes,
        )

    wrapped = _cloned(model, wrap, "clustering")
    said = lesson.train(wrapped, "clustering", [])
    clustered = clustering.strip_clustering(wrapped)
    most = max(len(np.unique(array)) for array in _kernels(layer for layer in clustered.layers if layer.name in names))
    if most > parameters.clusters + parameters.prunes:  # zeros are kept beside the others
        raise NotApplicable(f"clustering left {most} different weights in a layer")
    return clustered, f"at most {most} different weights in each of {len(names)} layers; {said}"


def _quantize(model: Any, lesson: Lesson, parameters: TfmotParameters) -> tuple[Any, str]:
    from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.cluster_preserve import (
        default_8bit_cluster_preserve_quantize_scheme as clusters,
    )
    from tensorflow_model_optimization.python.core.quantization.keras.collab_opts.prune_preserve import (
        default_8bit_prune_preserve_quantize_scheme as pruned,
    )
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import default_8bit_quantize_registry
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import default_8bit_quantize_scheme as plain
    from tensorflow_model_optimization.quantization import keras as quantization

    registry = default_8bit_quantize_registry.Default8BitQuantizeRegistry()
    if parameters.clusters:
        scheme = clusters.Default8BitClusterPreserveQuantizeScheme(parameters.prunes)
    else:
        scheme = pruned.Default8BitPrunePreserveQuantizeScheme() if parameters.prunes else plain.Default8BitQuantizeScheme()

    def wrap(layer: Any) -> Any:
        return quantization.quantize_annotate_layer(layer) if registry.supports(layer) else layer

    _remember_ranges_for(lesson.steps)
    annotated = _cloned(model, wrap, "quantisation")
    try:
        aware = quantization.quantize_apply(annotated, scheme)
    except (ValueError, RuntimeError) as error:
        raise NotApplicable(f"quantisation-aware training does not take the model: {str(error)[:300]}") from error
    said = lesson.train(aware, "quantisation", [])
    return aware, f"trained with the roundings of int8; {said}"


def _remember_ranges_for(steps: int) -> None:
    """Ranges of activations start at -6 to 6 and are averaged over thousands of steps; a shorter training needs a shorter memory."""
    from tensorflow_model_optimization.python.core.quantization.keras import quant_ops

    averaged, decay = quant_ops.MovingAvgQuantize, min(0.999, max(0.5, 1 - _FORGOTTEN / steps))

    def shorter(*arguments: Any, **named: Any) -> Any:
        return averaged(*arguments, **{**named, "ema_decay": decay})

    quant_ops.MovingAvgQuantize = shorter


def _cloned(model: Any, wrap: Callable[[Any], Any], method: str) -> Any:
    """The model with some of its layers wrapped; weights are kept. Raises NotApplicable if no layer is."""
    import tf_keras

    wrapped = 0

    def one(layer: Any) -> Any:
        nonlocal wrapped
        made = wrap(layer)
        wrapped += made is not layer
        return made

    clone = tf_keras.models.clone_model(model, clone_function=one)
    if not wrapped:
        raise NotApplicable(f"{method} finds no layer in the model that it knows")
    return clone


def _has_kernel(layer: Any) -> bool:
    return any(hasattr(layer, name) for name in _KERNELS)


def _kernels(layers: Iterable[Any]) -> list[Any]:
    return [w.numpy() for layer in layers for w in layer.weights if w.name.split(":")[0].split("/")[-1] in _KERNELS]


def _zeros(model: Any) -> tuple[int, int]:
    arrays = _kernels(model.layers)
    return sum(int((a == 0).sum()) for a in arrays), sum(a.size for a in arrays)

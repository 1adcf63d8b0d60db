"""A Keras 3 model as the same network of Keras 2 layers: the TensorFlow Model Optimization Toolkit knows no others.

Layers are made again from their configuration and wired as they were; weights are copied. What cannot be made again, or computes
something else afterwards, is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_DROPPED = ("_initializer", "_regularizer", "_constraint")  # of weights that are there already
_KEPT = ("name", "trainable")
_RENAMED = {("LeakyReLU", "negative_slope"): "alpha"}
_MERGES = ("Add", "Subtract", "Multiply", "Maximum", "Minimum")  # operations on tensors that are layers too: x + y
_TOLERANCE = 1e-4  # relative L2
_ROWS = 2


class NotRebuilt(Exception):
    """A model that has no equal in Keras 2; the text names the layer."""


def rebuilt(model: Any) -> Any:
    """The same network as a `tf_keras.Model`.

    Args:
        model: a Keras 3 model, functional or sequential.

    Raises NotRebuilt.
    """
    made = _Rebuild().model(model)
    feeds = example(model.inputs)
    wanted, got = (_values(each(feeds if len(feeds) > 1 else feeds[0], training=False)) for each in (model, made))
    for index, (a, b) in enumerate(zip(wanted, got)):
        distance = float(np.linalg.norm(np.subtract(a, b, dtype=np.float64)))
        if a.shape != b.shape or not distance <= _TOLERANCE * float(np.linalg.norm(a)) + 1e-6:
            raise NotRebuilt(f"output {index} of the network made again in Keras 2 is another: a layer's configuration is not understood")
    return made


def example(inputs: Any, rows: int = _ROWS) -> list[Any]:
    """Random values for a model's inputs, the same ones each time; an open size is 1, whole numbers are 0 or 1."""
    random = np.random.default_rng(0)
    feeds = []
    for tensor in inputs:
        dtype = np.dtype(getattr(tensor.dtype, "name", tensor.dtype))
        shape = (rows, *(size or 1 for size in tensor.shape[1:]))
        feeds.append(random.random(shape).astype(dtype) if dtype.kind == "f" else random.integers(0, 2, shape).astype(dtype))
    return feeds


class _Rebuild:
    """Makes each layer once, however often it is used."""

    def __init__(self) -> None:
        self._made: dict[int, Callable[..., Any]] = {}

    def model(self, model: Any) -> Any:
        import keras
        import tf_keras

        functional = model._functional if isinstance(model, keras.Sequential) else model
        if not isinstance(functional, keras.models.Model) or not hasattr(functional, "_run_through_graph"):
            raise NotRebuilt(f"{model.name} is a class of its own, not a functional or sequential model")
        inputs = [tf_keras.Input(shape=i.shape[1:], batch_size=i.shape[0], dtype=i.dtype, name=_plain(i.name)) for i in functional.inputs]
        outputs = functional._run_through_graph(inputs, operation_fn=self._operation)
        return tf_keras.Model(inputs if len(inputs) > 1 else inputs[0], outputs, name=model.name)

    def _operation(self, operation: Any) -> Callable[..., Any]:
        if id(operation) not in self._made:
            self._made[id(operation)] = self._make(operation)
        made = self._made[id(operation)]

        def call(*arguments: Any, **named: Any) -> Any:
            named.pop("training", None)
            return made(*arguments, **{name: value for name, value in named.items() if value is not None})

        return call

    def _make(self, operation: Any) -> Any:
        import keras

        if isinstance(operation, keras.Model):
            return self.model(operation)
        if isinstance(operation, keras.layers.Layer):
            return self._layer(operation)
        return _merge(operation)

    def _layer(self, layer: Any) -> Any:
        import tf_keras

        kind = type(layer).__name__
        twin = getattr(tf_keras.layers, kind, None)
        if twin is None or type(layer).__module__.split(".")[0] != "keras":
            raise NotRebuilt(f"layer {layer.name!r}: Keras 2 has no {kind}")
        try:
            made = twin(**self._arguments(layer, twin))
            if layer.weights:
                made.build(_shapes(layer))
                made.set_weights(layer.get_weights())
        except NotRebuilt:
            raise
        except Exception as error:  # of a constructor, or of weights that don't fit
            raise NotRebuilt(f"layer {layer.name!r} ({kind}) can't be made again in Keras 2: {str(error)[:200]}") from error
        return made

    def _arguments(self, layer: Any, twin: Any) -> dict[str, Any]:
        known = {name for each in twin.__mro__ for name in inspect.signature(each.__init__).parameters} | set(_KEPT)
        found: dict[str, Any] = {"dtype": layer.dtype_policy.name}
        for name, value in layer.get_config().items():
            name = _RENAMED.get((type(layer).__name__, name), name)
            if name.endswith(_DROPPED) or name == "dtype" or name not in known:
                continue
            if name == "layer":  # of a wrapper, such as TimeDistributed
                value = self._layer(layer.layer)
            elif isinstance(value, Mapping) and "class_name" in value:
                raise NotRebuilt(f"layer {layer.name!r}: its {name} is a {value['class_name']}, which is not carried over")
            found[name] = value
        return found


def _shapes(layer: Any) -> Any:
    """What a layer was built with."""
    config = layer.get_build_config() or {}
    if "input_shape" in config:
        return tuple(config["input_shape"]) if not isinstance(config["input_shape"], dict) else config["input_shape"]
    if "shapes_dict" in config:
        return list(config["shapes_dict"].values())
    raise NotRebuilt(f"layer {layer.name!r} does not tell the shapes that it takes")


def _merge(operation: Any) -> Callable[..., Any]:
    import tf_keras

    kind = type(operation).__name__
    if kind not in _MERGES:
        raise NotRebuilt(f"{operation.name}: the operation {kind} on a tensor is no layer; use a layer of Keras for it")
    layer = getattr(tf_keras.layers, kind)()

    def call(one: Any, other: Any) -> Any:
        if not all(hasattr(x, "shape") and len(x.shape) for x in (one, other)):
            raise NotRebuilt(f"{operation.name}: {kind} of a tensor and a number is no layer; use Rescaling")
        return layer([one, other])

    return call


def _values(outputs: Any) -> list[Any]:
    import tensorflow as tf

    return [np.asarray(value) for value in tf.nest.flatten(outputs)]


def _plain(name: str) -> str:
    return name.split(":")[0].replace("/", "_")

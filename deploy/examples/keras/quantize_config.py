"""Quantisation-aware training of a layer of your own, which edgefarm cannot load: writes own.tflite, a file to name as model.path.

    python prepare.py
    python quantize_config.py      with the Python of `controller toolchain install keras`

The Model Optimization Toolkit knows the layers of Keras 2. Of any other a QuantizeConfig says which of its weights are rounded, and how
its output is.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.quantization import keras as quantization
from tf_keras import layers

HERE = Path(__file__).resolve().parent
Quantizers = quantization.quantizers


class Scale(layers.Layer):
    """Multiplies each channel by a number that is learnt."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(name="scale", shape=(shape[-1],), initializer="ones")

    def call(self, x: Any) -> Any:
        return x * self.scale


class ScaleConfig(quantization.QuantizeConfig):
    """Rounds the numbers of a Scale to eight bits, and what it gives."""

    def get_weights_and_quantizers(self, layer: Scale) -> list[Any]:
        return [(layer.scale, Quantizers.LastValueQuantizer(num_bits=8, per_axis=False, symmetric=True, narrow_range=True))]

    def get_activations_and_quantizers(self, layer: Scale) -> list[Any]:
        return []

    def set_quantize_weights(self, layer: Scale, weights: list[Any]) -> None:
        layer.scale = weights[0]

    def set_quantize_activations(self, layer: Scale, activations: list[Any]) -> None:
        if activations:
            raise ValueError("a Scale has no activation")

    def get_output_quantizers(self, layer: Scale) -> list[Any]:
        return [Quantizers.MovingAverageQuantizer(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)]

    def get_config(self) -> dict[str, Any]:
        return {}


def build() -> tf_keras.Model:
    """x: float32[n, 28, 28, 1] in 0..1 -> probabilities of 10 classes."""
    x = entry = layers.Input((28, 28, 1), name="x")
    x = layers.Conv2D(16, 3, 2, "same", activation="relu", name="first")(x)
    x = layers.Conv2D(32, 3, 2, "same", name="second")(x)
    x = layers.ReLU(name="relu")(Scale(name="scale")(x))
    return tf_keras.Model(entry, layers.Dense(10, activation="softmax", name="y")(layers.Flatten(name="flat")(x)))


def aware(model: tf_keras.Model) -> tf_keras.Model:
    """The model with the roundings of int8 in its forward pass."""

    def annotate(layer: Any) -> Any:
        if isinstance(layer, layers.InputLayer):
            return layer
        return quantization.quantize_annotate_layer(layer, ScaleConfig() if isinstance(layer, Scale) else None)

    with quantization.quantize_scope({"Scale": Scale, "ScaleConfig": ScaleConfig}):
        return quantization.quantize_apply(tf_keras.models.clone_model(model, clone_function=annotate))


def fit(model: tf_keras.Model, x: Any, label: Any, epochs: int, rate: float) -> None:
    model.compile(tf_keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, label, 64, epochs, verbose=2)


def convert(model: tf_keras.Model) -> bytes:
    """TFLite with integers inside, float32 at its ends."""
    signature = [tf.TensorSpec((1, 28, 28, 1), tf.float32, name="x")]
    function = tf.function(lambda x: model(x, training=False), input_signature=signature).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return bytes(converter.convert())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "build/train.npz", help="what prepare.py wrote")
    parser.add_argument("--out", type=Path, default=HERE / "build/own.tflite", help="where the file goes")
    parser.add_argument("--images", type=int, default=55_000)
    options = parser.parse_args()
    with np.load(options.data) as arrays:
        x, label = arrays["x"][: options.images], arrays["label"][: options.images]
    tf_keras.utils.set_random_seed(0)
    model = build()
    fit(model, x, label, 3, 2e-3)
    quantised = aware(model)
    fit(quantised, x, label, 1, 5e-4)
    options.out.write_bytes(convert(quantised))
    print(f"{options.out.name}: {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()

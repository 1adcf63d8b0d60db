"""Keras files of many kinds: `python keras_models.py FOLDER`, in the toolchain's Python. Imports nothing of ours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tf_keras


def convolution(library: Any, name: str, side: int = 12) -> Any:
    """A residual block, a depthwise convolution, a classifier. Trained a little, so that its answers differ."""
    layers = library.layers
    entry = library.Input((side, side, 3), name="image")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False, name="stem")(entry)
    x = kept = layers.ReLU(name="stem_relu")(layers.BatchNormalization(momentum=0.8, name="stem_norm")(x))
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="conv")(x)
    x = layers.Add(name="sum")([x, kept])
    x = layers.DepthwiseConv2D(3, 2, padding="same", name="depthwise")(x)
    x = layers.LeakyReLU(name="leaky")(x)
    x = layers.Dropout(0.1, name="dropout")(layers.GlobalAveragePooling2D(name="pool")(x))
    model = library.Model(entry, layers.Dense(6, activation="softmax", name="class")(x), name=name)
    images, labels = samples(side, 512)
    model.compile(library.optimizers.Adam(0.005), "sparse_categorical_crossentropy")
    model.fit(images, labels, 32, 30, verbose=0)
    return model


def samples(side: int, count: int) -> tuple[Any, Any]:
    """Images whose class is where they are bright."""
    random = np.random.default_rng(3)
    labels = random.integers(0, 6, count)
    images = random.random((count, side, side, 3)).astype(np.float32)
    for index, label in enumerate(labels):
        row, column = divmod(int(label), 3)
        images[index, row * 6 : row * 6 + 6, column * 4 : column * 4 + 4] += 1.0
    return images, labels


def operators() -> Any:
    """An operation on tensors instead of a layer."""
    entry = keras.Input((8,), name="x")
    a, b = keras.layers.Dense(5, name="a")(entry), keras.layers.Dense(5, name="b")(entry)
    return keras.Model(entry, keras.layers.Activation("tanh", name="y")(a + b))


def sequential() -> Any:
    return keras.Sequential([keras.Input((10,), name="x"), keras.layers.Dense(7, "relu"), keras.layers.Dense(3, name="y")])


def two_inputs() -> Any:
    """Whole numbers and floats in, two heads out."""
    words, extra = keras.Input((6,), dtype="int32", name="words"), keras.Input((4,), name="extra")
    x = keras.layers.GlobalAveragePooling1D(name="mean")(keras.layers.Embedding(20, 8, name="embedding")(words))
    x = keras.layers.Concatenate(name="both")([x, extra])
    return keras.Model(
        [words, extra], [keras.layers.Dense(3, activation="softmax", name="kind")(x), keras.layers.Dense(2, name="place")(x)]
    )


def with_lambda() -> Any:
    entry = keras.Input((4,), name="x")
    return keras.Model(entry, keras.layers.Lambda(lambda x: x * 2, name="y")(entry))


def old_lambda() -> Any:
    """Keras 2 runs its code when it reads the file."""
    entry = tf_keras.Input((4,), name="x")
    return tf_keras.Model(entry, tf_keras.layers.Lambda(lambda x: x * 2, name="y")(entry))


@keras.saving.register_keras_serializable("mine")
class Scale(keras.layers.Layer):
    """A layer of the user's own."""

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, x: Any) -> Any:
        return x * self.scale


def custom() -> Any:
    entry = keras.Input((4,), name="x")
    return keras.Model(entry, Scale(name="y")(entry))


def main(folder: Path) -> None:
    keras.utils.set_random_seed(1)
    made = convolution(keras, "three")
    made.save(folder / "three.keras")
    made.save(folder / "three.h5")
    old = convolution(tf_keras, "two")
    old.save(folder / "two.keras")
    old.save(folder / "two.h5")
    with_lambda().save(folder / "with_lambda.h5")
    old_lambda().save(folder / "old_lambda.h5")
    for build in (operators, sequential, two_inputs, with_lambda, custom):
        build().save(folder / f"{build.__name__}.keras")
    images, labels = samples(12, 600)
    np.savez(folder / "train.npz", image=images[:400], label=labels[:400])
    np.savez(folder / "evaluation.npz", image=images[400:], label=labels[400:])
    np.savez(folder / "calibration.npz", image=images[:64])


if __name__ == "__main__":
    main(Path(sys.argv[1]))

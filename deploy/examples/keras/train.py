"""Trains the network of this example and writes model.keras, in some minutes on two cores.

    apt-get install dataset-fashion-mnist
    python train.py        with a Python that has Keras 3, such as that of `controller toolchain install keras`

MobileNet's blocks (Howard et al., arXiv:1704.04861) for images of 28x28; Adam with a cosine, images shifted and flipped at random.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import keras
from keras import layers
from prepare import training, validation

HERE = Path(__file__).resolve().parent
BLOCKS = ((64, 1), (128, 2), (128, 1), (192, 2), (192, 1))  # channels and stride


def build() -> keras.Model:
    """x: float32[n, 28, 28, 1] in 0..1 -> probabilities of 10 classes."""
    x = entry = keras.Input((28, 28, 1), name="x")
    x = layers.Conv2D(32, 3, 2, "same", use_bias=False, name="stem")(x)
    x = layers.ReLU(name="stem_relu")(layers.BatchNormalization(name="stem_norm")(x))
    for index, (channels, stride) in enumerate(BLOCKS, 1):
        x = layers.DepthwiseConv2D(3, stride, "same", use_bias=False, name=f"depthwise{index}")(x)
        x = layers.ReLU(name=f"depthwise{index}_relu")(layers.BatchNormalization(name=f"depthwise{index}_norm")(x))
        x = layers.Conv2D(channels, 1, use_bias=False, name=f"pointwise{index}")(x)
        x = layers.ReLU(name=f"pointwise{index}_relu")(layers.BatchNormalization(name=f"pointwise{index}_norm")(x))
    x = layers.Dropout(0.2, name="dropout")(layers.GlobalAveragePooling2D(name="pool")(x))
    return keras.Model(entry, layers.Dense(10, activation="softmax", name="y")(x), name="fashion")


def augmented() -> keras.Model:
    """Shifts images by up to two pixels and mirrors half of them; not part of the network."""
    return keras.Sequential([layers.RandomTranslation(0.08, 0.08, fill_mode="constant"), layers.RandomFlip("horizontal")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="folder of the four idx.gz files")
    parser.add_argument("--out", type=Path, default=HERE / "model.keras", help="where the model goes")
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    keras.utils.set_random_seed(0)
    x, label = training(options.data)
    model = build()
    steps = options.epochs * -(-len(x) // 128)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, steps, alpha=0.01)
    entry = keras.Input((28, 28, 1))
    taught = keras.Model(entry, model(augmented()(entry)))
    taught.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"], jit_compile=False)
    taught.fit(x, label, 128, options.epochs, validation_data=validation(options.data), verbose=2)
    model.save(options.out)
    print(f"{options.out.name}: {model.count_params()} parameters, {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()

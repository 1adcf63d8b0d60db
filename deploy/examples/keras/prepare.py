"""Writes build/*.npz: the samples of the example fashion with the channels last, as Keras has them, and 55,000 images to train with.

    apt-get install dataset-fashion-mnist
    python prepare.py

Needs numpy only. The 5,000 images that validate a training stay out of build/train.npz, as do those of selection and evaluation.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fashion"))

from images import as_input, load, stratified

HERE = Path(__file__).resolve().parent
FASHION = HERE.parent / "fashion"
VALIDATION, CALIBRATION, SEED = 5000, 300, 1  # as in ../fashion/train.py
SPLITS = ("calibration", "selection", "evaluation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="folder of the four idx.gz files")
    parser.add_argument("--out", type=Path, default=HERE / "build", help="where the files go")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in SPLITS:
        with np.load(FASHION / f"{name}.npz") as arrays:
            write(options.out / f"{name}.npz", {key: channels_last(arrays[key]) if key == "x" else arrays[key] for key in arrays.files})
    if not (options.out / "train.npz").is_file():
        x, label = training(options.data)
        write(options.out / "train.npz", {"x": x, "label": label})


def training(data: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """x: float32[55000, 28, 28, 1] in 0..1, and labels: the training set without what validates."""
    images, labels = load(data, "train")
    _, calibration, rest = stratified(labels, [VALIDATION, CALIBRATION], SEED)
    chosen = np.concatenate([calibration, rest])
    return channels_last(as_input(images[chosen])), labels[chosen]


def validation(data: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The 5,000 images that training looks at to see how well it goes."""
    images, labels = load(data, "train")
    chosen, _, _ = stratified(labels, [VALIDATION, CALIBRATION], SEED)
    return channels_last(as_input(images[chosen])), labels[chosen]


def channels_last(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, 1, 28, 28] -> [n, 28, 28, 1]."""
    return np.ascontiguousarray(np.moveaxis(images, 1, -1))


def write(path: Path, arrays: dict[str, NDArray[np.generic]]) -> None:
    """A compressed npz, whole or not at all."""
    aside = path.with_suffix(".part.npz")
    np.savez_compressed(aside, allow_pickle=False, **arrays)
    aside.replace(path)
    print(f"{path.name}: {len(next(iter(arrays.values())))} images, {path.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()

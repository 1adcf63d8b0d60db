"""Writes build/train.npz: the 55,000 images that the example fashion's network was trained with, and their labels.

    apt-get install dataset-fashion-mnist
    python prepare.py

Needs numpy only. The 5,000 images that validated that training stay out, as do those of selection and evaluation.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fashion"))

from images import as_input, load, stratified

HERE = Path(__file__).resolve().parent
VALIDATION, CALIBRATION, SEED = 5000, 300, 1  # as in ../fashion/train.py


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"), help="folder of the four idx.gz files")
    parser.add_argument("--out", type=Path, default=HERE / "build", help="where train.npz goes")
    options = parser.parse_args()
    path = options.out / "train.npz"
    if path.is_file():
        return
    images, labels = load(options.data, "train")
    _, calibration, rest = stratified(labels, [VALIDATION, CALIBRATION], SEED)
    chosen = np.concatenate([calibration, rest])
    options.out.mkdir(parents=True, exist_ok=True)
    aside = options.out / "train.part.npz"
    np.savez_compressed(aside, allow_pickle=False, x=as_input(images[chosen]), label=labels[chosen])
    aside.replace(path)
    print(f"{path.name}: {len(chosen)} images, {path.stat().st_size} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()

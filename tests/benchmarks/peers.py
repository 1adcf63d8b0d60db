"""What other tools make of a model, each in the way that its documentation shows: `python peers.py MODEL CALIBRATION OUT`.

It runs in an environment of its own (`peers.txt`) and imports nothing of edgefarm. Each peer's file is OUT/PEER/model.onnx; the
last line on stdout is a JSON object: peer -> how long it took, or why it gave nothing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Samples = list[dict[str, Any]]


def main() -> None:
    source, calibration, out = (Path(argument).absolute() for argument in sys.argv[1:4])
    samples = read(source, calibration)
    told: dict[str, Any] = {}
    for name, make in PEERS.items():
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        began = time.monotonic()
        try:
            make(source, samples, folder)
            told[name] = {"seconds": round(time.monotonic() - began, 1)}
            if not (folder / "model.onnx").is_file():
                told[name] = {"failed": "it wrote no model.onnx"}
        except Exception as error:  # what a peer raises is its result
            told[name] = {"failed": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"}
        print(f"{name}: {told[name]}", file=sys.stderr, flush=True)
    print(json.dumps(told))


def read(source: Path, calibration: Path) -> Samples:
    """One feed per sample, as the model takes them."""
    names = [i.name for i in onnx.load(str(source), load_external_data=False).graph.input]
    with np.load(calibration, allow_pickle=False) as arrays:
        count = min(len(arrays[name]) for name in names)
        return [{name: arrays[name][k : k + 1] for name in names} for k in range(count)]


class Reader:
    """ONNX Runtime's interface to calibration samples."""

    def __init__(self, samples: Samples) -> None:
        self._samples: Iterator[dict[str, Any]] = iter(samples)

    def get_next(self) -> dict[str, Any] | None:
        """The next feed."""
        return next(self._samples, None)


def ort_defaults(source: Path, samples: Samples, folder: Path) -> None:
    """ONNX Runtime's static quantisation as it comes: pre-process, then quantize_static with its defaults."""
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = folder / "prepared.onnx"
    quant_pre_process(str(source), str(prepared))
    quantize_static(prepared, folder / "model.onnx", Reader(samples))


def ort_expert(source: Path, samples: Samples, folder: Path) -> None:
    """The same by somebody who knows x86: unsigned activations, weights per channel."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = folder / "prepared.onnx"
    quant_pre_process(str(source), str(prepared))
    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    quantize_static(prepared, folder / "model.onnx", Reader(samples), quant_format=QuantFormat.QDQ, per_channel=True, **types)


def nncf(source: Path, samples: Samples, folder: Path) -> None:
    """NNCF's post-training quantisation of the ONNX model."""
    import nncf as library

    made = library.quantize(onnx.load(str(source)), library.Dataset(samples))
    onnx.save(made, str(folder / "model.onnx"))


def olive_one_line(source: Path, samples: Samples, folder: Path) -> None:
    """`olive auto-opt --precision int8`."""
    run_olive(["auto-opt", "--model_name_or_path", str(source), "--precision", "int8", "--output_path", str(folder / "out")], folder)


def olive_configured(source: Path, samples: Samples, folder: Path) -> None:
    """Olive with a configuration by hand: static QDQ, unsigned activations, per channel, the same calibration samples."""
    np.savez(folder / "samples.npz", **{name: np.concatenate([s[name] for s in samples]) for name in samples[0]})
    (folder / "loader.py").write_text(LOADER.format(samples=str(folder / "samples.npz")))
    quantise = {"type": "OnnxStaticQuantization", "quant_format": "QDQ", "activation_type": "uint8", "precision": "int8"}
    quantise |= {"per_channel": True, "data_config": "samples"}
    data = {"name": "samples", "user_script": str(folder / "loader.py"), "load_dataset_config": {"type": "calibration"},
            "dataloader_config": {"type": "calibration_loader"}}  # fmt: skip
    config = {
        "input_model": {"type": "ONNXModel", "model_path": str(source)},
        "data_configs": [data],
        "passes": {"quantise": quantise},
        "output_dir": str(folder / "out"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    run_olive(["run", "--config", str(folder / "config.json")], folder)


LOADER = """
import numpy as np
from olive.data.registry import Registry

@Registry.register_dataset()
def calibration(**kwargs):
    with np.load({samples!r}) as arrays:
        return {{name: arrays[name] for name in arrays.files}}

@Registry.register_dataloader()
def calibration_loader(dataset, **kwargs):
    count = len(next(iter(dataset.values())))
    return [({{name: array[k:k + 1] for name, array in dataset.items()}}, None) for k in range(count)]
"""


def run_olive(arguments: list[str], folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "olive", *arguments], cwd=folder, capture_output=True, text=True, timeout=1800, check=False
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    found = sorted((folder / "out").rglob("*.onnx"), key=lambda p: p.stat().st_mtime)
    if found:
        shutil.copy(found[-1], folder / "model.onnx")


PEERS: dict[str, Callable[[Path, Samples, Path], None]] = {
    "ort-defaults": ort_defaults,
    "ort-expert": ort_expert,
    "nncf": nncf,
    "olive-one-line": olive_one_line,
    "olive-configured": olive_configured,
}

if __name__ == "__main__":
    main()

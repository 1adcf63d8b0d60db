"""Turns a small model of `tests.zoo` into a folder that `controller deploy` takes: model, samples, a fleet file with one local device.

for name in zoo.MODELS:
    fleet = write_fleet(tmp_path / name, name)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from edgefarm.model import Verdict
from tests import zoo

Array = NDArray[Any]
CALIBRATION, EVALUATION = 8, 24  # samples
VARIANTS = 3  # enough to go through every stage
# For tests that do not look at numbers: any verdict may choose, and the first block of a race is its last.
ONE_BLOCK = {"accept": [v.value for v in Verdict], "budget": {"minutes_per_device": 0.01}}


def write_fleet(folder: Path, model: Path, *, name: str = "zoo", metric: str = "cosine", drop: float = 0.1, threads: int = 1) -> Path:
    """Writes `calibration.npz`, `evaluation.npz` and `edge.yaml` into `folder`; returns the fleet file's path.

    Inputs are random but the same every time; the target is what the model itself answers, under its output's name.

    Args:
        folder: where `model` lies, with its external data.
        model: the model's main file.
        name: of the campaign.
        metric: a built-in metric that takes targets, or `agreement`.
        drop: the fleet file's `accuracy_drop`.
        threads: of the local device.
    """
    np.savez(folder / "calibration.npz", allow_pickle=False, **_as_user_saves(model, zoo.samples(model, CALIBRATION, seed=1)))
    samples = zoo.samples(model, EVALUATION, seed=2)
    np.savez(folder / "evaluation.npz", allow_pickle=False, **_as_user_saves(model, samples), **_answers(model, samples))
    document = {
        "version": 1,
        "name": name,
        "model": {"path": model.name},
        "data": {"calibration": "calibration.npz", "evaluation": "evaluation.npz", "metric": metric},
        "devices": [{"name": "bench-1", "local": {"runtimes": ["onnxruntime"], "threads": threads}}],
        "optimize": {"budget": {"variants": VARIANTS}},
        "measure": ONE_BLOCK,
        "select": {"objective": "latency_p50", "constraints": {"accuracy_drop": drop}},
        "rollout": {"activate": "file"},
    }
    fleet = folder / "edge.yaml"
    fleet.write_text(json.dumps(document, indent=2))  # JSON is YAML
    return fleet


def _as_user_saves(path: Path, samples: dict[str, list[Array]]) -> dict[str, Array]:
    """One array per input, in the form that a user would choose.

    Batched on the first axis where that is a batch (open, or 1); with an axis of its own for the sample where it is not, as of a
    state [2, 1, 128].
    """
    first = {v.name: v.type.tensor_type.shape.dim[0] for v in onnx.load(path, load_external_data=False).graph.input}
    is_batch = {name: not axis.HasField("dim_value") or axis.dim_value == 1 for name, axis in first.items()}
    return {name: np.concatenate(arrays) if is_batch[name] else np.stack(arrays) for name, arrays in samples.items()}


def _answers(path: Path, samples: dict[str, list[Array]]) -> dict[str, Array]:
    """What the model's first output of floats answers, one row per sample: output name -> array[n, *shape of one answer].

    One target only: with several that are named like outputs a metric could not tell which one is meant.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = next(output.name for output in session.get_outputs() if output.type == "tensor(float)")
    count = len(next(iter(samples.values())))
    feeds = ({name: arrays[i] for name, arrays in samples.items()} for i in range(count))
    return {name: np.stack([session.run([name], feed)[0] for feed in feeds])}

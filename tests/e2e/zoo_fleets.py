"""Turns a small model into a folder that `controller deploy` takes: model, samples, a fleet file with one local device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

Array = NDArray[Any]
CALIBRATION, EVALUATION = 8, 24  # samples
DYNAMIC = 5  # size given to axes that the model leaves open
LARGEST_INTEGER = 4  # integers may be indices into something small


def write_fleet(folder: Path, model: Path, *, metric: str = "cosine", drop: float = 0.1, threads: int = 1, name: str = "zoo") -> Path:
    """Writes `calibration.npz`, `evaluation.npz` and `edge.yaml` beside a model that lies in `folder`, and returns the fleet file's path.

    Inputs are random but the same every time; targets are what the model itself answers, under its outputs' names.

    Args:
        folder: where everything lies; `model` (and its external data) is there already.
        model: the model's main file.
        metric: a built-in metric that takes targets, or `agreement`.
        drop: the fleet file's `accuracy_drop`.
        threads: of the local device.
        name: of the campaign.
    """
    session = _session(model)
    random = np.random.default_rng(20)
    for part, count in (("calibration", CALIBRATION), ("evaluation", EVALUATION)):
        samples = [_sample(model, random) for _ in range(count)]
        arrays = _joined(model, samples)
        if part == "evaluation":
            arrays |= _targets(session, samples)
        np.savez(folder / f"{part}.npz", allow_pickle=False, **arrays)
    fleet = folder / "edge.yaml"
    document = {
        "version": 1,
        "name": name,
        "model": {"path": model.name},
        "data": {"calibration": "calibration.npz", "evaluation": "evaluation.npz", "metric": metric},
        "devices": [{"name": "bench-1", "local": {"runtimes": ["onnxruntime"], "threads": threads}}],
        "select": {"objective": "latency_p50", "constraints": {"accuracy_drop": drop}},
        "rollout": {"activate": "file"},
    }
    fleet.write_text(json.dumps(document, indent=2))  # JSON is YAML
    return fleet


def _session(model: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _inputs(model: Path) -> list[onnx.ValueInfoProto]:
    """Inputs that are fed: old files list initializers among them."""
    graph = onnx.load(model, load_external_data=False).graph
    initialized = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in initialized]


def _dimensions(value: onnx.ValueInfoProto) -> list[int | None]:
    return [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]


def _sample(model: Path, random: np.random.Generator) -> dict[str, Array]:
    """One feed for every input: a batch of one where the first axis is open, other open axes DYNAMIC long."""
    sample: dict[str, Array] = {}
    for value in _inputs(model):
        shape = [(DYNAMIC if axis else 1) if size is None else size for axis, size in enumerate(_dimensions(value))]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if dtype.kind == "f":
            sample[value.name] = random.normal(size=shape).astype(dtype)
        else:
            sample[value.name] = random.integers(0, 2 if dtype.kind == "b" else LARGEST_INTEGER + 1, shape).astype(dtype)
    return sample


def _joined(model: Path, samples: list[dict[str, Array]]) -> dict[str, Array]:
    """One array per input, in the two forms that a user may choose: batched on the first axis, or whole inputs on an axis of their own.

    Batched is what most users have; whole is needed where the first axis of an input is no batch, as of a state [2, 1, 128].
    """
    rows = {value.name: (_dimensions(value) or [0])[0] for value in _inputs(model)}
    return {name: (np.concatenate if rows[name] in (None, 1) else np.stack)([s[name] for s in samples]) for name in samples[0]}


def _targets(session: onnxruntime.InferenceSession, samples: list[dict[str, Array]]) -> dict[str, Array]:
    """What the model answers, one row per sample."""
    names = [output.name for output in session.get_outputs()]
    answers = [session.run(names, sample) for sample in samples]
    return {name: np.stack([np.asarray(answer[index]) for answer in answers]) for index, name in enumerate(names)}

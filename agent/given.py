"""A model file that somebody gives on the command line: the candidate that it is, and inputs to feed it with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from agent.runner.process import RunnerFailed, RunnerProcess
from agent.runtimes import RUNTIMES, is_installed, missing
from edgefarm.digest import artifact_digest, digest_file
from edgefarm.errors import UserError
from edgefarm.model import Artifact, Candidate, FileEntry, Limits, Options, Stage

_FORMATS = {".onnx": "onnx", ".tflite": "tflite", ".xml": "openvino"}
_SAMPLES = 4


def candidate_of(model: Path, runtime: str | None, options: Options) -> Candidate:
    """The file in `runtime`, or in the first installed one that opens it. Raises UserError if there is none."""
    if not model.is_file():
        raise UserError(f"{model}: no such file")
    format = _FORMATS.get(model.suffix)
    if format is None:
        raise UserError(f"{model}: no runtime opens {model.suffix or 'a file without a suffix'}; known are {', '.join(sorted(_FORMATS))}")
    fitting = [name for name, entry in RUNTIMES.items() if format in entry.formats]
    if runtime is not None and runtime not in RUNTIMES:
        raise UserError(f"--runtime {runtime}: unknown; known are {', '.join(sorted(RUNTIMES))}")
    if runtime is not None and runtime not in fitting:
        raise UserError(f"--runtime {runtime}: does not open {model.suffix}; {' and '.join(fitting)} do")
    chosen = runtime or next(filter(is_installed, fitting), fitting[0])
    if not is_installed(chosen):
        raise UserError(missing(chosen))
    return Candidate(_artifact(model, format), chosen, options)


def _artifact(model: Path, format: str) -> Artifact:
    """The model and, of OpenVINO's format, the weights beside it (a model may have none)."""
    weights = model.with_suffix(".bin")
    paths = [model, weights] if format == "openvino" and weights.is_file() else [model]
    files = tuple(FileEntry(p.name, digest_file(p), p.stat().st_size) for p in paths)
    return Artifact(artifact_digest((f.name, f.digest, f.bytes) for f in files), sum(f.bytes for f in files), format, files)


def given_inputs(inputs: Path | None, model: Path, candidate: Candidate, scratch: Path) -> Path:
    """The tensor pack that was given, or one of random values. Raises UserError if it is not there."""
    if inputs is None:
        return random_inputs(model, candidate, scratch)
    if not inputs.is_file():
        raise UserError(f"--inputs {inputs}: no such file")
    return inputs


def random_inputs(model: Path, candidate: Candidate, scratch: Path) -> Path:
    """A tensor pack of the model's input shapes, made in a child process, since this one must not import numpy. Raises UserError."""
    load = {
        "do": "load", "key": "model", "path": str(model.absolute()), "runtime": candidate.runtime, "options": candidate.options, "io": None,
    }  # fmt: skip
    try:
        with RunnerProcess(Limits(), scratch, files=[model.absolute().parent, model.resolve().parent]) as runner:
            specs = runner.call(load, Limits().load_ns, Stage.LOAD).body["inputs"]
    except RunnerFailed as error:
        raise UserError(f"{model}: {error.failure.kind.value}: {error.failure.detail}") from error
    target = scratch / "random.npz"
    command = [sys.executable, "-m", "agent.synthetic", str(target), str(_SAMPLES)]
    # In a folder of ours: `-m` looks for modules there first, and beside a model may lie anything.
    made = subprocess.run(command, input=json.dumps(specs), capture_output=True, text=True, cwd=scratch)
    if made.returncode != 0:
        said = made.stderr.strip().rpartition("\n")[2]
        raise UserError(f"{model}: no random inputs: {said}; give some with --inputs")
    return target

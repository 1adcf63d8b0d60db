"""Memory that a model adds, by our runner and by bare scripts that the operating system looks at: three models in each runtime.

A bare script imports numpy and the runtime, reads the same inputs, and, with a model, loads it and runs it as often; `/usr/bin/time` tells
its largest resident size (Debian's package `time`; without it wait4(2) tells, of a script started by a small process). The same script
without the model is taken off, as our runner takes off one without a model. Runs are interleaved at random; medians are compared.
Progress on stderr; the last line on stdout is one JSON object.
"""

from __future__ import annotations

import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from agent.bench.memory import measure_memory
from agent.bench.site import Site
from edgefarm.digest import digest_file
from edgefarm.model import Artifact, Candidate, Contender, FileEntry, Limits, MemoryResult, MemoryWork

ROUNDS, INFERENCES = 5, 20
FASHION = Path(__file__).parents[2] / "deploy/examples/fashion"
MAKE = """
import shutil, sys
from pathlib import Path
from edgefarm.tensors import pack
from tests import zoo, zoo_openvino, zoo_tflite, zoo_twins
folder, fashion = Path(sys.argv[1]), Path(sys.argv[2])
image = zoo_twins._image(512, 512)
onnx = {"dense": lambda f: zoo.dense(f, width=2**18), "image": image.source, "fashion": lambda f: shutil.copy(fashion / "model.onnx", f)}
tflite = {"dense": lambda f: zoo_tflite.dense(f, width=2**18), "image": image.other,
          "fashion": lambda f: shutil.copy(fashion / "model.tflite", f)}
openvino = {name: zoo_openvino.converted(build) for name, build in onnx.items()}
kinds = {"onnxruntime": (onnx, zoo), "tflite": (tflite, zoo_tflite), "openvino": (openvino, zoo_openvino)}
for runtime, (builds, module) in kinds.items():
    for name, build in builds.items():
        place = folder / runtime / name
        place.mkdir(parents=True)
        (folder / f"{runtime}-{name}.npz").write_bytes(pack(module.samples(Path(build(place)), 4)))
"""
START = {
    "onnxruntime": "import onnxruntime",
    "tflite": "from ai_edge_litert.interpreter import Interpreter",
    "openvino": "sys.modules['openvino_telemetry'] = None\nimport openvino\ncore = openvino.Core()\ncore.get_versions('CPU')",
}
RUN = {
    "onnxruntime": """
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
for index in range(int(sys.argv[3])):
    session.run(None, {name: samples[index % len(samples)]})
""",
    "tflite": """
interpreter = Interpreter(sys.argv[2], num_threads=1)
tensor = interpreter.get_input_details()[0]["index"]
interpreter.allocate_tensors()
for index in range(int(sys.argv[3])):
    sample = samples[index % len(samples)]
    if tuple(interpreter.get_input_details()[0]["shape"]) != sample.shape:
        interpreter.resize_tensor_input(tensor, sample.shape)
        interpreter.allocate_tensors()
    interpreter.set_tensor(tensor, sample)
    interpreter.invoke()
    [interpreter.get_tensor(output["index"]) for output in interpreter.get_output_details()]
""",
    "openvino": """
settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1}
request = core.compile_model(core.read_model(sys.argv[2]), "CPU", settings).create_infer_request()
for index in range(int(sys.argv[3])):
    request.set_input_tensor(0, openvino.Tensor(samples[index % len(samples)], shared_memory=True))
    request.infer()
    [tensor.data.copy() for tensor in request.output_tensors]
""",
}
READ = "\narchive = numpy.load(sys.argv[1])\nsamples = archive['0']\n"
WAIT4 = "import os, sys\npid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)\nprint(os.wait4(pid, 0)[2].ru_maxrss)"


@dataclass(frozen=True)
class Case:
    """One model in one runtime."""

    name: str
    runtime: str
    model: Path
    inputs: Path

    @property
    def files(self) -> list[Path]:
        return [self.model, *self.model.parent.glob("*.bin")]


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def os_peak(script: str, *arguments: str) -> int:
    """Largest resident bytes of a Python script, as the operating system tells."""
    command = [sys.executable, "-c", script, *arguments]
    environment = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"}
    if time := shutil.which("time"):
        with tempfile.NamedTemporaryFile("r") as told:
            subprocess.run([time, "-f", "%M", "-o", told.name, *command], check=True, timeout=300, env=environment)
            return int(told.read()) * 1024
    waiting = [sys.executable, "-S", "-c", WAIT4, *command]
    return int(subprocess.run(waiting, check=True, timeout=300, env=environment, capture_output=True, text=True).stdout) * 1024


def bare(case: Case, with_model: bool) -> int:
    start = f"import sys, numpy\n{START[case.runtime]}{READ}"
    return os_peak(start + (RUN[case.runtime] if with_model else ""), str(case.inputs), str(case.model), str(INFERENCES))


def ours(case: Case, scratch: Path) -> MemoryResult:
    files = tuple(FileEntry(f.name, digest_file(f), f.stat().st_size) for f in case.files)
    format = {".onnx": "onnx", ".tflite": "tflite", ".xml": "openvino"}[case.model.suffix]
    candidate = Candidate(Artifact(files[0].digest, sum(f.bytes for f in files), format, files), case.runtime, {"threads": 1})
    work = MemoryWork(Contender("m", candidate), "", INFERENCES)
    outcome = measure_memory(work, case.model, case.inputs, Limits(), Site(scratch, lock=scratch / "lock")).outcome
    assert isinstance(outcome, MemoryResult), outcome
    return outcome


def cases(folder: Path) -> list[Case]:
    root = Path(__file__).parents[2]
    paths = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'proto'}"}
    subprocess.run([sys.executable, "-c", MAKE, str(folder), str(FASHION)], check=True, timeout=300, env=paths)
    main = {"onnxruntime": "*.onnx", "tflite": "*.tflite", "openvino": "*.xml"}
    places = sorted(place for runtime in main for place in (folder / runtime).iterdir())
    return [
        Case(p.name, p.parent.name, next(p.glob(main[p.parent.name])), folder / f"{p.parent.name}-{p.name}.npz") for p in places
    ]  # fmt: skip


def median(values: list[int]) -> int:
    return int(statistics.median(values))


def compared(case: Case, results: list[MemoryResult], alone: list[int], full: list[int]) -> dict[str, object]:
    added = median([r.peak_rss_bytes - r.reference_peak_rss_bytes for r in results])
    by_os = median([a - b for a, b in zip(full, alone)])
    return {
        "name": case.name, "runtime": case.runtime, "ratio_to_os": round(added / by_os, 4),
        "whole_ratio_to_os": round(median([r.peak_rss_bytes for r in results]) / median(full), 4),
        "added_mib": round(added / 2**20, 2), "added_by_os_mib": round(by_os / 2**20, 2),
        "added_private_mib": round(median([r.private_bytes - r.reference_private_bytes for r in results]) / 2**20, 2),
        "model_file_mapped_mib": round(median([r.model_file_bytes for r in results]) / 2**20, 2),
        "model_mib": round(sum(f.stat().st_size for f in case.files) / 2**20, 2),
        "spread_percent": round(100 * (max(full) - min(full)) / by_os, 2),
    }  # fmt: skip


def main() -> None:
    order = random.Random(0)
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base)
        found = cases(folder)
        rows = []
        for case in found:
            results: list[MemoryResult] = []
            alone: list[int] = []
            full: list[int] = []
            steps: list[Callable[[], None]] = [
                lambda c=case, r=results: r.append(ours(c, folder)),
                lambda c=case, r=alone: r.append(bare(c, False)),
                lambda c=case, r=full: r.append(bare(c, True)),
            ]
            for _ in range(ROUNDS):
                for step in order.sample(steps, len(steps)):
                    step()
            rows.append(compared(case, results, alone, full))
            progress(json.dumps(rows[-1]))
    result = {
        "models": rows,
        "largest_error_percent": round(100 * max(abs(float(str(row["ratio_to_os"])) - 1) for row in rows), 2),
        "told_by": "/usr/bin/time" if shutil.which("time") else "wait4",
        "n": ROUNDS,
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}, Linux {platform.release()}",
        "command": "make bench-memory",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

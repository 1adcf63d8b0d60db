"""What measuring through edgefarm costs: the same model by our runner and by a bare script, and with an idle agent beside it or not.

Launches are fresh processes in randomly interleaved order. Progress on stderr; the last line on stdout is one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import platform
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from agent.bench import Site, measure_latency
from edgefarm.digest import digest_file
from edgefarm.model import (
    Artifact,
    Candidate,
    Contender,
    FileEntry,
    LatencyResult,
    LatencyWork,
    Limits,
    Probed,
    Scenario,
)
from edgefarm.statistics import ratio_interval
from tests.fakes.controller import FakeController
from tests.integration.agent_process import AgentProcess

LAUNCHES, SECONDS = 12, 0.4
MAKE = """
import sys
import numpy as np
from onnx import TensorProto, helper, save
from edgefarm.tensors import pack
from pathlib import Path
random = np.random.default_rng(0)
def weights(name, *shape):
    return helper.make_tensor(name, TensorProto.FLOAT, shape, (random.standard_normal(shape) / 12).astype(np.float32).tobytes(), raw=True)
nodes = [helper.make_node("Conv", ["x", "w0"], ["a"], pads=[1] * 4), helper.make_node("Relu", ["a"], ["b"]),
         helper.make_node("Conv", ["b", "w1"], ["c"], pads=[1] * 4), helper.make_node("Relu", ["c"], ["d"]),
         helper.make_node("GlobalAveragePool", ["d"], ["y"])]
value = helper.make_tensor_value_info
graph = helper.make_graph(nodes, "small", [value("x", TensorProto.FLOAT, [1, 3, 48, 48])], [value("y", TensorProto.FLOAT, [1, 32, 1, 1])],
                          [weights("w0", 32, 3, 3, 3), weights("w1", 32, 32, 3, 3)])
save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), sys.argv[1])
Path(sys.argv[2]).write_bytes(pack({"x": [random.standard_normal((1, 3, 48, 48)).astype(np.float32) for _ in range(4)]}))
"""
BARE = """
import statistics, sys, time
import numpy as np
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
x = np.random.default_rng(0).standard_normal((1, 3, 48, 48)).astype(np.float32)
seconds = float(sys.argv[2])
end = time.perf_counter() + 0.1
while time.perf_counter() < end:
    session.run(None, {"x": x})
samples, end = [], time.perf_counter() + seconds
while time.perf_counter() < end:
    started = time.perf_counter_ns()
    session.run(None, {"x": x})
    samples.append(time.perf_counter_ns() - started)
print(statistics.median(samples))
"""


def bare(model: Path) -> float:
    """Median ns of a script with onnxruntime alone."""
    done = subprocess.run([sys.executable, "-c", BARE, str(model), str(SECONDS)], capture_output=True, text=True, check=True, timeout=120)
    return float(done.stdout)


def ours(model: Path, shard: Path, launch: int, scratch: Path) -> float:
    """Median ns of one launch of our runner."""
    digest, size = digest_file(model), model.stat().st_size
    candidate = Candidate(Artifact(digest, size, "onnx", (FileEntry(model.name, digest, size),)), "onnxruntime", {"threads": 1})
    bursts = 8
    work = LatencyWork((Contender("m", candidate),), Scenario(), "", (), bursts, int(SECONDS / bursts * 1e9))
    outcome = measure_latency(work, launch, {"m": model}, shard, Limits(), Site(scratch, lock=scratch / "lock")).outcome
    assert isinstance(outcome, LatencyResult), outcome
    assert outcome.contenders[0].failure is None, outcome.contenders[0].failure
    return float(outcome.contenders[0].p50_ns)


def main() -> None:
    order = random.Random(0)
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base)
        model, shard = folder / "small.onnx", folder / "shard.npz"
        subprocess.run([sys.executable, "-c", MAKE, str(model), str(shard)], check=True, timeout=120)
        times: dict[str, list[float]] = {"bare": [], "ours": [], "attached": []}
        for launch in range(LAUNCHES):
            for kind in order.sample(list(times), len(times)):
                with contextlib.ExitStack() as held:
                    if kind == "attached":
                        farm = held.enter_context(FakeController(folder, heartbeat_ns=10**9))
                        held.enter_context(AgentProcess(farm.address, folder / "dev"))
                        if not farm.wait_hello().probed:
                            farm.wait(Probed)
                    times[kind].append(bare(model) if kind == "bare" else ours(model, shard, launch, folder))
            last = ", ".join(f"{kind} {values[-1] / 1e3:.1f}" for kind, values in times.items())
            print(f"launch {launch + 1} of {LAUNCHES}, us: {last}", file=sys.stderr, flush=True)
    ratio, supervisor = ratio_interval(times["ours"], times["bare"]), ratio_interval(times["attached"], times["ours"])
    result = {
        "p50_ratio": round(ratio.value, 4),
        "p50_ratio_ci95": [round(ratio.low, 4), round(ratio.high, 4)],
        "supervisor_p50_ratio": round(supervisor.value, 4),
        "supervisor_p50_ratio_ci95": [round(supervisor.low, 4), round(supervisor.high, 4)],
        "n": LAUNCHES,
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}",
        "command": "make bench-overhead",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

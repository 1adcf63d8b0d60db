"""What measuring through edgefarm costs, in the time that an inference is said to take. Three ratios, each within one run:

* our bursts over a bare loop, on the very same session, in turn within one process;
* a runner whose supervisor runs as always over one whose supervisor is stopped (SIGSTOP) while it measures, in turn with one runner;
* launches with an idle agent beside them over launches without, in random order.

Intervals are over fresh processes. Progress on stderr; the last line on stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from agent.bench import scenarios
from agent.bench.latency import measure_latency
from agent.bench.session import session
from agent.bench.site import Site
from agent.given import candidate_of
from agent.runner.lanes import Lane
from agent.runner.mapping import Bound
from agent.runner.process import RunnerProcess
from agent.runtimes import load_runtime
from edgefarm.model import Contender, LatencyResult, LatencyWork, Limits, Probed, Scenario, Stage
from edgefarm.statistics import Interval, geometric_interval, ratio_interval
from edgefarm.tensors import unpack
from tests.fakes.controller import FakeController
from tests.integration.agent_process import AgentProcess

LAUNCHES, PAIRS, BURST_NS = 12, 60, 20_000_000
BLOCKS, BLOCK_NS = 12, 200_000_000
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


def over_a_bare_loop(model: Path, shard: Path) -> float:
    """Our bursts over bare ones, in turn on one session: median over pairs."""
    loaded: Any = load_runtime("onnxruntime").load(model, {"threads": 1})
    bound = Bound(loaded, None)
    feeds = bound.feeds(unpack(shard))
    lane, order, ratios = Lane(bound.run, feeds), random.Random(), []
    bare_burst(loaded._session, feeds)
    for _ in range(PAIRS):
        taken: dict[str, float] = {}
        for kind in order.sample(("ours", "bare"), 2):
            taken[kind] = statistics.median(lane.burst(BURST_NS, 3)[0] if kind == "ours" else bare_burst(loaded._session, feeds))
        ratios.append(taken["ours"] / taken["bare"])
    return statistics.median(ratios)


def bare_burst(loaded: Any, feeds: Sequence[Mapping[str, Any]]) -> list[int]:
    """What a user's own script would do."""
    times: list[int] = []
    begin = time.perf_counter_ns()
    while time.perf_counter_ns() - begin < BURST_NS or len(times) < 3:
        fed = feeds[len(times) % len(feeds)]
        started = time.perf_counter_ns()
        loaded.run(None, fed)
        times.append(time.perf_counter_ns() - started)
    return times


def over_a_stopped_supervisor(model: Path, shard: Path) -> float:
    """This process supervises one runner, and is stopped while that measures, or not, in turn: running over stopped, mean over pairs."""
    logs = []
    with tempfile.TemporaryDirectory() as scratch:
        site = Site(Path(scratch), lock=Path(scratch) / "lock")
        with session(site, Limits(), [model], [shard]) as measuring, measuring.runner() as runner:
            measuring.load(runner, "m", candidate_of(model, "onnxruntime", {"threads": 1}), model)
            for block in range(BLOCKS):
                taken = {stop: block_ns(runner, shard, f"{block}", stop=stop) for stop in random.sample((True, False), 2)}
                logs.append(math.log(taken[False] / taken[True]))
    return math.exp(statistics.mean(logs))


def block_ns(runner: RunnerProcess, shard: Path, seed: str, *, stop: bool) -> float:
    """Median of one short launch of a runner that holds the model."""
    work = LatencyWork((), Scenario(), "", (), 1, BLOCK_NS)
    request = {"do": "launch", "keys": ["m"], "inputs": str(shard.absolute()), "plan": scenarios.plan(work, seed)}
    # Stopped from when it has asked on until the runner is surely done; then it finds the answer waiting.
    length = (BLOCK_NS + work.warmup_ns) / 1e9 + 0.2
    waker = f"sleep 0.02; kill -STOP {os.getpid()}; sleep {length}; kill -CONT {os.getpid()}" if stop else f"sleep {length + 0.02}"
    with subprocess.Popen(["/bin/sh", "-c", waker]):
        reply = runner.call(request, Limits().run_ns, Stage.RUN)
    return float(reply.body["contenders"]["m"]["p50_ns"])


CHILDREN = {"ours": over_a_bare_loop, "supervisor": over_a_stopped_supervisor}


def child(kind: str, model: Path, shard: Path) -> float:
    """The ratio that a fresh process finds."""
    command = [sys.executable, __file__, "--child", kind, str(model), str(shard)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        said, _ = process.communicate(timeout=120)
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
    return float(said)


def launch_ns(model: Path, shard: Path, launch: int, folder: Path, *, beside: bool) -> float:
    """Median of one whole launch, with an idle agent beside it or without."""
    with contextlib.ExitStack() as held:
        if beside:
            farm = held.enter_context(FakeController(folder, heartbeat_ns=10**9))
            held.enter_context(AgentProcess(farm.address, folder / "dev"))
            if not farm.wait_hello().probed:
                farm.wait(Probed)
        work = LatencyWork((Contender("m", candidate_of(model, "onnxruntime", {"threads": 1})),), Scenario(), "", (-1,))
        outcome = measure_latency(work, launch, {"m": model}, shard, Limits(), Site(folder, lock=folder / "lock")).outcome
    assert isinstance(outcome, LatencyResult), outcome
    assert outcome.contenders[0].failure is None, outcome.contenders[0].failure
    return float(outcome.contenders[0].p50_ns)


def compare(model: Path, shard: Path, launches: int, folder: Path) -> dict[str, Any]:
    """All three, launch by launch."""
    ratios: dict[str, list[float]] = {kind: [] for kind in CHILDREN}
    beside: dict[bool, list[float]] = {True: [], False: []}
    for launch in range(launches):
        for kind, found in ratios.items():
            found.append(child(kind, model, shard))
        for agent in random.Random(launch).sample((True, False), 2):
            beside[agent].append(launch_ns(model, shard, launch, folder, beside=agent))
        last = ", ".join(f"{kind} {found[-1]:.4f}" for kind, found in ratios.items())
        print(f"{launch + 1} of {launches}: {last}, idle agent {beside[True][-1] / beside[False][-1]:.4f}", file=sys.stderr, flush=True)
    return {
        **_row("p50_ratio", geometric_interval(ratios["ours"])), **_row("supervisor_p50_ratio", geometric_interval(ratios["supervisor"])),
        **_row("idle_agent_p50_ratio", ratio_interval(beside[True], beside[False])),
    }  # fmt: skip


def _row(name: str, found: Interval) -> dict[str, Any]:
    return {name: round(found.value, 4), f"{name}_ci95": [round(found.low, 4), round(found.high, 4)] if found.known else None}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--launches", type=int, default=LAUNCHES, help=f"fresh processes of each kind ({LAUNCHES})")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, model, shard = options.child
        print(CHILDREN[kind](Path(model), Path(shard)))
        return
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base)
        subprocess.run([sys.executable, "-c", MAKE, str(folder / "small.onnx"), str(folder / "shard.npz")], check=True, timeout=120)
        found = compare(folder / "small.onnx", folder / "shard.npz", options.launches, folder)
    machine = f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}"
    command = f"make bench-overhead (--launches {options.launches})"
    print(json.dumps({**found, "n": options.launches, "machine": machine, "command": command}))


if __name__ == "__main__":
    main()

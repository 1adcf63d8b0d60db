"""What an idle agent that reports telemetry costs: resident memory beside a bare process with the same libraries, CPU, time to attach.

Progress on stderr; the last line on stdout is one JSON object.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from edgefarm.model import Hello, Probed, Telemetry
from tests.fakes.controller import FakeController
from tests.integration.agent_process import AgentProcess

RUNS, IDLE_S, HEARTBEAT_NS, TELEMETRY_NS = 5, 20.0, 5 * 10**9, 15 * 10**9
# The same libraries (protobuf with the runtime that any generated message loads), an open channel, and nothing of ours.
BARE = """
import sys
import google.protobuf.internal.builder, google.protobuf.descriptor_pool, grpc, psutil
channel = grpc.insecure_channel(sys.argv[1])
grpc.channel_ready_future(channel).result(timeout=30)
print("ready", flush=True)
sys.stdin.read()
"""


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def rss_mib(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / 2**20


def bare(address: str) -> float:
    """Resident MiB of the bare process."""
    with subprocess.Popen([sys.executable, "-c", BARE, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        time.sleep(0.5)
        found = rss_mib(process.pid)
        process.stdin.close()
        process.wait(10)
    return found


def agent(folder: Path, idle_s: float) -> tuple[float, float, float]:
    """(resident MiB, CPU percent of one core while idle, seconds from its start until it was attached)."""
    with FakeController(folder, heartbeat_ns=HEARTBEAT_NS, telemetry_ns=TELEMETRY_NS) as farm:
        started = time.perf_counter()
        with AgentProcess(farm.address, folder / "dev") as process:
            farm.wait(Hello)
            attach_s = time.perf_counter() - started
            farm.wait(Telemetry)
            if not farm.of(Hello)[0].probed:
                farm.wait(Probed)
            time.sleep(1.0)
            before, since = psutil.Process(process.process.pid).cpu_times(), time.perf_counter()
            time.sleep(idle_s)
            after, until = psutil.Process(process.process.pid).cpu_times(), time.perf_counter()
            cpu = (after.user + after.system - before.user - before.system) / (until - since) * 100
            resident = rss_mib(process.process.pid)
            maps = Path(f"/proc/{process.process.pid}/maps").read_text()
            assert "numpy" not in maps
            assert "onnxruntime" not in maps
            process.terminate()
    return resident, cpu, attach_s


def main() -> None:
    found, bares = [], []
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base)
        for run in range(RUNS):
            with FakeController(folder) as farm:
                bares.append(bare(farm.address))
            # The first run proves its capabilities, the others find the proof in the state folder.
            found.append(agent(folder, IDLE_S if run == 0 else 1.0))
            progress(f"run {run + 1} of {RUNS}: bare {bares[-1]:.1f} MiB; agent {found[-1][0]:.1f} MiB, attached in {found[-1][2]:.2f} s")
    resident = statistics.median(f[0] for f in found)
    result = {
        "rss_mib": round(resident, 2),
        "rss_above_bare_libraries_mib": round(resident - statistics.median(bares), 2),
        "cpu_percent": round(found[0][1], 3),
        "attach_seconds": round(statistics.median(f[2] for f in found), 3),
        "attach_seconds_each": [round(f[2], 3) for f in found],
        "n": RUNS,
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}",
        "command": "make bench-footprint",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""What an idle agent that reports telemetry costs: resident memory beside a bare process with the same libraries, CPU, time to attach.

Over the hosted socket; with --tls a device that enrolled, over mutual TLS, beside a bare process with such a channel.
Progress on stderr; the last line on stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil

from controller.serve import Serving
from edgefarm.model import Hello, Probed, Telemetry
from tests.fakes.controller import FakeController
from tests.integration.agent_process import AgentProcess
from tests.integration.serving import ANY_PORT, EnrolledAgent, enrolled, serving, settings

RUNS, IDLE_S, HEARTBEAT_NS, TELEMETRY_NS = 5, 20.0, 5 * 10**9, 15 * 10**9
# The same libraries (protobuf with the runtime that any generated message loads), an open channel, and nothing of ours.
BARE = """
import sys
import google.protobuf.internal.builder, google.protobuf.descriptor_pool, grpc, psutil
if sys.argv[2:]:
    import pathlib
    files = (pathlib.Path(path).read_bytes() for path in sys.argv[2:])
    options = [("grpc.ssl_target_name_override", "controller.edgefarm.internal")]
    channel = grpc.secure_channel(sys.argv[1], grpc.ssl_channel_credentials(*files), options)
else:
    channel = grpc.insecure_channel(sys.argv[1])
grpc.channel_ready_future(channel).result(timeout=30)
print("ready", flush=True)
sys.stdin.read()
"""


class Found(NamedTuple):
    """An agent's resident MiB, CPU while idle in percent of one core, and seconds from its start until it was attached."""

    rss_mib: float
    cpu_percent: float
    attach_s: float


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def rss_mib(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / 2**20


def bare(address: str, *files: Path) -> float:
    """Resident MiB of the bare process; with TLS if it gets the files of authority, key and certificate."""
    command = [sys.executable, "-c", BARE, address, *map(str, files)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        time.sleep(0.5)
        found = rss_mib(process.pid)
        process.stdin.close()
        process.wait(10)
    return found


def hosted(folder: Path, idle_s: float) -> tuple[float, Found]:
    """A local agent, with a socket and a secret."""
    with FakeController(folder, heartbeat_ns=HEARTBEAT_NS, telemetry_ns=TELEMETRY_NS) as farm:
        beside, started = bare(farm.address), time.perf_counter()
        with AgentProcess(farm.address, folder / "dev") as agent:
            farm.wait(Hello)
            attach_s = time.perf_counter() - started
            farm.wait(Telemetry)
            if not farm.of(Hello)[0].probed:
                farm.wait(Probed)
            return beside, observe(agent.process.pid, idle_s, attach_s)


def over_tls(folder: Path, idle_s: float) -> tuple[float, Found]:
    """A device that enrolled at a real controller."""
    with serving(folder / "controller", settings(metrics=ANY_PORT)) as controller:
        identity = enrolled(controller, folder / "dev" / "identity", "dev")
        files = [folder / name for name in ("authority.pem", "key.pem", "certificate.pem")]
        for path, pem in zip(files, (identity.authority_pem, identity.key_pem, identity.certificate_pem)):
            path.write_text(pem)
        beside, started = bare(identity.main, *files), time.perf_counter()
        with EnrolledAgent(folder / "dev") as agent:
            until(lambda: state(controller) in ("probing", "ready"))
            attach_s = time.perf_counter() - started
            until(lambda: state(controller) == "ready" and controller.farm.relay.report("dev").heard_unix_ms > 0)
            return beside, observe(agent.process.pid, idle_s, attach_s)


def state(controller: Serving) -> str:
    """Of the one device; empty before it ever came."""
    return "".join(status.state for status in controller.farm.devices())


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.002)


def observe(pid: int, idle_s: float, attach_s: float) -> Found:
    """What an attached agent takes while nothing is asked of it."""
    process = psutil.Process(pid)
    time.sleep(1.0)
    before, since = process.cpu_times(), time.perf_counter()
    time.sleep(idle_s)
    after, until = process.cpu_times(), time.perf_counter()
    cpu = (after.user + after.system - before.user - before.system) / (until - since) * 100
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert "numpy" not in maps
    assert "onnxruntime" not in maps
    return Found(rss_mib(pid), cpu, attach_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tls", action="store_true", help="an enrolled device and mutual TLS on loopback, not the socket")
    tls = parser.parse_args().tls
    found, bares = [], []
    with tempfile.TemporaryDirectory() as base:
        # The first run proves its capabilities, the others find the proof in the state folder.
        for run in range(RUNS):
            beside, agent = (over_tls if tls else hosted)(Path(base), IDLE_S if run == 0 else 1.0)
            found.append(agent)
            bares.append(beside)
            progress(f"run {run + 1} of {RUNS}: bare {beside:.1f} MiB; agent {agent.rss_mib:.1f} MiB, attached in {agent.attach_s:.2f} s")
    resident = statistics.median(f.rss_mib for f in found)
    result = {
        "rss_mib": round(resident, 2),
        "rss_above_bare_libraries_mib": round(resident - statistics.median(bares), 2),
        "cpu_percent": round(found[0].cpu_percent, 3),
        "attach_seconds": round(statistics.median(f.attach_s for f in found), 3),
        "attach_seconds_each": [round(f.attach_s, 3) for f in found],
        "n": RUNS,
        "machine": f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}",
        "command": "make bench-footprint" + "-tls" * tls,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

"""How fast an agent takes in a large artifact over the hosted socket, or over TLS, against what bounds it.
See `make bench-transfer` and `make bench-transfer-tls`.

Three things are timed in turn, in an order shuffled for each repetition, each in a process of its own that lives on:
  fetch   the agent's link, transfers and cache against the controller's server: received, hashed, written, synced, renamed
  bare    the same chunks over a minimal gRPC stream on the same kind of connection, thrown away
  durable sha256, write and fsync of the same chunks out of memory, without any gRPC
The two that write get pages that exist and a settled disk, see `rehearse`.
The last line of stdout is one JSON object; ratios are medians over the repetitions' ratios (above 1: faster than the reference).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from controller.farm import Farm

MIB = 2**20
CHUNK = MIB  # as the controller sends them
POOL = 128 * CHUNK  # random bytes, repeated: nothing on the way compresses
DEVICE = "bench-1"
SETTLE_S = 4.0  # before each run: what the last one dirtied or freed is done with, see `rehearse`
_RANDOM = random.Random(7).randbytes(MIB)


def chunks(total: int) -> Iterator[bytes]:
    """The artifact's content; the number in each chunk makes them differ."""
    pool = random.Random(7).randbytes(POOL)
    for number, start in enumerate(range(0, total, CHUNK)):
        size = min(CHUNK, total - start)
        at = start % POOL
        yield (number.to_bytes(8, "big") + pool[at + 8 : at + CHUNK])[:size]


def serve_role(timed: Callable[[], dict[str, float]]) -> None:
    """Runs `timed` once for each line on stdin, and prints what it returns."""
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(timed()), flush=True)


def agent_role(address: str, secret: str, folder: Path, digest: str, size: int) -> None:
    """With the identity in `folder`, over TLS; where there is none, over the socket with the secret."""
    from agent.cache import Cache
    from agent.link import Credentials, Link
    from agent.metrics import Counters
    from agent.transfer import Transfers
    from edgefarm.credentials import load_identity
    from edgefarm.model import FEATURES, PROTOCOL, Device, Heartbeat, Hello, Welcome

    attached = threading.Event()
    device = Device(DEVICE, "id", "host", {}, {"cpu": "x"})

    def receive(body: object) -> None:
        if isinstance(body, Welcome):
            attached.set()

    link = Link(
        address,
        Credentials(DEVICE, secret),
        hello=lambda: Hello(PROTOCOL, FEATURES, "instance", device, True),
        receive=receive,
        beat=Heartbeat,
        identity=lambda: load_identity(folder),
    )
    threading.Thread(target=link.run, daemon=True).start()
    cache = Cache(folder / "cache", 1 << 40)
    transfers = Transfers(link.artifacts, cache, attached, Counters(), folder / "measure.lock")
    attached.wait()
    print("attached", flush=True)

    def fetch() -> dict[str, float]:
        cache.discard(digest)
        os.sync()
        rehearse(folder, size)
        before = reset_peak()
        started = time.perf_counter()
        path = transfers.fetch(digest, size, 3600.0, lambda: False)
        seconds = time.perf_counter() - started
        assert path.stat().st_size == size
        return {"seconds": seconds, "extra_rss_mib": (status("VmHWM") - before) / MIB}

    serve_role(fetch)


def bare_server_role(address: str, size: int, key: Path | None) -> None:
    import grpc

    from edgefarm import heap
    from edgefarm.v1 import artifacts_pb2, artifacts_pb2_grpc

    heap.tune()  # as ours is: the reference shall not lose by the allocator
    held = list(chunks(POOL))

    class Bare(artifacts_pb2_grpc.ArtifactsServicer):
        async def Fetch(self, request: Any, context: Any) -> None:
            for number in range(size // CHUNK):
                await context.write(artifacts_pb2.Chunk(data=held[number % len(held)]))

    async def serve() -> None:
        server = grpc.aio.server()
        artifacts_pb2_grpc.add_ArtifactsServicer_to_server(Bare(), server)  # type: ignore[no-untyped-call]
        if key is None:
            server.add_insecure_port(address)
            told = "ready"
        else:
            pair = (key.read_bytes(), key.with_suffix(".crt").read_bytes())
            told = str(server.add_secure_port(address, grpc.ssl_server_credentials([pair])))
        await server.start()
        print(told, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await server.stop(None)

    asyncio.run(serve())


def bare_role(address: str, size: int, authority: Path | None) -> None:
    import grpc

    from edgefarm import heap
    from edgefarm.channels import TLS_OPTIONS
    from edgefarm.v1 import artifacts_pb2, artifacts_pb2_grpc

    heap.tune()
    if authority is None:
        channel = grpc.insecure_channel(address)
    else:
        channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(authority.read_bytes()), options=TLS_OPTIONS)
    stub = artifacts_pb2_grpc.ArtifactsStub(channel)  # type: ignore[no-untyped-call]

    def fetch() -> dict[str, float]:
        started = time.perf_counter()
        received = sum(len(chunk.data) for chunk in stub.Fetch(artifacts_pb2.FetchRequest()))
        assert received == size // CHUNK * CHUNK
        return {"seconds": time.perf_counter() - started}

    serve_role(fetch)


def durable_role(folder: Path, size: int) -> None:
    held = list(chunks(POOL))
    path = folder / "durable"

    def write() -> dict[str, float]:
        path.unlink(missing_ok=True)
        os.sync()
        rehearse(folder, size)
        started = time.perf_counter()
        state = hashlib.sha256()
        with path.open("wb", buffering=0) as stream:
            for number in range(size // CHUNK):
                chunk = held[number % len(held)]
                state.update(chunk)
                stream.write(chunk)
            os.fsync(stream.fileno())
        return {"seconds": time.perf_counter() - started}

    serve_role(write)


def rehearse(folder: Path, size: int) -> None:
    """Writes `size` bytes and drops them, so that the page cache gets pages that exist.

    In a virtual machine whose host takes back what is free (balloon with free page reporting), the first touch of a page costs several
    times its copying; which of the two roles would pay for that is chance.
    """
    with tempfile.TemporaryFile(dir=folder, buffering=0) as stream:
        for _ in range(size // len(_RANDOM)):
            stream.write(_RANDOM)


def status(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) * 1024


def reset_peak() -> int:
    """Makes VmHWM start again from the present RSS; returns that, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


class Role:
    """A child process that does one of the roles when told to."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, __file__, "--role", *map(str, arguments)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def wait(self, word: str) -> None:
        if (line := self.read()) != word:
            raise SystemExit(f"a child process said {line!r} instead of {word!r}")

    def run(self) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def __enter__(self) -> Role:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--dir", type=Path, help="a folder on the disk to measure (three times the size is needed)")
    parser.add_argument("--tls", action="store_true", help="an enrolled device and mutual TLS on loopback, not the socket")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder, contextlib.ExitStack() as held:
        roles = (over_tls if options.tls else hosted)(Path(folder), options.mib * MIB, held)
        report(roles, options.mib * MIB, options.repetitions, "make bench-transfer" + "-tls" * options.tls)


def hosted(folder: Path, size: int, held: contextlib.ExitStack) -> dict[str, Role]:
    """All over Unix sockets, as the command does with its local agents."""
    from controller.artifacts import ArtifactStore
    from controller.farm import Farm
    from controller.server import RuntimeFolder, Server
    from controller.store import SqlStore

    store = SqlStore(folder / "store.db")
    held.callback(store.close)
    farm = Farm(store, ArtifactStore(folder / "artifacts"))
    runtime = RuntimeFolder()
    held.callback(runtime.close)
    server = Server(farm, runtime.address)
    server.start()
    held.callback(server.stop)
    agent = start_agent(farm, (server.address, farm.doorkeeper.invite(DEVICE)), folder, size, held)
    address = f"unix:{runtime.path}/bare.sock"
    held.enter_context(Role("bare-server", address, size)).wait("ready")
    return started(agent, Role("bare", address, size), folder, size, held)


def over_tls(folder: Path, size: int, held: contextlib.ExitStack) -> dict[str, Role]:
    """A controller that serves, a device that enrolled; the bare stream is encrypted too."""
    from controller.config.controller_file import ControllerSettings
    from controller.serve import Serving
    from edgefarm.enrolment import enroll

    address = "127.0.0.1:0"
    served = held.enter_context(Serving(folder / "c", ControllerSettings(address, address, "", ("127.0.0.1",), None, 86400.0, "")))
    assert served.server.doors is not None
    identity = enroll(served.server.doors.join, served.registry.create_token("me"), DEVICE, folder)
    agent = start_agent(served.farm, (identity.main, "-"), folder, size, held)
    key, certificate = served.registry.authority.server(("127.0.0.1",))
    (folder / "bare.key").write_bytes(key)
    (folder / "bare.crt").write_bytes(certificate)
    (folder / "authority.pem").write_bytes(served.registry.authority.certificate_pem)
    address = "127.0.0.1:" + held.enter_context(Role("bare-server", address, size, folder / "bare.key")).read()
    return started(agent, Role("bare", address, size, folder / "authority.pem"), folder, size, held)


def start_agent(farm: Farm, where: tuple[str, str], folder: Path, size: int, held: contextlib.ExitStack) -> Role:
    """Attached, and with an order that lets it fetch the artifact."""
    from edgefarm.model import Artifact, Candidate, Deployment, FileEntry

    source = folder / "source"
    with source.open("wb") as stream:
        stream.writelines(chunks(size))
    digest = farm.put(source)
    source.unlink()
    agent = held.enter_context(Role("agent", *where, folder, digest, size))
    agent.wait("attached")
    entry = FileEntry("model.onnx", digest, size)
    candidate = Candidate(Artifact(digest, size, "onnx", (entry,)), "onnxruntime")
    farm.deploy([Deployment("", DEVICE, "m", 0, "v", candidate)])
    agent.wait("ready")
    return agent


def started(agent: Role, bare: Role, folder: Path, size: int, held: contextlib.ExitStack) -> dict[str, Role]:
    """All roles by name, ready."""
    roles = {"fetch": agent, "bare": held.enter_context(bare), "durable": held.enter_context(Role("durable", folder, size))}
    for name in ("bare", "durable"):
        roles[name].wait("ready")
    return roles


def report(roles: dict[str, Role], size: int, repetitions: int, command: str) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in roles}
    extra: list[float] = []
    for repetition in range(repetitions + 1):  # the first one warms the page cache and the interpreters
        for name in random.sample(sorted(roles), len(roles)):
            time.sleep(SETTLE_S)
            result = roles[name].run()
            print(f"{repetition}/{repetitions} {name:8} {size / MIB / result['seconds']:7.0f} MiB/s", file=sys.stderr)
            if repetition:
                seconds[name].append(result["seconds"])
                extra += [result["extra_rss_mib"]] if name == "fetch" else []
    ratios = {name: [other / mine for other, mine in zip(seconds[name], seconds["fetch"])] for name in ("bare", "durable")}
    document = {
        "ratio_to_bare_grpc": round(statistics.median(ratios["bare"]), 3),
        "ratio_to_hash_and_durable_write": round(statistics.median(ratios["durable"]), 3),
        "extra_rss_mib": round(max(extra), 1),
        "mib_per_s": {name: round(size / MIB / statistics.median(values)) for name, values in seconds.items()},
        "bytes": size,
        "n": repetitions,
        "machine": f"{platform.machine()} {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}",
        "command": command,
    }
    print(json.dumps(document))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--role"]:
        role, *arguments = sys.argv[2:]
        if role == "agent":
            agent_role(arguments[0], arguments[1], Path(arguments[2]), arguments[3], int(arguments[4]))
        elif role in ("bare-server", "bare"):
            play = bare_server_role if role == "bare-server" else bare_role
            play(arguments[0], int(arguments[1]), Path(arguments[2]) if arguments[2:] else None)
        else:
            durable_role(Path(arguments[0]), int(arguments[1]))
    else:
        main()

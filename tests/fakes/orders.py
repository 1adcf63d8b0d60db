"""Small values of the vocabulary for tests of the controller."""

from __future__ import annotations

from edgefarm.digest import digest_bytes
from edgefarm.model import (
    FEATURES,
    PROTOCOL,
    AccuracyWork,
    Artifact,
    Attempt,
    AttemptId,
    Candidate,
    Capability,
    Contender,
    ContenderResult,
    Deployment,
    DeploymentStatus,
    Device,
    Failure,
    FailureKind,
    FileEntry,
    Hello,
    LatencyResult,
    LatencyWork,
    MemoryResult,
    MemoryWork,
    Order,
    Reduction,
    Scenario,
    Stage,
)

MODEL_BYTES, INPUT_BYTES = b"a model", b"some inputs"
INPUTS = digest_bytes(INPUT_BYTES)


def a_candidate(payload: bytes = MODEL_BYTES, threads: int = 1) -> Candidate:
    digest = digest_bytes(payload)
    files = (FileEntry("model.onnx", digest, len(payload)),)
    return Candidate(Artifact(digest, len(payload), "onnx", files), "onnxruntime", {"threads": threads})


def a_contender(payload: bytes = MODEL_BYTES) -> Contender:
    candidate = a_candidate(payload)
    return Contender(candidate.key, candidate)


def a_device(name: str = "bench-1", host: str = "host-1", **more: str) -> Device:
    capability = Capability("onnxruntime", "CPUExecutionProvider", "1.0", True)
    return Device(name, f"id-{name}", host, {}, {"cpu": "x", **more}, (capability,), 1)


def an_order(
    id: str = "o1", run: str = "c@1", device: str = "bench-1", launches: tuple[int, ...] = (0, 1, 2), device_class: str = ""
) -> Order:
    work = LatencyWork((a_contender(), a_contender(b"another model")), Scenario(), INPUTS, launches)
    return Order(id, run, "m", device_class, work, device)


def a_memory_order(id: str = "m1", run: str = "c@1", device: str = "bench-1") -> Order:
    return Order(id, run, "m", "", MemoryWork(a_contender(), INPUTS), device)


def an_accuracy_order(id: str = "a1", run: str = "c@1", device: str = "bench-1", limit: int = 1000) -> Order:
    return Order(id, run, "m", "", AccuracyWork(a_contender(), (INPUTS,), Reduction(), 1, limit), device)


def an_attempt(order: str = "o1", index: int = 0, device: str = "bench-1", mean_ns: float = 5.0) -> Attempt:
    result = ContenderResult(a_candidate().key, 10, mean_ns, 5, 6, 7, 8, 9)
    return Attempt(order, index, device, 1, 2, LatencyResult((result,)))


def a_memory_attempt(order: str = "m1", device: str = "bench-1") -> Attempt:
    return Attempt(order, 0, device, 1, 2, MemoryResult(a_candidate().key, 4, 3, 2, 1))


def a_failed_attempt(order: str = "o1", index: int = 0, kind: FailureKind = FailureKind.CRASH) -> Attempt:
    return Attempt(order, index, "bench-1", 1, 2, Failure(kind, "it crashed", Stage.RUN))


def a_deployment(device: str = "bench-1", model: str = "m", payload: bytes = MODEL_BYTES, generation: int = 0, id: str = "") -> Deployment:
    return Deployment(id, device, model, generation, "variant", a_candidate(payload))


def a_hello(
    device: Device | None = None,
    instance: str = "i1",
    *,
    protocol: int = PROTOCOL,
    probed: bool = True,
    open_orders: tuple[str, ...] = (),
    unacknowledged: tuple[AttemptId, ...] = (),
    deployments: tuple[DeploymentStatus, ...] = (),
) -> Hello:
    return Hello(protocol, FEATURES, instance, device or a_device(), probed, open_orders, unacknowledged, deployments)

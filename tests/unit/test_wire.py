"""Round trips of every message as properties, and the wire bytes as golden files: a renumbered field must not go unseen."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefarm import model, wire
from edgefarm.errors import ProtocolError
from edgefarm.v1 import fleet_pb2, types_pb2

GOLDEN = Path(__file__).parents[1] / "golden" / "wire"
ROOTS = [
    model.Order, model.Attempt, model.Deployment, model.DeploymentStatus, model.Device, model.Hello, model.Heartbeat, model.Probed,
    model.OrderEnded, model.Welcome, model.Cancel, model.Ack, model.Drain, model.Run, model.DeviceStatus, model.OrderStatus, model.Progress,
    model.Telemetry, model.User,
]  # fmt: skip
UINT32 = {"permutation", "launches", "bursts", "min_inferences", "index", "number", "protocol", "warmup_inferences", "threads", "n", "k",
          "golden_samples", "inferences", "machines", "batch_size", "batch_sizes", "calls"}  # fmt: skip
SIGNED = {"started_unix_ms", "finished_unix_ms", "last_seen_unix_ms", "zero_point", "exit_code"}


def values(hint: typing.Any, name: str = "") -> st.SearchStrategy[typing.Any]:
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return st.builds(hint, **{f.name: values(hints[f.name], f.name) for f in dataclasses.fields(hint)})
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return st.lists(values(arguments[0], name), max_size=2).map(tuple)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return st.dictionaries(st.text(max_size=5), values(arguments[1], name), max_size=3)
    if origin in (typing.Union, types.UnionType):
        return st.one_of([st.none() if a is type(None) else values(a, name) for a in arguments])
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return st.sampled_from(list(hint))
    if hint is int:
        low = -(2**31) if name in SIGNED else 0
        return st.integers(low, 2**31 - 1 if name in UINT32 | SIGNED or name in ("", "placement") else 2**63 - 1)
    return {bool: st.booleans(), str: st.text(max_size=8), float: st.floats(allow_nan=False)}[hint]


@pytest.mark.parametrize("kind", ROOTS, ids=lambda k: k.__name__)
def test_every_message_survives_the_wire(kind: type) -> None:
    @settings(max_examples=40, deadline=None)
    @given(values(kind))
    def check(value: typing.Any) -> None:
        assert wire.from_bytes(kind, wire.to_bytes(value)) == value
        assert wire.to_bytes(value) == wire.to_bytes(wire.from_bytes(kind, wire.to_bytes(value)))

    check()


DIGEST = "sha256:" + "ab" * 32
ARTIFACT = model.Artifact(DIGEST, 12, "onnx", (model.FileEntry("model.onnx", DIGEST, 12),))
OPTIONS: dict[str, model.Scalar] = {"threads": 2, "fast": True, "ratio": 0.5, "execution_provider": "CPUExecutionProvider"}
IO = model.Io((model.TensorMap("x", "x:0", (0, 2, 3, 1), 0.5, 128),), (model.TensorMap("y", "y"),))
CANDIDATE = model.Candidate(ARTIFACT, "onnxruntime", OPTIONS, IO)
CONTENDER = model.Contender(CANDIDATE.key, CANDIDATE)
ORDER = model.Order("o1", "r@1", "m", "c1", model.LatencyWork((CONTENDER,), model.Scenario(), DIGEST, (0, 1, 2), seed=7))
CONDITIONS = model.Conditions(
    (model.Trace("temperature_celsius", "cpu", 2, 40.0, 39.5, 41.0, 41.0),),
    others_cpu=0.5,
    throttled=("thermal",),
    settings={"governor": "performance"},
    unavailable={"power": "no sensor"},
)
DEVICE = model.Device(
    "bench-1",
    "id",
    "boot",
    labels={"board": "x"},
    fingerprint={"cpu": "y"},
    capabilities=(model.Capability("onnxruntime", "CPUExecutionProvider", "1.20", True),),
    threads=2,
)
LAUNCHED = model.ContenderResult(
    CANDIDATE.key, 9, 1.5e6, 1_400_000, 1_600_000, 1_700_000, 20_000_000, 3_000_000, 12, {"CPUExecutionProvider": 7},
    (1_400_000, 1_500_000), disturbed=2, left_out=1,
    chosen={"threads": "2"}, samples_per_s=660.5, regime="flat", unsettled=3, provider="CPUExecutionProvider",
)  # fmt: skip
EXAMPLES: dict[str, typing.Any] = {
    "order": ORDER,
    "attempt": model.Attempt(
        "o1", 1, "bench-1", 5, 6, model.Failure(model.FailureKind.OOM, "killed at 3 GiB", model.Stage.RUN), CONDITIONS
    ),
    "launch": model.Attempt(
        "o1", 1, "bench-1", 5, 6, model.LatencyResult((dataclasses.replace(LAUNCHED, burst_min_ns=(1_300_000, 1_350_000)),), True, DIGEST)
    ),
    "launch-of-an-agent-without-minima": model.Attempt("o1", 1, "bench-1", 5, 6, model.LatencyResult((LAUNCHED,), True, DIGEST)),
    "hello": model.Hello(1, ("latency",), "i1", DEVICE, True),
    "deployment": model.Deployment("d1", "bench-1", "m", 3, "int8/ab", CANDIDATE, "file", model.Golden("sha256:" + "cd" * 32, 1e-3, 1e-5)),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_wire_bytes_are_those_of_the_golden_file(name: str) -> None:
    value = EXAMPLES[name]
    golden = bytes.fromhex((GOLDEN / f"{name}.hex").read_text())
    assert wire.to_bytes(value) == golden
    assert wire.from_bytes(type(value), golden) == value


def test_a_candidate_has_the_same_key_on_every_machine() -> None:
    assert CANDIDATE.key == (GOLDEN / "candidate.key").read_text().strip()


def test_envelopes_carry_every_body() -> None:
    for body in (model.OrderEnded("o"), model.Heartbeat("o", 1, 2), EXAMPLES["attempt"], EXAMPLES["hello"]):
        assert wire.decode_agent(wire.encode_agent(body)) == body
    for body in (model.Ack("o", 1), model.Drain(), EXAMPLES["order"], EXAMPLES["deployment"], model.Cancel("o")):
        assert wire.decode_controller(wire.encode_controller(body)) == body


def test_what_only_a_newer_peer_knows() -> None:
    assert wire.decode_agent(fleet_pb2.AgentMessage()) is None
    assert wire.decode_controller(fleet_pb2.ControllerMessage()) is None
    newer = types_pb2.Failure(detail="x")
    newer.kind = 99  # type: ignore[assignment]
    assert wire.decode(model.Failure, newer) == model.Failure(model.FailureKind.UNSPECIFIED, "x")


def test_a_result_of_a_kind_that_only_a_newer_agent_knows_is_a_failure() -> None:
    strange = fleet_pb2.AgentMessage(attempt=types_pb2.Attempt(order="o", index=3))
    attempt = wire.decode_agent(strange)
    assert isinstance(attempt, model.Attempt)
    assert (attempt.order, attempt.index) == ("o", 3)
    assert isinstance(attempt.outcome, model.Failure)
    assert "only a newer version knows" in attempt.outcome.detail


def test_an_option_that_only_a_newer_controller_knows_is_refused() -> None:
    order = wire.encode(ORDER)
    order.latency.contenders[0].candidate.options["layers"].SetInParent()
    with pytest.raises(ProtocolError, match="option 'layers': no value that this version knows"):
        wire.decode_controller(fleet_pb2.ControllerMessage(order=order))


def test_what_no_peer_may_send() -> None:
    with pytest.raises(ProtocolError, match="no work"):
        wire.decode(model.Order, types_pb2.Order(id="o"))
    with pytest.raises(ProtocolError, match="expected Order"):
        wire.decode(model.Order, types_pb2.Attempt())
    with pytest.raises(ProtocolError, match="not a Order"):
        wire.from_bytes(model.Order, b"\xff\xff\xff")


def test_remaining_leaves_out_what_is_done() -> None:
    left = model.remaining(ORDER, frozenset({0, 2}))
    assert left is not None
    assert isinstance(left.work, model.LatencyWork)
    assert left.work.launches == (1,)
    assert model.remaining(ORDER, frozenset({0, 1, 2})) is None
    memory = dataclasses.replace(ORDER, work=model.MemoryWork(CONTENDER, "x"))
    assert model.remaining(memory, frozenset()) == memory
    assert model.remaining(memory, frozenset({0})) is None

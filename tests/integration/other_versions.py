"""Other versions of edgefarm: copies of its packages that are changed as an earlier or a later version would be, run as real processes."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTOC = ROOT / ".venv-proto" / "bin" / "python"
_PACKAGES = ("agent", "controller", "optimizer")

# What the next protocol adds: fields, enum values, members of every oneof.
_NEXT_PROTO = {
    "types.proto": [
        (r"(FAILURE_KIND_DEVICE_LOST = \d+;)", r"\1\n  FAILURE_KIND_BOREDOM = 90;"),
        (r"(DEPLOYMENT_STATE_SUPERSEDED = \d+;)", r"\1\n  DEPLOYMENT_STATE_WARMING = 90;"),
        (r"(AccuracyWork accuracy = \d+;)", r"\1\n    DreamWork dream = 90;"),
        (r"(Failure failure = 13;)", r"\1\n    DreamResult dream = 90;"),
        (r"(message LatencyResult \{)", r"\1\n  uint32 sheep = 90;"),
        (r"(message Attempt \{)", r"\1\n  string mood = 91;"),
        (r"(message Device \{)", r"\1\n  string mood = 91;"),
        (r"(message OptionValue \{\n  oneof kind \{)", r"\1\n    bytes raw = 90;"),
        (r"\Z", "\nmessage DreamWork {\n  Contender contender = 1;\n  string inputs = 2;\n  uint32 inferences = 3;\n}\n"),
        (r"\Z", "\nmessage DreamResult {\n  string of = 1;\n}\n"),
    ],
    "fleet.proto": [
        (r"(Telemetry telemetry = \d+;)", r"\1\n    Diary diary = 90;"),
        (r"(Drain drain = \d+;)", r"\1\n    Praise praise = 90;"),
        (r"(message (?:Hello|Heartbeat|Welcome|Ack) \{)", r"\1\n  string motto = 90;"),
        (r"\Z", "\nmessage Diary {\n  string entry = 1;\n}\n\nmessage Praise {\n  string word = 1;\n}\n"),
    ],
}

# What the next version does with that.
_NEXT_CODE = {
    "edgefarm/model/trials.py": """

@dataclass(frozen=True)
class DreamWork(MemoryWork):
    pass
""",
    "edgefarm/model/sessions.py": """

@dataclass(frozen=True)
class Praise:
    word: str
""",
    "edgefarm/model/__init__.py": """
from edgefarm.model.sessions import Praise
from edgefarm.model.trials import DreamWork
""",
    "edgefarm/wire.py": """

_ONEOF_OF["work"] = Union[model.Work, model.DreamWork]
_ONEOF_MEMBER[model.DreamWork] = "dream"
_CONTROLLER_BODY[model.Praise] = "praise"
_plain_agent, _plain_controller = encode_agent, encode_controller


def encode_agent(body):
    message = _plain_agent(body)
    name = message.WhichOneof("body")
    if name in ("hello", "probed"):
        device = getattr(message, name).device
        device.mood = "curious"
        device.capabilities.add(runtime="quantum", provider="qpu", version="1", available=True, formats=["qasm"])
    if name == "hello":
        message.hello.motto = "onwards"
    if name == "heartbeat":
        message.heartbeat.motto = "beat"
    if name == "telemetry":
        message.telemetry.families.add(name="edgefarm_humidity_ratio").series.add(value=0.5)
    if name == "attempt":
        attempt = message.attempt
        attempt.mood = "proud"
        attempt.conditions.traces.add(quantity="humidity_ratio", source="room", n=1, first=0.5, low=0.5, high=0.5, last=0.5)
        if attempt.HasField("latency"):
            attempt.latency.sheep = 7
        if attempt.order.endswith("strange-outcome"):
            attempt.dream.of = "electric sheep"
        if attempt.order.endswith("strange-kind"):
            attempt.failure.kind, attempt.failure.detail = 90, "it was dull"
    return message


def encode_controller(body):
    message = _plain_controller(body)
    if message.WhichOneof("body") in ("welcome", "ack"):
        getattr(message, message.WhichOneof("body")).motto = "well met"
    return message
""",
    "agent/link.py": """

class _Talkative(Outgoing):
    def __iter__(self):
        from edgefarm.v1 import fleet_pb2

        for message in super().__iter__():
            yield message
            if message.WhichOneof("body") == "hello":
                yield fleet_pb2.AgentMessage(diary=fleet_pb2.Diary(entry="a new day"))


Outgoing = _Talkative
""",
    "controller/versions.py": """
from edgefarm.model import DreamWork

_WORK_FEATURES[DreamWork] = "latency"  # as if it forgot that there are agents who don't know it
""",
    "controller/sessions.py": """

_send = Session.send


def _send_and_praise(self, bodies):
    from edgefarm.model import Praise

    _send(self, [*bodies, Praise("well done")])


Session.send = _send_and_praise
""",
}


class OtherVersion:
    """A copy of edgefarm in `folder`, of another version.

    Args:
        protocol: that it speaks; it understands the two before.
        features: instead of all.
        further: whether it also has what a later protocol adds.
    """

    def __init__(self, folder: Path, version: str, protocol: int, features: Sequence[str] | None = None, *, further: bool = False) -> None:
        self.folder, self.version = folder, version
        # With what is compiled: an agent would compile it anew each time, since only what is edited here is newer.
        for package in _PACKAGES:
            shutil.copytree(ROOT / package, folder / package)
        shutil.copytree(ROOT / "proto" / "edgefarm", folder / "edgefarm")
        self._edit("edgefarm/__init__.py", r'__version__ = ".*"', f'__version__ = "{version}"')
        self._edit("edgefarm/model/sessions.py", r"(?m)^PROTOCOL = \d+", f"PROTOCOL = {protocol}")
        if protocol < 1:  # as it never was: no version spoke less than 1
            self._edit("edgefarm/model/sessions.py", r"max\(1, PROTOCOL", "max(0, PROTOCOL")
        if features is not None:
            self._edit("edgefarm/model/sessions.py", r"(?ms)^(FEATURES: [^=]*) = \(.*?\)$", rf"\1 = {tuple(features)!r}")
        if further:
            self._go_further()

    @property
    def within(self) -> list[str]:
        """Words before a command, so that it is this version's."""
        return ["env", "-C", str(self.folder), f"PYTHONPATH={self.folder}"]

    def _edit(self, file: str, pattern: str, replacement: str) -> None:
        path = self.folder / file
        text, count = re.subn(pattern, replacement, path.read_text())
        assert count, f"{file}: no {pattern}"
        path.write_text(text)

    def _go_further(self) -> None:
        require_generator()
        for name, edits in _NEXT_PROTO.items():
            for pattern, replacement in edits:
                self._edit(f"edgefarm/v1/{name}", pattern, replacement)
        protos = sorted(str(p.relative_to(self.folder)) for p in (self.folder / "edgefarm" / "v1").glob("*.proto"))
        command = [str(PROTOC), "-m", "grpc_tools.protoc", "-I.", "--python_out=.", "--grpc_python_out=.", *protos]
        subprocess.run(command, check=True, cwd=self.folder, capture_output=True, timeout=120)
        for name, code in _NEXT_CODE.items():
            with (self.folder / name).open("a") as file:
                file.write(code)


def require_generator() -> None:
    """Skips, saying why, where no protocol can be generated."""
    if not PROTOC.exists():
        pytest.skip(f"NOT TESTED: peers that speak a later protocol: no {PROTOC} to generate one (`make proto` makes it)")

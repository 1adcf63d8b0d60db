"""The only place where `edgefarm.model` meets protobuf: a converter per dataclass, derived once from its fields.

Field names are equal on both sides. Mapping of types: tuple -> repeated, Mapping -> map, `X | None` -> presence,
enum -> enum (by name; a number from a newer peer becomes UNSPECIFIED), a union of dataclasses -> oneof. Fields that only a newer peer
knows are ignored.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from google.protobuf.message import DecodeError, Message

from edgefarm import model
from edgefarm.errors import ProtocolError
from edgefarm.v1 import fleet_pb2, types_pb2

T = TypeVar("T")

_ONEOF_OF = {"work": model.Work, "outcome": model.Outcome}
_RENAMED: dict[Any, str] = {model.Progress: "ProgressReply"}
_AGENT_BODY = {t: n for n, t in (
    ("hello", model.Hello), ("heartbeat", model.Heartbeat), ("probed", model.Probed), ("attempt", model.Attempt),
    ("order_ended", model.OrderEnded), ("deployment_status", model.DeploymentStatus), ("telemetry", model.Telemetry))}  # fmt: skip
_CONTROLLER_BODY = {t: n for n, t in (
    ("welcome", model.Welcome), ("order", model.Order), ("cancel", model.Cancel), ("ack", model.Ack),
    ("deployment", model.Deployment), ("drain", model.Drain))}  # fmt: skip
_ONEOF_MEMBER: dict[type, str] = {
    model.LatencyWork: "latency", model.MemoryWork: "memory", model.AccuracyWork: "accuracy", model.EnergyWork: "energy",
    model.ProfileWork: "profile", model.EnergyResult: "energy", model.ProfileResult: "profile",
    model.LatencyResult: "latency", model.MemoryResult: "memory", model.AccuracyResult: "accuracy", model.Failure: "failure",
}  # fmt: skip


def encode(value: Any) -> Any:
    """The protobuf message that equals a dataclass of `edgefarm.model`."""
    message = _message_type(type(value))()
    for write, _ in _fields(type(value)):
        write(value, message)
    return message


def decode(kind: type[T], message: Message) -> T:
    """The dataclass `kind` that equals `message`. Raises ProtocolError if the message lacks what the class needs."""
    if not isinstance(message, _message_type(kind)):
        raise ProtocolError(f"expected {kind.__name__}, got {type(message).__name__}")
    values: dict[str, Any] = {}
    for _, read in _fields(kind):
        read(message, values)
    return kind(**values)


def to_bytes(value: Any) -> bytes:
    """Serialised form of a dataclass; equal values give equal bytes."""
    return bytes(encode(value).SerializeToString(deterministic=True))


def from_bytes(kind: type[T], payload: bytes) -> T:
    """Inverse of `to_bytes`. Raises ProtocolError on bytes that are no such message."""
    message = _message_type(kind)()
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        raise ProtocolError(f"not a {kind.__name__}: {error}") from error
    return decode(kind, message)


def encode_agent(body: model.AgentBody) -> fleet_pb2.AgentMessage:
    """What an agent says, in its envelope."""
    return fleet_pb2.AgentMessage(**{_AGENT_BODY[type(body)]: encode(body)})


def decode_agent(message: fleet_pb2.AgentMessage) -> model.AgentBody | None:
    """What an agent said; None for a kind that only a newer protocol knows.

    A result of a kind that only a newer one knows is a failure that says so: somebody waits for it.
    """
    if message.WhichOneof("body") == "attempt" and message.attempt.WhichOneof("outcome") is None:
        unknown = model.Failure(model.FailureKind.UNSPECIFIED, "its agent gave a result of a kind that only a newer version knows")
        message.attempt.failure.CopyFrom(encode(unknown))
    return _open(message, _AGENT_BODY)  # type: ignore[no-any-return]


def encode_controller(body: model.ControllerBody) -> fleet_pb2.ControllerMessage:
    """What the controller says, in its envelope."""
    return fleet_pb2.ControllerMessage(**{_CONTROLLER_BODY[type(body)]: encode(body)})


def decode_controller(message: fleet_pb2.ControllerMessage) -> model.ControllerBody | None:
    """What the controller said; None for a kind that only a newer protocol knows."""
    return _open(message, _CONTROLLER_BODY)  # type: ignore[no-any-return]


def _open(message: Message, table: dict[Any, str]) -> Any:
    name = message.WhichOneof("body")
    kind = next((t for t, n in table.items() if n == name), None)
    return None if kind is None else decode(kind, getattr(message, name or ""))


_Writer = Callable[[Any, Any], None]
_Reader = Callable[[Any, dict[str, Any]], None]


_MESSAGE_TYPES: dict[Any, type[Message]] = {}
_CONVERTERS: dict[Any, tuple[tuple[_Writer, _Reader], ...]] = {}


def _message_type(kind: Any) -> type[Message]:
    if kind not in _MESSAGE_TYPES:
        name = _RENAMED.get(kind, kind.__name__)
        _MESSAGE_TYPES[kind] = getattr(_module_with(name), name)
    return _MESSAGE_TYPES[kind]


def _fields(kind: Any) -> tuple[tuple[_Writer, _Reader], ...]:
    if kind not in _CONVERTERS:
        hints = get_type_hints(kind)
        _CONVERTERS[kind] = tuple(_field(f.name, hints[f.name]) for f in dataclasses.fields(kind))
    return _CONVERTERS[kind]


def _field(name: str, hint: Any) -> tuple[_Writer, _Reader]:
    if name in _ONEOF_OF:
        return _oneof(name, _ONEOF_OF[name])
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple:
        return _repeated(name, arguments[0])
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return _map(name, arguments[1])
    if origin in (Union, types.UnionType) and type(None) in arguments:
        return _optional(name, next(a for a in arguments if a is not type(None)))
    return _single(name, hint)


def _scalars(hint: Any) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Writer and reader of one non-message value."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        prefix = "".join("_" + c if c.isupper() else c.upper() for c in hint.__name__).lstrip("_")
        numbers = getattr(_module_with(hint.__name__), hint.__name__)
        by_number = {numbers.Value(f"{prefix}_{m.name}"): m for m in hint}
        to_number = {m: n for n, m in by_number.items()}
        return to_number.__getitem__, lambda number: by_number.get(number, by_number[0])
    return lambda v: v, lambda v: v


def _module_with(name: str) -> Any:
    """The generated module that defines `name`; that of the driver's service is only loaded where somebody needs it."""
    found = next((m for m in (types_pb2, fleet_pb2) if hasattr(m, name)), None)
    if found is None:
        from edgefarm.v1 import control_pb2

        found = control_pb2
    return found


def _single(name: str, hint: Any) -> tuple[_Writer, _Reader]:
    if dataclasses.is_dataclass(hint):

        def write_message(value: Any, message: Any) -> None:
            getattr(message, name).CopyFrom(encode(getattr(value, name)))

        def read_message(message: Any, values: dict[str, Any]) -> None:
            values[name] = decode(hint, getattr(message, name))  # type: ignore[arg-type]

        return write_message, read_message
    put, get = _scalars(hint)

    def write(value: Any, message: Any) -> None:
        setattr(message, name, put(getattr(value, name)))

    def read(message: Any, values: dict[str, Any]) -> None:
        values[name] = get(getattr(message, name))

    return write, read


def _optional(name: str, hint: Any) -> tuple[_Writer, _Reader]:
    write_present, read_present = _single(name, hint)

    def write(value: Any, message: Any) -> None:
        if getattr(value, name) is not None:
            write_present(value, message)

    def read(message: Any, values: dict[str, Any]) -> None:
        if message.HasField(name):
            read_present(message, values)
        else:
            values[name] = None

    return write, read


def _repeated(name: str, hint: Any) -> tuple[_Writer, _Reader]:
    nested = dataclasses.is_dataclass(hint)

    def write(value: Any, message: Any) -> None:
        items = getattr(value, name)
        getattr(message, name).extend([encode(i) for i in items] if nested else items)

    def read(message: Any, values: dict[str, Any]) -> None:
        items = getattr(message, name)
        values[name] = tuple(decode(hint, i) for i in items) if nested else tuple(items)

    return write, read


def _map(name: str, hint: Any) -> tuple[_Writer, _Reader]:
    options = hint == model.Scalar

    def write(value: Any, message: Any) -> None:
        target = getattr(message, name)
        for key, item in getattr(value, name).items():
            if options:
                setattr(target[key], _option_kind(item), item)
            else:
                target[key] = item

    def read(message: Any, values: dict[str, Any]) -> None:
        items = getattr(message, name)
        values[name] = {k: _option(k, items[k]) if options else items[k] for k in sorted(items)}

    return write, read


def _option(key: str, value: Any) -> model.Scalar:
    """Without it something else would be measured than what was meant, so a kind that only a newer version knows is refused."""
    if (kind := value.WhichOneof("kind")) is None:
        raise ProtocolError(f"option {key!r}: no value that this version knows")
    return getattr(value, kind)  # type: ignore[no-any-return]


def _option_kind(item: model.Scalar) -> str:
    if isinstance(item, bool):
        return "flag"
    return {int: "integer", float: "real", str: "text"}[type(item)]


def _oneof(name: str, union: Any) -> tuple[_Writer, _Reader]:
    by_member = {_ONEOF_MEMBER[t]: t for t in get_args(union)}

    def write(value: Any, message: Any) -> None:
        item = getattr(value, name)
        getattr(message, _ONEOF_MEMBER[type(item)]).CopyFrom(encode(item))

    def read(message: Any, values: dict[str, Any]) -> None:
        member = message.WhichOneof(name)
        if member is None:
            raise ProtocolError(f"{type(message).__name__}: no {name} that this version knows")
        values[name] = decode(by_member[member], getattr(message, member))

    return write, read

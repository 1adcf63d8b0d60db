"""The private protocol between a supervisor and its runner: frames of a JSON header and a binary payload, both bounded.

A frame is `"efr1"`, uint32 header length, uint64 payload length (little endian), the header (a UTF-8 JSON object), the payload.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgefarm.errors import ProtocolError

HEADER_LIMIT = 2**20
PAYLOAD_LIMIT = 64 * 2**20
_MAGIC = b"efr1"
_PREFIX = struct.Struct("<4sIQ")


@dataclass(frozen=True)
class Frame:
    """One message: a JSON object and bytes."""

    header: dict[str, Any]
    payload: bytes = b""


def encode(header: Mapping[str, Any], payload: bytes = b"") -> bytes:
    """One frame as bytes. Raises ProtocolError if a part is too large, ValueError if the header is not JSON (NaN included)."""
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    _check_sizes(len(text), len(payload))
    return b"".join((_PREFIX.pack(_MAGIC, len(text), len(payload)), text, payload))


class Decoder:
    """Gathers chunks of any size into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._sizes: tuple[int, int] | None = None

    def feed(self, chunk: bytes) -> None:
        """Appends what arrived."""
        self._buffer += chunk

    def next(self) -> Frame | None:
        """The next whole frame, or None until more has arrived. Raises ProtocolError on bytes that are no frame."""
        if self._sizes is None:
            if len(self._buffer) < _PREFIX.size:
                return None
            magic, header, payload = _PREFIX.unpack_from(self._buffer)
            if magic != _MAGIC:
                raise ProtocolError(f"not a frame: starts with {bytes(magic)!r}")
            _check_sizes(header, payload)
            self._sizes = (header, payload)
        header_end = _PREFIX.size + self._sizes[0]
        end = header_end + self._sizes[1]
        if len(self._buffer) < end:
            return None
        with memoryview(self._buffer) as view:
            frame = Frame(_parse(bytes(view[_PREFIX.size : header_end])), bytes(view[header_end:end]))
        del self._buffer[:end]
        self._sizes = None
        return frame


def _check_sizes(header: int, payload: int) -> None:
    if header > HEADER_LIMIT:
        raise ProtocolError(f"frame header of {header} bytes is above the limit of {HEADER_LIMIT}")
    if payload > PAYLOAD_LIMIT:
        raise ProtocolError(f"frame payload of {payload} bytes is above the limit of {PAYLOAD_LIMIT}")


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"frame header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ProtocolError("frame header is not a JSON object")
    return header

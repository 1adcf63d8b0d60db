"""Frames between a supervisor and its runner."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.runner import frames
from agent.runner.frames import Decoder, Frame, encode
from edgefarm.errors import ProtocolError

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_FRAMES = st.builds(Frame, st.dictionaries(st.text(max_size=8), _JSON, max_size=4), st.binary(max_size=200))


@given(st.lists(_FRAMES, max_size=4), st.data())
def test_frames_survive_any_cutting(sent: list[Frame], data: st.DataObject) -> None:
    stream = b"".join(encode(f.header, f.payload) for f in sent)
    decoder, received, position = Decoder(), [], 0
    while position < len(stream):
        step = data.draw(st.integers(1, len(stream) - position))
        decoder.feed(stream[position : position + step])
        position += step
        while (frame := decoder.next()) is not None:
            received.append(frame)
    assert received == sent
    assert decoder.next() is None


def test_part_of_a_frame_is_none_yet() -> None:
    decoder = Decoder()
    decoder.feed(encode({"a": 1}, b"xyz")[:-1])
    assert decoder.next() is None
    decoder.feed(b"z")
    assert decoder.next() == Frame({"a": 1}, b"xyz")


@pytest.mark.parametrize("stream", [b"GET / HTTP/1.1\r\nHost: x\r\n", b"\0" * 16])
def test_other_bytes_are_refused(stream: bytes) -> None:
    decoder = Decoder()
    decoder.feed(stream)
    with pytest.raises(ProtocolError, match="not a frame"):
        decoder.next()


@pytest.mark.parametrize(("header", "payload", "part"), [(2**32 - 1, 0, "header"), (2, 2**63, "payload")])
def test_sizes_are_bounded_before_anything_is_gathered(header: int, payload: int, part: str) -> None:
    decoder = Decoder()
    decoder.feed(struct.pack("<4sIQ", b"efr1", header, payload))
    with pytest.raises(ProtocolError, match=f"frame {part} of .* above the limit"):
        decoder.next()


@pytest.mark.parametrize("text", [b"{", b"[1]", b"\xff\xff", b'"text"', b"[" * 500_000, b'{"a":' * 100_000])
def test_a_header_is_a_json_object(text: bytes) -> None:
    decoder = Decoder()
    decoder.feed(struct.pack("<4sIQ", b"efr1", len(text), 0) + text)
    with pytest.raises(ProtocolError, match="JSON"):
        decoder.next()


def test_nothing_too_large_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "PAYLOAD_LIMIT", 10)
    with pytest.raises(ProtocolError, match="payload of 11 bytes"):
        encode({}, b"x" * 11)
    monkeypatch.setattr(frames, "HEADER_LIMIT", 10)
    with pytest.raises(ProtocolError, match="header"):
        encode({"long": "x" * 20})


def test_a_header_without_json_form_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode({"value": float("nan")})

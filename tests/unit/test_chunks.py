"""Messages made by hand are what protobuf makes and reads."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from edgefarm import chunks
from edgefarm.v1.artifacts_pb2 import Chunk


@given(st.binary(max_size=300), st.integers(0, 2**64 - 1))
@example(bytes(2**20), 0)
@example(bytes(2**20), 2**40)
@example(bytes(127), 0)
@example(bytes(128), 0)
@example(bytes(2**14), 0)
@example(b"", 0)
def test_protobuf_reads_what_was_encoded(data: bytes, total: int) -> None:
    message = chunks.encode(data, total)
    read = Chunk.FromString(message)
    assert (read.data, read.total) == (data, total)
    assert chunks.encode(memoryview(data), total) == message


@given(st.binary(max_size=300), st.integers(0, 2**64 - 1))
@example(bytes(2**20), 0)
@example(bytes(2**20), 2**40)
def test_what_protobuf_wrote_is_decoded(data: bytes, total: int) -> None:
    for message in (Chunk(data=data, total=total).SerializeToString(), chunks.encode(data, total)):
        read, told = chunks.decode(message)
        assert (bytes(read), told) == (data, total)


@given(st.binary(max_size=40))
@example(b"\x0a")
@example(b"\x0a\x80")
@example(b"\x0a" + b"\x80" * 20)
@example(b"\x0a\x81\x00x")  # one byte, its size written the long way
@example(b"\x0a\x01a\x0a\x01b")  # the last one counts
@example(b"\x0a\x01a\x1a\x01b")  # a field of a later version
@example(b"\x10\x05\x0a\x01a")
def test_any_bytes_mean_what_protobuf_says(message: bytes) -> None:
    try:
        expected = Chunk.FromString(message)
    except DecodeError:
        with pytest.raises(DecodeError):
            chunks.decode(message)
        return
    read, told = chunks.decode(message)
    assert (bytes(read), told) == (expected.data, expected.total)


def test_data_is_not_copied_out_of_a_message_that_holds_nothing_else() -> None:
    message = chunks.encode(bytes(2**20))
    read, _ = chunks.decode(message)
    assert isinstance(read, memoryview)
    assert read.obj is message

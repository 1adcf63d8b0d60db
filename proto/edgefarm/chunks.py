"""The messages of `Artifacts.Fetch`, without the copies that a message object costs: most of a transfer's work is copying.

On the wire they are plain protobuf messages `Chunk`: any other implementation reads and writes them.
"""

from __future__ import annotations

from edgefarm.v1.artifacts_pb2 import Chunk

FETCH = "/edgefarm.v1.Artifacts/Fetch"
_DATA = b"\x0a"  # field 1, length-delimited
_LONGEST_HEAD = 6  # for data below 4 GiB


def encode(data: bytes | memoryview, total: int = 0) -> bytes:
    """A serialized `Chunk`."""
    return b"".join((_head(len(data)), data, Chunk(total=total).SerializeToString()))


def decode(message: bytes) -> tuple[bytes | memoryview, int]:
    """(data, total) of a serialized `Chunk`; data is a view into `message` where that holds nothing else.

    Raises:
        google.protobuf.message.DecodeError: it is not such a message.
    """
    begin = 2
    while message[begin - 1 : begin] >= b"\x80" and begin < _LONGEST_HEAD:
        begin += 1
    if begin <= len(message) and message[:begin] == _head(len(message) - begin):
        return memoryview(message)[begin:], 0
    chunk = Chunk.FromString(message)
    return chunk.data, chunk.total


def _head(size: int) -> bytes:
    """What stands before `size` bytes of data: the field, and the size in base 128, low digits first, all but the last with the highest bit
    (https://protobuf.dev/programming-guides/encoding/).
    """
    head = bytearray(_DATA)
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head)

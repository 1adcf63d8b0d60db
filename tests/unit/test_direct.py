"""Large files written past the page cache: the same bytes as any other way, whatever breaks off in between."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import direct
from agent.direct import DirectFile
from edgefarm.digest import DigestWriter, digest_bytes

CONTENT = random.Random(3).randbytes(5 * 2**20 + 777)


def append(path: Path, offset: int, pieces: list[bytes], *, sync: bool) -> None:
    sink = DirectFile(path, offset)
    try:
        for piece in pieces:
            sink.write(memoryview(piece))
        if sync:
            sink.sync()
    finally:
        sink.close()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 20_000), st.lists(st.integers(0, 1_300_000), max_size=6), st.booleans())
def test_what_is_appended_follows_what_was_there(
    tmp_path_factory: pytest.TempPathFactory, begun: int, sizes: list[int], sync: bool
) -> None:
    path = tmp_path_factory.mktemp("direct") / "f"
    path.write_bytes(CONTENT[:begun])
    pieces, at = [], begun
    for size in sizes:
        pieces.append(CONTENT[at : at + size])
        at += size
    append(path, begun, pieces, sync=sync)
    assert path.read_bytes() == CONTENT[:begun] + b"".join(pieces)


def test_a_file_system_that_refuses_direct_writes_is_written_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, refused = os.pwrite, []

    def pwrite(descriptor: int, data: Any, at: int) -> int:
        import fcntl

        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(at)
            raise OSError(errno.EINVAL, "not here")
        return real(descriptor, data, at)

    monkeypatch.setattr(direct.os, "pwrite", pwrite)
    path = tmp_path / "f"
    path.touch()
    append(path, 0, [CONTENT], sync=True)
    assert refused == [0]
    assert path.read_bytes() == CONTENT


def test_a_full_disk_is_the_writers_error_and_what_was_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite

    def pwrite(descriptor: int, data: Any, at: int) -> int:
        if at >= 2 * 2**20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data, at)

    monkeypatch.setattr(direct.os, "pwrite", pwrite)
    path = tmp_path / "f"
    path.touch()
    with pytest.raises(OSError, match="No space"):
        append(path, 0, [CONTENT], sync=True)
    assert path.read_bytes() == CONTENT[: 2 * 2**20]


@pytest.mark.parametrize("cut", [1, 4096, 2**20, 3 * 2**20 + 5])
def test_a_digest_writer_goes_on_through_it(tmp_path: Path, cut: int) -> None:
    digest, path = digest_bytes(CONTENT), tmp_path / "f"
    with DigestWriter(path, digest) as writer:
        writer.through(DirectFile)
        writer.write(CONTENT[:cut])
    with DigestWriter(path, digest) as writer:
        assert writer.offset == cut
        writer.through(DirectFile)
        writer.write(CONTENT[cut:])
        assert writer.commit() == path
    assert path.read_bytes() == CONTENT


def test_a_restart_forgets_what_was_in_the_buffers(tmp_path: Path) -> None:
    digest, path = digest_bytes(b"short"), tmp_path / "f"
    with DigestWriter(path, digest) as writer:
        writer.through(DirectFile)
        writer.write(CONTENT[:5000])
        writer.restart()
        writer.write(b"short")
        writer.commit()
    assert path.read_bytes() == b"short"

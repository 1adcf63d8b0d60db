"""Digests, and files that are whole or absent: written aside, verified, synced, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, Protocol

from edgefarm.errors import DigestMismatch

PREFIX = "sha256:"
_BLOCK = 1 << 20


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, no spaces, UTF-8: equal values give equal bytes. NaN and infinities raise ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_bytes(payload: bytes | bytearray | memoryview) -> str:
    """`sha256:<hex>` of `payload`."""
    return PREFIX + hashlib.sha256(payload).hexdigest()


def digest_file(path: Path) -> str:
    """`sha256:<hex>` of a file's content."""
    with path.open("rb", buffering=0) as stream:
        return PREFIX + _hash_stream(stream).hexdigest()


def artifact_digest(files: Iterable[tuple[str, str, int]]) -> str:
    """Digest of an artifact from (name, digest, bytes) of its files: the file's own if there is one, else that of their list."""
    entries = sorted(files)
    if not entries:
        raise ValueError("an artifact has at least one file")
    if len(entries) == 1:
        return entries[0][1]
    return digest_bytes(canonical_json([{"name": n, "digest": d, "bytes": b} for n, d, b in entries]))


def check_digest(digest: str) -> str:
    """Returns the 64 hex digits of a well-formed digest; raises ValueError otherwise (it becomes a file name: be strict)."""
    digits = digest[len(PREFIX) :]
    if not digest.startswith(PREFIX) or len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        raise ValueError(f"not a digest: {digest!r}")
    return digits


def sync_directory(path: Path) -> None:
    """Makes renames and unlinks inside `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, payload: bytes, mode: int = 0o644) -> None:
    """Replaces `path` by `payload`, durably: a reader or a power cut sees the old content or the new, whole."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(payload)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


class Sink(Protocol):
    """Takes what is appended to a file."""

    def write(self, chunk: memoryview) -> None:
        """All of it, now or later. Raises the OSError of this or an earlier write."""
        ...

    def sync(self) -> None:
        """What was written is on the disk. Raises OSError."""
        ...

    def close(self) -> None:
        """Keeps what can be kept."""
        ...


class DigestWriter:
    """Writes a file that appears under `path` only when whole and right; what arrived before a break is kept.

    Use as a context manager: `with DigestWriter(path, digest) as w: w.write(chunk) …; w.commit()`.
    The partial file is `path` + `.part`; `offset` says where to go on. Leaving without `commit` keeps it.
    Not safe for two writers of one path: callers hold a lock per digest.
    """

    def __init__(self, path: Path, digest: str) -> None:
        check_digest(digest)
        self.path = path
        self.digest = digest
        self.part = path.with_name(path.name + ".part")
        self.offset = 0
        self._hash = hashlib.sha256()
        self._stream: IO[bytes] | None = None
        self._sink: Sink | None = None

    def __enter__(self) -> DigestWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self.part.open("a+b", buffering=0)
        self._stream.seek(0)
        self._hash = _hash_stream(self._stream)
        self.offset = self._stream.tell()
        return self

    def __exit__(self, *_: object) -> None:
        self._leave_sink()
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def through(self, open_sink: Callable[[Path, int], Sink]) -> None:
        """From now on writes go to `open_sink(part, offset)`. Raises its OSError."""
        self._sink = open_sink(self.part, self.offset)

    def write(self, chunk: bytes | memoryview) -> None:
        """Appends `chunk`. Raises OSError (disk full …): the part that was written stays for a later resume."""
        assert self._stream is not None
        view = memoryview(chunk)
        if self._sink is not None:
            self._sink.write(view)
            self._hash.update(view)
            self.offset += len(view)
            return
        while view:
            written = self._stream.write(view)
            self._hash.update(view[:written])
            self.offset += written or 0
            view = view[written:]

    def restart(self) -> None:
        """Throws away what arrived so far."""
        assert self._stream is not None
        self._leave_sink()
        self._stream.truncate(0)
        self._hash = hashlib.sha256()
        self.offset = 0

    def commit(self) -> Path:
        """Verifies, syncs and renames. Raises DigestMismatch (and drops the partial file) if the content is not what was promised."""
        assert self._stream is not None
        got = PREFIX + self._hash.hexdigest()
        if got != self.digest:
            self.part.unlink(missing_ok=True)
            raise DigestMismatch(f"{self.path.name}: expected {self.digest}, got {got}")
        if self._sink is not None:
            self._sink.sync()
        os.fsync(self._stream.fileno())
        os.rename(self.part, self.path)
        sync_directory(self.path.parent)
        return self.path

    def _leave_sink(self) -> None:
        if self._sink is not None:
            self._sink.close()
            self._sink = None


def _hash_stream(stream: IO[bytes]) -> hashlib._Hash:
    state = hashlib.sha256()
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    while count := stream.readinto(buffer):  # type: ignore[attr-defined]
        state.update(view[:count])
    return state

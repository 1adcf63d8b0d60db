"""Bytes by digest on the device: verified once, kept under a quota, the least recently used go first."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from edgefarm.digest import DigestWriter, check_digest, digest_bytes, digest_file, sync_directory
from edgefarm.errors import NotFound, ProtocolError, QuotaExceeded
from edgefarm.model import Artifact, FileEntry

_LOG = logging.getLogger(__name__)
# Every verified file carries this modification time. Whoever writes into one changes it, so that it is hashed again before use;
# the access time is ours to keep the order of use.
_VERIFIED_NS = 1_000_000_000 * 10**9
_DEPTH = 8  # of a file below its artifact's folder


def check_name(name: str) -> str:
    """Returns a relative file name (`model.onnx`, `weights/a.bin`); raises ProtocolError for one that could leave its folder or hide."""
    parts = name.split("/")
    bad = any(not p or p.startswith(".") or "\\" in p or "\0" in p or len(p.encode()) > 255 for p in parts)
    if bad or len(parts) > _DEPTH:
        raise ProtocolError(f"not a plain file name: {name!r}")
    return name


def link_or_copy(source: Path, target: Path) -> None:
    """Hard link, or a durable copy where the file system has none across the two folders."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        with source.open("rb") as reader, target.open("xb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
            writer.flush()
            os.fsync(writer.fileno())


class Cache:
    """Content-addressed files under `root`/sha256/ab/<hex>. Safe for several threads, for one process.

    Args:
        root: the folder.
        quota_bytes: most bytes to keep, partial transfers included.
    """

    def __init__(self, root: Path, quota_bytes: int) -> None:
        self.quota_bytes = quota_bytes
        self._root = root / "sha256"
        self._root.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._pins: dict[str, frozenset[str]] = {}
        self._writers: dict[str, threading.Lock] = {}
        self._reserved: dict[str, int] = {}

    def path(self, digest: str) -> Path:
        """Where the bytes are, or would be. Raises ValueError if `digest` is malformed."""
        digits = check_digest(digest)
        return self._root / digits[:2] / digits

    def find(self, digest: str, size: int | None = None) -> Path | None:
        """The verified file, marked as used; None if it is absent, or was damaged (then it is dropped, to be fetched again)."""
        path = self.path(digest)
        with self._lock:
            try:
                status = path.stat()
            except FileNotFoundError:
                return None
            intact = size is None or status.st_size == size
            if intact and status.st_mtime_ns != _VERIFIED_NS:
                intact = digest_file(path) == digest
            if not intact:
                _LOG.warning("%s was damaged on disk: dropped", digest)
                path.unlink()
                return None
            self._mark(path)
            return path

    def verify(self, digest: str) -> Path | None:
        """As `find`, but hashes the content again: for bytes that are about to go live."""
        path = self.find(digest)
        if path is None or digest_file(path) == digest:
            return path
        _LOG.warning("%s was damaged on disk: dropped", digest)
        self.discard(digest)
        return None

    def discard(self, digest: str) -> None:
        """Drops the bytes, whole and partial."""
        path = self.path(digest)
        with self._lock:
            path.unlink(missing_ok=True)
            path.with_name(path.name + ".part").unlink(missing_ok=True)

    def put(self, payload: bytes) -> str:
        """Stores bytes made here; returns their digest. Raises OSError, QuotaExceeded."""
        digest = digest_bytes(payload)
        if self.find(digest, len(payload)) is None:
            with self.writer(digest) as writer:
                writer.restart()
                self.reserve(digest, len(payload))
                writer.write(payload)
                self.commit(writer)
        return digest

    def put_file(self, source: Path, owner: str) -> str:
        """Takes a file that was made here over into the cache (it is moved); returns its digest.

        `owner` pins it, on top of what it has pinned, before anybody could evict it. Raises OSError, QuotaExceeded.
        """
        digest = digest_file(source)
        size = source.stat().st_size
        with self._lock:
            self._pins[owner] = self._pins.get(owner, frozenset()) | {digest}
        if self.find(digest, size) is not None:
            source.unlink()
            return digest
        path = self.path(digest)
        with self._exclusive(digest):
            self.reserve(digest, size)
            path.parent.mkdir(parents=True, exist_ok=True)
            with source.open("rb") as stream:
                os.fsync(stream.fileno())
            os.rename(source, path)
            self._seal(path)
        return digest

    @contextlib.contextmanager
    def writer(self, digest: str) -> Iterator[DigestWriter]:
        """The one writer of these bytes; goes on where an earlier one broke off. End it with `commit`."""
        with self._exclusive(digest), DigestWriter(self.path(digest), digest) as writer:
            yield writer

    def reserve(self, digest: str, size: int) -> None:
        """Makes room for `size` bytes of the digest being written. Raises QuotaExceeded if what is in use leaves none."""
        with self._lock:
            self._reserved[digest] = size
            keep = self._in_use()
            entries = self._entries()
            held = sum(s for _, s, d in entries if d not in self._reserved) + sum(self._reserved.values())
            for path, entry_size, owner in entries:
                if held <= self.quota_bytes:
                    return
                if owner not in keep:
                    path.unlink(missing_ok=True)
                    held -= entry_size
            if held > self.quota_bytes:
                raise QuotaExceeded(
                    f"the device's cache of {self.quota_bytes} bytes has no room for {size}: {held - size} are in use; "
                    "give the agent a larger --cache-bytes"
                )

    def commit(self, writer: DigestWriter) -> Path:
        """Verifies and keeps what `writer` has. Raises DigestMismatch, OSError."""
        path = writer.commit()
        self._seal(path)
        return path

    def pin(self, owner: str, digests: Iterable[str]) -> None:
        """Keeps these digests from eviction until `unpin(owner)`; replaces what the owner pinned before."""
        with self._lock:
            self._pins[owner] = frozenset(digests)

    def unpin(self, owner: str) -> None:
        """Lets go of what `owner` pinned."""
        with self._lock:
            self._pins.pop(owner, None)

    def materialise(self, artifact: Artifact, into: Path) -> Path:
        """Links the artifact's files under their own names into `into`; returns the path of the main file.

        Runtimes look for external data beside the model, under the exact name that the model gives it.

        Raises:
            NotFound: a file is not (or no longer) in the cache.
            ProtocolError: a name that is not a plain file name, or one that comes twice.
        """
        names = [check_name(f.name) for f in artifact.files]
        if not names or len(set(names)) != len(names):
            raise ProtocolError(f"{artifact.digest}: its files have no names, or one name twice")
        into.mkdir(parents=True, exist_ok=True)
        for entry in artifact.files:
            self._materialise_one(entry, into / entry.name)
        return into / artifact.main_file

    def _materialise_one(self, entry: FileEntry, target: Path) -> None:
        source = self.find(entry.digest, entry.bytes)
        if source is None:
            raise NotFound(f"{entry.name} ({entry.digest}) is not in the device's cache")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        link_or_copy(source, target)

    @contextlib.contextmanager
    def _exclusive(self, digest: str) -> Iterator[None]:
        with self._lock:
            lock = self._writers.setdefault(digest, threading.Lock())
        with lock:
            try:
                yield
            finally:
                with self._lock:
                    self._reserved.pop(digest, None)

    def _in_use(self) -> frozenset[str]:
        return frozenset(self._reserved).union(*self._pins.values())

    def _entries(self) -> list[tuple[Path, int, str]]:
        """(path, bytes, digest) of every file, whole or partial, least recently used first."""
        found = []
        for path in self._root.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                found.append((status.st_atime_ns, path, status.st_size, "sha256:" + path.name.partition(".")[0]))
        return [(path, size, digest) for _, path, size, digest in sorted(found)]

    def _seal(self, path: Path) -> None:
        path.chmod(0o444)
        self._mark(path)
        sync_directory(path.parent)

    def _mark(self, path: Path) -> None:
        os.utime(path, ns=(time.time_ns(), _VERIFIED_NS))

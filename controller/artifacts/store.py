"""`ArtifactStore`: content-addressed files, `sha256/ab/<64 hex digits>` below a folder or a fsspec URL.

A file appears under its name only when whole, verified and synced. In a folder it is served where it lies; of a remote
file system a verified copy is kept in a local folder, which also takes what is on its way up.
"""

from __future__ import annotations

import contextlib
import errno
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from io import FileIO
from pathlib import Path
from typing import Any

from edgefarm.digest import PREFIX, DigestWriter, check_digest, digest_bytes, digest_file
from edgefarm.errors import NotFound, ProtocolError, StorageError, UserError

_BLOCK = 1 << 20
_READ_ONLY = 0o444


class ArtifactStore:
    """Bytes by digest. Safe from any thread; one writer of a digest at a time, others wait.

    Args:
        location: a folder, a `file://` URL, or the URL of another fsspec file system (`s3://bucket/prefix`, `memory://…`).
        local: for the last kind, a folder for local copies.

    Every method raises StorageError where the file system fails, ValueError for a malformed digest.
    """

    def __init__(self, location: Path | str, local: Path | None = None) -> None:
        self._remote: Any = None
        self._prefix = ""
        if isinstance(location, str) and "://" in location and not location.startswith("file://"):
            if local is None:
                raise UserError(f"artifacts {location}: a local folder for copies is needed")
            self._remote, self._prefix = _remote(location)
            self._root = local
        else:
            self._root = Path(str(location).removeprefix("file://"))
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        with self._failures():
            self._root.mkdir(parents=True, exist_ok=True)

    def has(self, digest: str) -> bool:
        """Whether the whole content is there."""
        with self._failures():
            return self._file(digest).exists() or (self._remote is not None and bool(self._remote.exists(self._key(digest))))

    def size(self, digest: str) -> int:
        """Bytes of the whole content. Raises NotFound."""
        with self._failures():
            file = self._file(digest)
            if file.exists():
                return file.stat().st_size
            if self._remote is not None and self._remote.exists(self._key(digest)):
                return int(self._remote.size(self._key(digest)))
        raise NotFound(f"no artifact {digest}")

    def arrived(self, digest: str) -> int:
        """Bytes of a content that is still on its way: where its writer goes on."""
        with self._failures(), contextlib.suppress(FileNotFoundError):
            return self._part(digest).stat().st_size
        return 0

    def put(self, source: Path | bytes) -> str:
        """Copies a file, or bytes, into the store unless they are there. Returns the digest.

        The file is copied, never linked: its owner may go on writing to it.
        """
        if isinstance(source, bytes):
            digest = digest_bytes(source)
            if not self.has(digest):
                self._copy(digest, [source])
            return digest
        with self._failures(source):
            digest = digest_file(source)
        if not self.has(digest):
            with self._failures(source), source.open("rb", buffering=0) as stream:
                self._copy(digest, iter(lambda: stream.read(_BLOCK), b""))
        return digest

    def _copy(self, digest: str, chunks: Iterable[bytes]) -> None:
        with self.writer(digest) as writer:
            if writer.complete:
                return
            writer.restart()
            try:
                for chunk in chunks:
                    writer.write(chunk)
                writer.commit()
            except BaseException:  # the source is at hand: a part of it would only take space
                self._part(digest).unlink(missing_ok=True)
                raise

    @contextlib.contextmanager
    def writer(self, digest: str) -> Iterator[ArtifactWriter]:
        """A writer that goes on where the last one stopped; waits while another one writes the same digest."""
        file = self._file(digest)
        with self._locks[digest], contextlib.ExitStack() as held:
            with self._failures():
                inner = held.enter_context(DigestWriter(file, digest))
                writer = ArtifactWriter(inner, self._publish, self._failures, complete=self.has(digest))
            yield writer
            if writer.complete:
                with self._failures():
                    self._part(digest).unlink(missing_ok=True)

    def _publish(self, digest: str, file: Path) -> None:
        file.chmod(_READ_ONLY)
        if self._remote is not None:
            self._remote.makedirs(self._key(digest).rsplit("/", 1)[0], exist_ok=True)
            self._remote.put_file(str(file), self._key(digest))

    def local_path(self, digest: str) -> Path:
        """A local, read-only file with the content: the stored file itself, or a verified copy. Raises NotFound, DigestMismatch."""
        file = self._file(digest)
        with self._failures():
            if file.exists():
                return file
            if self._remote is None or not self._remote.exists(self._key(digest)):
                raise NotFound(f"no artifact {digest}")
            with self._locks[digest], DigestWriter(file, digest) as writer, self._remote.open(self._key(digest), "rb") as stream:
                writer.restart()
                while block := stream.read(_BLOCK):
                    writer.write(block)
                path = writer.commit()
                path.chmod(_READ_ONLY)
                return path

    def open(self, digest: str, offset: int = 0) -> FileIO:
        """An unbuffered stream of the content from `offset` on. Raises NotFound, ProtocolError (an offset beyond the end)."""
        size = self.size(digest)
        if not 0 <= offset <= size:
            raise ProtocolError(f"artifact {digest} has {size} bytes: offset {offset} lies beyond")
        path = self.local_path(digest)
        with self._failures():
            stream = path.open("rb", buffering=0)
            stream.seek(offset)
            return stream

    def delete(self, digest: str) -> None:
        """Removes a content, what arrived of it, and local copies."""
        with self._locks[digest], self._failures():
            self._file(digest).unlink(missing_ok=True)
            self._part(digest).unlink(missing_ok=True)
            if self._remote is not None and self._remote.exists(self._key(digest)):
                self._remote.rm_file(self._key(digest))

    def sizes(self) -> dict[str, int]:
        """Bytes of every whole content, by digest."""
        with self._failures():
            if self._remote is None:
                return {PREFIX + p.name: p.stat().st_size for p in sorted(self._root.glob("sha256/??/*")) if not p.suffix}
            found = self._remote.find(self._prefix, detail=True).values() if self._remote.exists(self._prefix) else ()
            return {PREFIX + f["name"].rsplit("/", 1)[-1]: int(f["size"]) for f in found}

    def _file(self, digest: str) -> Path:
        digits = check_digest(digest)
        return self._root / "sha256" / digits[:2] / digits

    def _part(self, digest: str) -> Path:
        file = self._file(digest)
        return file.with_name(file.name + ".part")

    def _key(self, digest: str) -> str:
        digits = check_digest(digest)
        return f"{self._prefix}/sha256/{digits[:2]}/{digits}"

    @contextlib.contextmanager
    def _failures(self, place: Path | None = None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = error.filename or place or self._root
            raise StorageError(f"artifacts {where}: {error.strerror or error}: {_remedy(error)}") from error


class ArtifactWriter:
    """Takes one content, in order. `complete`: the whole content is there, nothing is left to write."""

    def __init__(
        self,
        inner: DigestWriter,
        publish: Callable[[str, Path], None],
        failures: Callable[[], AbstractContextManager[None]],
        *,
        complete: bool,
    ) -> None:
        self._inner, self._publish, self._failures = inner, publish, failures
        self.complete = complete

    @property
    def offset(self) -> int:
        """Bytes that arrived."""
        return self._inner.offset

    def write(self, chunk: bytes | memoryview) -> None:
        """Appends `chunk`. Raises StorageError: what was written stays, for a later writer to go on."""
        with self._failures():
            self._inner.write(chunk)

    def restart(self) -> None:
        """Throws away what arrived so far."""
        with self._failures():
            self._inner.restart()

    def commit(self) -> None:
        """Verifies, syncs, publishes. Raises DigestMismatch: the content is not what its digest says, nothing of it is kept."""
        with self._failures():
            self._publish(self._inner.digest, self._inner.commit())
        self.complete = True


def _remote(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs  # imported late: a folder needs none of it

        system, prefix = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(f"artifacts {url}: {error}") from error
    return system, str(prefix).rstrip("/")


def _remedy(error: OSError) -> str:
    return {
        errno.ENOSPC: "free some space on its file system, then run again",
        errno.EDQUOT: "free some of your disk quota, then run again",
        errno.EROFS: "make it writable, or choose another place with --state",
        errno.EACCES: "make it accessible, or choose another place with --state",
        errno.ENOENT: "check the name",
    }.get(error.errno or 0, "check the disk, then run again")

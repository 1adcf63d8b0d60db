"""What passes made, by what went in: `steps/KEY.json` says how a step ended, `objects/DIGEST/` holds the files of its output.

Everything is written aside, synced and renamed, so that a killed run leaves no entry that is later believed. A hit is believed only
if its files are there, whole: sizes always, digests again where a file was touched since.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgefarm.digest import atomic_write, canonical_json, check_digest, digest_bytes, digest_file, sync_directory
from edgefarm.errors import StorageError
from edgefarm.model import Artifact, FileEntry, Scalar
from optimizer.dataset import Dataset
from optimizer.process import PassReply
from optimizer.source import describe

SCHEMA = 1


@dataclass(frozen=True)
class Key:
    """Everything that a step's result depends on.

    Attributes:
        io: how the samples' tensors map to the parent's, as JSON.
        train: digests of the samples to train with and of the model to learn from; empty for what does not train.
    """

    pass_name: str
    version: int
    checks: int
    parameters: Mapping[str, Scalar]
    parent: str
    calibration: str
    probe: str
    tools: Mapping[str, str]
    seed: int = 0
    io: Mapping[str, Any] = field(default_factory=dict)
    train: str = ""

    @property
    def digest(self) -> str:
        """`sha256:…`; another schema of the cache makes other keys."""
        mappings = {name: dict(getattr(self, name)) for name in ("parameters", "tools", "io")}
        told = {name: value for name, value in vars(self).items() if name != "train" or value}  # keys of before there was training stay
        return digest_bytes(canonical_json([SCHEMA, {**told, **mappings}]))


@dataclass(frozen=True)
class Entry:
    """How a step ended; `artifact` is set if it changed something. `timeout_s`: the time it was given."""

    reply: PassReply
    artifact: Artifact | None = None
    timeout_s: float = 0.0


class Cache:
    """A folder of results. Several processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            for name in ("steps", "objects", "data", "work", "training"):
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from error

    def find(self, key: Key, timeout_s: float) -> Entry | None:
        """The stored end of a step, if it can be believed; one that timed out only if it was given as much time."""
        try:
            entry = _decode(json.loads(self._step(key).read_bytes()))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if entry.reply.kind == "timeout" and entry.timeout_s < timeout_s:
            return None
        return entry if entry.artifact is None or self._whole(entry.artifact) else None

    def store(self, key: Key, reply: PassReply, out: Path | None, timeout_s: float) -> Entry:
        """Keeps a step's end and moves its output in. Raises StorageError if the disk does not take it."""
        try:
            artifact = None if out is None else self._keep(out, reply.format)
            entry = Entry(reply, artifact, timeout_s)
            if not reply.transient:
                atomic_write(self._step(key), canonical_json(_encode(entry)))
                shutil.rmtree(self.checkpoints(key), ignore_errors=True)
        except OSError as error:
            raise _unwritable(self.folder, error) from error
        return entry

    def object_folder(self, artifact: Artifact) -> Path:
        """Where an artifact's files lie."""
        return self.folder / "objects" / check_digest(artifact.digest)

    def data(self, samples: Dataset, *, targets: bool = False) -> Path:
        """The file that hands samples to pass processes, with their `targets` if they are asked for."""
        path = self.folder / "data" / f"{check_digest(samples.digest)}{'.train' if targets else ''}.npz"
        if not path.exists():
            try:
                (samples.save if targets else samples.save_inputs)(path)
            except OSError as error:
                raise StorageError(f"{path}: can't be written: {error.strerror}") from error
        return path

    def checkpoints(self, key: Key) -> Path:
        """A folder where a step's training keeps how far it is; `store` removes it once the step has ended for good."""
        return self.folder / "training" / key.digest.split(":")[1][:32]

    @contextlib.contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder for one run's temporary files; what killed runs left behind is removed on the way."""
        root = self.folder / "work"
        for stale in root.iterdir():
            with contextlib.suppress(OSError), _locked(stale / "lock"):
                shutil.rmtree(stale, ignore_errors=True)
        mine = root / uuid.uuid4().hex
        mine.mkdir()
        with _locked(mine / "lock", create=True):
            try:
                yield mine
            finally:
                shutil.rmtree(mine, ignore_errors=True)

    def _step(self, key: Key) -> Path:
        return self.folder / "steps" / f"{check_digest(key.digest)}.json"

    def _keep(self, out: Path, model_format: str) -> Artifact:
        names = tuple(sorted(p.name for p in out.iterdir()))
        artifact = describe(out, names, model_format)
        target = self.object_folder(artifact)
        if target.exists():
            if self._whole(artifact):
                return artifact
            shutil.rmtree(target)
        for name in names:
            with (out / name).open("rb") as stream:
                os.fchmod(stream.fileno(), 0o444)
                os.fsync(stream.fileno())
        stamps = {name: (out / name).stat().st_mtime_ns for name in names}
        atomic_write(out / ".stamps", canonical_json(stamps))
        try:
            os.rename(out, target)
        except OSError:
            if not self._whole(artifact):  # else another process was quicker with the same bytes
                raise
        sync_directory(target.parent)
        return artifact

    def _whole(self, artifact: Artifact) -> bool:
        folder = self.object_folder(artifact)
        try:
            stamps = json.loads((folder / ".stamps").read_bytes())
            return all(_is_whole(folder / f.name, f, stamps.get(f.name)) for f in artifact.files)
        except (OSError, ValueError):
            return False


def _is_whole(path: Path, entry: FileEntry, stamp: int | None) -> bool:
    status = path.stat()
    return status.st_size == entry.bytes and (status.st_mtime_ns == stamp or digest_file(path) == entry.digest)


@contextlib.contextmanager
def _locked(path: Path, *, create: bool = False) -> Iterator[None]:
    """Holds a lock file; raises OSError if another process holds it, or it is not there."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _encode(entry: Entry) -> dict[str, Any]:
    artifact = None
    if entry.artifact is not None:
        a = entry.artifact
        artifact = {"digest": a.digest, "bytes": a.bytes, "format": a.format, "files": [vars(f) for f in a.files]}
    return {"reply": entry.reply.as_json(), "artifact": artifact, "timeout_s": entry.timeout_s}


def _decode(value: Mapping[str, Any]) -> Entry:
    artifact = None
    if value["artifact"] is not None:
        files = tuple(FileEntry(**f) for f in value["artifact"]["files"])
        artifact = Artifact(**{**value["artifact"], "files": files})
    return Entry(PassReply(**value["reply"]), artifact, value["timeout_s"])


def _unwritable(folder: Path, error: OSError) -> StorageError:
    remedy = "free some space, or make it writable, then run again"
    return StorageError(f"{folder}: the cache of the optimizer can't be written: {error.strerror}: {remedy}")

"""What every artifact store must do; each test runs over a folder and over a remote fsspec file system."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.artifacts import ArtifactStore
from edgefarm.digest import digest_bytes
from edgefarm.errors import DigestMismatch, NotFound, ProtocolError, StorageError, UserError

BYTES = os.urandom(3_000_000)
DIGEST = digest_bytes(BYTES)


@pytest.fixture(params=["folder", "file-url", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ArtifactStore]:
    if request.param == "remote":
        made = ArtifactStore(f"memory://{uuid.uuid4().hex}/prefix", tmp_path / "copies")
        yield made
        for digest in made.sizes():
            made.delete(digest)
    else:
        yield ArtifactStore(tmp_path / "store" if request.param == "folder" else f"file://{tmp_path}/store")


def test_bytes_come_back_under_their_digest(store: ArtifactStore) -> None:
    assert not store.has(DIGEST)
    assert store.put(BYTES) == DIGEST
    assert store.put(BYTES) == DIGEST
    assert store.has(DIGEST)
    assert store.size(DIGEST) == len(BYTES)
    assert store.local_path(DIGEST).read_bytes() == BYTES
    assert store.sizes() == {DIGEST: len(BYTES)}


def test_a_stored_file_is_read_only_and_its_source_stays_the_user_s(store: ArtifactStore, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    source.write_bytes(BYTES)
    assert store.put(source) == DIGEST
    path = store.local_path(DIGEST)
    assert path.stat().st_mode & 0o222 == 0
    source.write_bytes(b"edited in place")
    assert path.read_bytes() == BYTES


def test_reading_starts_anywhere(store: ArtifactStore) -> None:
    store.put(BYTES)
    for offset in (0, 1, len(BYTES) - 1, len(BYTES)):
        with store.open(DIGEST, offset) as stream:
            assert stream.read() == BYTES[offset:]
    with pytest.raises(ProtocolError, match="offset 3000001 lies beyond"):
        store.open(DIGEST, len(BYTES) + 1)


def test_what_is_not_there_is_not_found(store: ArtifactStore) -> None:
    for call in (store.size, store.local_path, store.open):
        with pytest.raises(NotFound, match=DIGEST):
            call(DIGEST)
    store.delete(DIGEST)
    assert store.sizes() == {}


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:" + "A" * 64, "sha256:../../etc/passwd", "md5:" + "0" * 64])
def test_a_malformed_digest_names_no_file(store: ArtifactStore, digest: str) -> None:
    for call in (store.has, store.size, store.local_path, store.delete, store.arrived):
        with pytest.raises(ValueError, match="not a digest"):
            call(digest)


def test_a_broken_write_goes_on_where_it_stopped(store: ArtifactStore) -> None:
    def break_off() -> None:
        with store.writer(DIGEST) as writer:
            writer.write(BYTES[:1000])
            raise ConnectionError

    with pytest.raises(ConnectionError):  # not one of the store's: it comes through as it is
        break_off()
    assert store.arrived(DIGEST) == 1000
    assert not store.has(DIGEST)
    assert store.sizes() == {}
    with store.writer(DIGEST) as writer:
        assert (writer.offset, writer.complete) == (1000, False)
        writer.write(BYTES[1000:])
        writer.commit()
    with store.writer(DIGEST) as writer:
        assert writer.complete
    assert store.arrived(DIGEST) == 0
    assert store.local_path(DIGEST).read_bytes() == BYTES


def test_wrong_bytes_never_appear(store: ArtifactStore) -> None:
    with store.writer(DIGEST) as writer:
        writer.write(BYTES[:-1] + bytes([BYTES[-1] ^ 1]))
        with pytest.raises(DigestMismatch):
            writer.commit()
    assert not store.has(DIGEST)
    assert store.arrived(DIGEST) == 0
    store.put(BYTES)
    assert store.has(DIGEST)


def test_put_does_not_build_on_what_a_peer_left(store: ArtifactStore) -> None:
    with store.writer(DIGEST) as writer:
        writer.write(b"wrong")
    assert store.put(BYTES) == DIGEST
    assert store.local_path(DIGEST).read_bytes() == BYTES


def test_many_threads_put_the_same_bytes(store: ArtifactStore) -> None:
    failures: list[BaseException] = []

    def put() -> None:
        try:
            store.put(BYTES)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.sizes() == {DIGEST: len(BYTES)}
    assert store.local_path(DIGEST).read_bytes() == BYTES


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(payload=st.binary(max_size=300), cuts=st.lists(st.integers(0, 300), max_size=4))
def test_any_way_of_cutting_gives_the_same_file(store: ArtifactStore, payload: bytes, cuts: list[int]) -> None:
    digest = digest_bytes(payload)
    for cut in sorted(c for c in cuts if c < len(payload)):
        with store.writer(digest) as writer:
            if not writer.complete:
                writer.write(payload[writer.offset : cut])
    with store.writer(digest) as writer:
        if not writer.complete:
            writer.write(payload[writer.offset :])
            writer.commit()
    assert store.local_path(digest).read_bytes() == payload


def test_a_remote_copy_that_was_damaged_on_the_way_is_not_used(tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    first = ArtifactStore(url, tmp_path / "first")
    first.put(BYTES)
    remote = first._remote
    (name,) = remote.find(first._prefix)
    remote.pipe_file(name, BYTES[:-1] + b"!")
    with pytest.raises(DigestMismatch):
        ArtifactStore(url, tmp_path / "second").local_path(DIGEST)
    assert first.local_path(DIGEST).read_bytes() == BYTES


def test_a_remote_store_needs_a_folder_and_a_known_protocol(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a local folder for copies is needed"):
        ArtifactStore("memory://x")
    with pytest.raises(UserError, match="nosuch://x"):
        ArtifactStore("nosuch://x", tmp_path)


def test_failures_of_the_disk_say_where_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=f"artifacts {tmp_path}/file"):
        ArtifactStore(tmp_path / "file")
    store = ArtifactStore(tmp_path / "store")
    with pytest.raises(StorageError, match=r"missing\.onnx: No such file or directory"):
        store.put(tmp_path / "missing.onnx")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device: free some space on its file system"):
        store.put(BYTES)
    monkeypatch.undo()
    assert list((tmp_path / "store").rglob("*.part")) == []
    assert store.put(BYTES) == DIGEST

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.cache import Cache, check_name
from edgefarm.digest import artifact_digest, digest_bytes
from edgefarm.errors import DigestMismatch, NotFound, ProtocolError, QuotaExceeded
from edgefarm.model import Artifact, FileEntry


def artifact(files: dict[str, bytes]) -> Artifact:
    entries = tuple(FileEntry(n, digest_bytes(p), len(p)) for n, p in sorted(files.items()))
    digest = artifact_digest((e.name, e.digest, e.bytes) for e in entries)
    return Artifact(digest, sum(e.bytes for e in entries), "onnx", entries)


def test_put_is_found_again_also_by_the_next_process(tmp_path: Path) -> None:
    digest = Cache(tmp_path, 1000).put(b"weights")
    again = Cache(tmp_path, 1000)
    path = again.find(digest, 7)
    assert path is not None
    assert path.read_bytes() == b"weights"
    assert path.relative_to(tmp_path).parts == ("sha256", digest[7:9], digest[7:])


def test_put_file_moves_it(tmp_path: Path) -> None:
    made = tmp_path / "outputs.npz"
    made.write_bytes(b"outputs")
    cache = Cache(tmp_path / "cache", 1000)
    digest = cache.put_file(made, "attempt")
    assert digest == digest_bytes(b"outputs")
    assert not made.exists()
    made.write_bytes(b"outputs")
    assert cache.put_file(made, "attempt") == digest  # twice: it is there already
    assert not made.exists()


def test_what_put_file_takes_is_pinned_before_anybody_can_evict_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 10)
    taken = []
    for name in ("outputs", "gold"):
        (tmp_path / name).write_bytes(name.encode()[:5])
        taken.append(cache.put_file(tmp_path / name, "attempt"))
    with pytest.raises(QuotaExceeded):
        cache.put(b"another")
    assert all(cache.find(digest) for digest in taken)
    cache.unpin("attempt")
    cache.put(b"another")


def test_a_broken_transfer_goes_on_where_it_was(tmp_path: Path) -> None:
    payload = b"0123456789" * 10
    digest = digest_bytes(payload)
    cache = Cache(tmp_path, 1000)
    with cache.writer(digest) as writer:
        writer.write(payload[:30])
    assert cache.find(digest) is None
    again = Cache(tmp_path, 1000)
    with again.writer(digest) as writer:
        assert writer.offset == 30
        writer.write(payload[30:])
        again.commit(writer)
    found = again.find(digest)
    assert found is not None
    assert found.read_bytes() == payload


def test_wrong_bytes_are_never_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    digest = digest_bytes(b"right")
    with cache.writer(digest) as writer:
        writer.write(b"wrong")
        with pytest.raises(DigestMismatch):
            cache.commit(writer)
    assert cache.find(digest) is None
    with cache.writer(digest) as writer:
        assert writer.offset == 0


@pytest.mark.parametrize("damage", [b"", b"longer than before", b"weightZ"], ids=["emptied", "longer", "same-size"])
def test_a_damaged_file_is_dropped(tmp_path: Path, damage: bytes) -> None:
    cache = Cache(tmp_path, 1000)
    path = cache.path(cache.put(b"weights"))
    path.chmod(0o644)
    path.write_bytes(damage)
    assert cache.find(digest_bytes(b"weights"), 7) is None
    assert not path.exists()


def test_verify_sees_bit_rot_that_left_no_trace_in_the_times(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1000)
    digest = cache.put(b"weights")
    path = cache.path(digest)
    status = path.stat()
    path.chmod(0o644)
    path.write_bytes(b"weightZ")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert cache.find(digest, 7) is not None
    assert cache.verify(digest) is None
    assert cache.find(digest, 7) is None


def test_the_least_recently_used_goes_first_and_pinned_ones_stay(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 30)
    first, second, third = (cache.put(bytes([i]) * 10) for i in range(3))
    assert cache.find(first) is not None  # used again: the second is the oldest now
    fourth = cache.put(b"4" * 10)
    assert [cache.find(d) is not None for d in (first, second, third, fourth)] == [True, False, True, True]
    cache.pin("order", [third])
    fifth = cache.put(b"5" * 10)  # the first was used before third and fourth were looked at
    assert [cache.find(d) is not None for d in (first, third, fourth, fifth)] == [False, True, True, True]


def test_what_is_in_use_is_never_evicted(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 30)
    held = [cache.put(bytes([i]) * 10) for i in range(3)]
    cache.pin("order", held)
    with pytest.raises(QuotaExceeded, match="--cache-bytes"):
        cache.put(b"more")
    assert all(cache.find(d) for d in held)
    cache.unpin("order")
    assert cache.find(cache.put(b"more")) is not None


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 12), st.booleans()), max_size=12))
def test_the_quota_holds_whatever_comes(tmp_path_factory: pytest.TempPathFactory, puts: list[tuple[int, bool]]) -> None:
    root = tmp_path_factory.mktemp("cache")
    cache, pinned = Cache(root, 40), []
    for number, (size, pin) in enumerate(puts):
        try:
            digest = cache.put(bytes([number]) * size)
        except QuotaExceeded:
            continue
        if pin:
            pinned.append(digest)
            cache.pin("held", pinned)
    assert sum(p.stat().st_size for p in root.rglob("*") if p.is_file()) <= 40
    assert all(cache.find(d) for d in pinned)


def test_materialise_gives_files_their_own_names(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 1000)
    parts = {"net.onnx": b"graph", "net.onnx.data": b"weights"}
    for payload in parts.values():
        cache.put(payload)
    main = cache.materialise(artifact(parts), tmp_path / "order")
    assert main == tmp_path / "order" / "net.onnx"
    assert {p.name: p.read_bytes() for p in main.parent.iterdir()} == parts
    assert not any(p.is_symlink() for p in main.parent.iterdir())  # runtimes refuse external data behind a link


def test_materialise_keeps_folders_of_external_data(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 1000)
    parts = {"net.onnx": b"graph", "weights/part.bin": b"weights"}
    for content in parts.values():
        cache.put(content)
    main = cache.materialise(artifact(parts), tmp_path / "order")
    assert {n: (main.parent / n).read_bytes() for n in parts} == parts


def test_materialise_without_the_bytes(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"net\.onnx"):
        Cache(tmp_path / "cache", 1000).materialise(artifact({"net.onnx": b"graph"}), tmp_path / "order")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/../../x", "a//b", "a/.b", "/etc/passwd", "a/" * 8 + "b", ".hidden", "a\\b", "a\0b", "x" * 256]
)
def test_names_that_could_leave_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ProtocolError):
        check_name(name)
    cache = Cache(tmp_path / "cache", 1000)
    cache.put(b"graph")
    with pytest.raises(ProtocolError):
        cache.materialise(artifact({name: b"graph"}), tmp_path / "order")
    assert not (tmp_path / "order").exists()


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:" + "0" * 63, "sha256:" + "/" * 64, "md5:" + "0" * 64])
def test_a_malformed_digest_is_no_path(tmp_path: Path, digest: str) -> None:
    with pytest.raises(ValueError, match="not a digest"):
        Cache(tmp_path, 1000).find(digest)


def test_without_hard_links_it_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    cache = Cache(tmp_path / "cache", 1000)
    cache.put(b"graph")
    monkeypatch.setattr(os, "link", refuse)
    main = cache.materialise(artifact({"net.onnx": b"graph"}), tmp_path / "order")
    assert main.read_bytes() == b"graph"
    assert main.stat().st_nlink == 1

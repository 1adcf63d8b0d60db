"""What every store must keep of tokens and members."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from controller.store import Identities, Member, SqlStore, Token

NOW_MS = 1_800_000_000_000
TOKEN = Token("hash-1", "device", "", "", {"site": "lab"}, 2, NOW_MS + 1000, False, "ann")
MEMBER = Member("device", "pi", "", ("key-1",), "hash-1", {"site": "lab"}, "good", "", ("m1", "m2"), NOW_MS)


def _in_file(folder: Path) -> SqlStore:
    return SqlStore(folder / "store.db")


def _in_memory(_: Path) -> SqlStore:
    return SqlStore(":memory:")


@pytest.fixture(params=[_in_file, _in_memory], ids=["sqlite-file", "sqlite-memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Identities]:
    opened: Callable[[Path], SqlStore] = request.param
    made = opened(tmp_path)
    yield made
    made.close()


def test_a_token_comes_back_as_it_was(store: Identities) -> None:
    assert store.token("hash-1") is None
    store.add_token(TOKEN, NOW_MS)
    assert store.token("hash-1") == TOKEN


def test_tokens_that_are_over_go_with_the_next_one(store: Identities) -> None:
    store.add_token(TOKEN, NOW_MS)
    store.add_token(replace(TOKEN, secret_hash="used", uses=0), NOW_MS)
    store.add_token(replace(TOKEN, secret_hash="later", expires_unix_ms=NOW_MS + 9000), NOW_MS + 999)
    assert store.token("hash-1") is not None
    assert store.token("used") is None
    store.add_token(replace(TOKEN, secret_hash="last", expires_unix_ms=NOW_MS + 9000), NOW_MS + 1000)
    assert store.token("hash-1") is None
    assert store.token("later") is not None


def test_one_token_per_name(store: Identities) -> None:
    store.add_token(TOKEN, NOW_MS)
    store.add_token(replace(TOKEN, secret_hash="pi-1", name="pi"), NOW_MS)
    store.add_token(replace(TOKEN, secret_hash="user", kind="user", name="pi"), NOW_MS)
    store.add_token(replace(TOKEN, secret_hash="pi-2", name="pi"), NOW_MS)
    assert store.token("pi-1") is None
    store.drop_tokens("device", "pi")
    assert store.token("pi-2") is None
    assert store.token("user") is not None
    assert store.token("hash-1") is not None


def test_members_are_replaced_by_kind_and_name(store: Identities) -> None:
    store.save_member(MEMBER)
    store.save_member(replace(MEMBER, kind="user", role="viewer"))
    store.save_member(replace(MEMBER, name="a", keys=()))
    changed = replace(MEMBER, keys=("key-2", "key-3"), standing="quarantined", reason="copied", labels={}, machines=())
    store.save_member(changed)
    assert store.members() == [replace(MEMBER, name="a", keys=()), changed, replace(MEMBER, kind="user", role="viewer")]


def test_a_member_and_the_use_of_its_token_are_one(store: Identities) -> None:
    store.add_token(TOKEN, NOW_MS)
    store.save_member(MEMBER, "hash-1")
    assert store.token("hash-1") == replace(TOKEN, uses=1)
    store.save_member(MEMBER)
    assert store.token("hash-1") == replace(TOKEN, uses=1)

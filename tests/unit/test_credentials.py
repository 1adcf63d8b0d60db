"""Tokens, addresses and the files of an identity."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from edgefarm.channels import open_channel
from edgefarm.credentials import (
    Identity,
    JoinToken,
    is_local,
    load_identity,
    load_key,
    parse_address,
    parse_token,
    proof_of_key,
    save_identity,
    save_key,
)
from edgefarm.errors import StorageError, UserError

WHO = Identity("device", "pi", "farm.example:7443", "farm.example:7444", "KEY", "CERTIFICATE", "AUTHORITY", 1000, 4000)


def test_a_token_is_read_back() -> None:
    token = JoinToken("a-secret_1", "0123456789abcdef" * 2)
    assert parse_token(f" {token}\n") == token
    assert token.secret not in token.secret_hash


@pytest.mark.parametrize(
    "text", ["", "edgefarm1", "edgefarm1.a.b", "edgefarm2.a." + "0" * 32, "edgefarm1.a." + "0" * 33, "edgefarm1.." + "0" * 32]
)
def test_what_is_no_token_is_said(text: str) -> None:
    with pytest.raises(UserError, match="controller token create"):
        parse_token(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("farm.example", ("farm.example", 7443)),
        ("10.0.0.1:80", ("10.0.0.1", 80)),
        ("[::1]:80", ("[::1]", 80)),
        ("[fe80::1]", ("[fe80::1]", 7443)),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, found: tuple[str, int]) -> None:
    assert parse_address(text) == found


@pytest.mark.parametrize("text", ["", ":80", "a:0", "a:65536", "a:b", "a:1:2", "http://a:80", "a b:80", "unix:/x"])
def test_what_is_no_address_is_said(text: str) -> None:
    with pytest.raises(UserError, match="HOST:PORT"):
        parse_address(text)


@pytest.mark.parametrize("address", ["unix:/run/x.sock", "127.0.0.1:80", "127.1.2.3:80", "localhost:80", "[::1]:80"])
def test_plain_text_may_be_spoken_here(address: str) -> None:
    assert is_local(address)
    open_channel(address).close()


@pytest.mark.parametrize(
    "address", ["10.0.0.1:80", "farm.example:80", "127.0.0.1.example:80", "[::2]:80", "0.0.0.0:80", "localhost.example:80"]
)
def test_plain_text_to_another_machine_is_refused(address: str) -> None:
    assert not is_local(address)
    with pytest.raises(UserError, match="without a certificate"):
        open_channel(address)


def test_an_identity_is_kept_for_its_user_only(tmp_path: Path) -> None:
    folder = tmp_path / "identity"
    assert load_identity(folder) is None
    assert load_key(folder) == ""
    save_key(folder, "KEY")
    assert load_identity(folder) is None  # a key alone is nobody yet
    save_identity(folder, WHO)
    assert load_identity(folder) == WHO
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {0o600}
    save_identity(folder, replace(WHO, certificate_pem="LATER"))
    assert load_identity(folder) == replace(WHO, certificate_pem="LATER")
    assert sorted(p.name for p in folder.iterdir()) == ["identity.json", "key.pem"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"kind": "device", "extra": 1}'])
def test_a_damaged_identity_is_said(tmp_path: Path, content: str) -> None:
    save_key(tmp_path, "KEY")
    (tmp_path / "identity.json").write_text(content)
    with pytest.raises(UserError, match="remove the folder and enroll anew"):
        load_identity(tmp_path)


def test_what_a_newer_version_keeps_besides_is_left_alone(tmp_path: Path) -> None:
    save_key(tmp_path, WHO.key_pem)
    save_identity(tmp_path, WHO)
    (file,) = tmp_path.glob("*.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "motto": "onwards"}))
    assert load_identity(tmp_path) == WHO


def test_a_folder_that_can_not_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/identity/key\.pem"):
        save_key(tmp_path / "file" / "identity", "KEY")


def test_it_is_renewed_after_two_thirds_of_its_life() -> None:
    assert WHO.renewal_unix_ms == 3000


def test_a_proof_covers_nonce_and_certificate() -> None:
    assert len({proof_of_key(n, c) for n in (b"1" * 32, b"2" * 32) for c in (b"a", b"b")}) == 4

"""Which identity a command shows at which controller, and when it is renewed."""

from __future__ import annotations

import stat
import time
from dataclasses import replace
from pathlib import Path

import pytest

from controller import login
from controller.login import folder_of, identity_for, renewed, write_pem
from edgefarm import enrolment
from edgefarm.credentials import Identity, save_identity, save_key
from edgefarm.enrolment import Renewed
from edgefarm.errors import Denied, StorageError, Unreachable, UserError

DAY_MS = 86_400_000


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv(login.TOKEN_VARIABLE, raising=False)
    return tmp_path


def kept(age_days: float, address: str = "farm:7443") -> Identity:
    """An identity in its folder, with a certificate of 30 days."""
    born = int(time.time() * 1000 - age_days * DAY_MS)
    identity = Identity("user", "anna", address, "farm:7444", "key", "certificate", "authority", born, born + 30 * DAY_MS)
    save_key(folder_of(address), "key")
    save_identity(folder_of(address), identity)
    return identity


def test_every_controller_has_a_folder(home: Path) -> None:
    found = {folder_of(a) for a in ("farm:7443", "farm:7445", "farm", "[::1]:7443", "10.0.0.1:7443")}
    assert len(found) == 4, "the usual port may be left out"
    assert {f.parent for f in found} == {home / "edgefarm" / "controllers"}
    assert folder_of("unix:/run/x/control.sock") == Path("/run/x")
    with pytest.raises(UserError, match="expected HOST:PORT"):
        folder_of("far/m:7443")


def test_who_has_not_logged_in_is_told_how() -> None:
    with pytest.raises(UserError, match="log in first: controller login --controller farm:7443 --token TOKEN"):
        identity_for("farm:7443")


def test_a_token_of_the_environment_logs_in(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Identity("user", "ci", "farm:7443", "farm:7444", "k", "c", "a", 0, 0)
    asked: list[tuple[str, str, str]] = []

    def enroll(address: str, token: str, name: str, folder: Path, kind: str) -> Identity:
        asked.append((address, token, kind))
        return wanted

    monkeypatch.setattr(enrolment, "enroll", enroll)
    monkeypatch.setenv(login.TOKEN_VARIABLE, "a token")
    assert identity_for("farm:7443") == wanted
    assert asked == [("farm:7443", "a token", "user")]


@pytest.mark.parametrize(("age_days", "due"), [(0.0, False), (19.9, False), (20.1, True), (90.0, True)])
def test_an_old_certificate_is_renewed(monkeypatch: pytest.MonkeyPatch, age_days: float, due: bool) -> None:
    identity = kept(age_days)
    fresh = replace(identity, certificate_pem="fresh")
    monkeypatch.setattr(enrolment, "renew", lambda folder: Renewed(fresh, 0))
    assert identity_for("farm:7443") == (fresh if due else identity)


def test_who_is_shut_out_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    kept(25.0)

    def renew(folder: Path) -> Renewed:
        raise Denied("user 'anna' is revoked")

    monkeypatch.setattr(enrolment, "renew", renew)
    with pytest.raises(Denied, match="is revoked"):
        identity_for("farm:7443")


def test_without_a_token_logging_in_renews(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="log in first"):
        renewed("farm:7443")
    fresh = replace(kept(0.0), certificate_pem="fresh")
    monkeypatch.setattr(enrolment, "renew", lambda folder: Renewed(fresh, 0))
    assert renewed("farm:7443") == fresh


def test_files_for_other_programs(tmp_path: Path) -> None:
    write_pem(kept(0.0), tmp_path / "for" / "prometheus")
    write_pem(kept(0.0), tmp_path / "for" / "prometheus")
    files = {p.name: (p.read_text(), stat.S_IMODE(p.stat().st_mode)) for p in (tmp_path / "for" / "prometheus").iterdir()}
    assert files == {f"{n}.pem": (n, 0o600) for n in ("authority", "certificate", "key")}
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"--pem .*file/x: Not a directory: choose a folder"):
        write_pem(kept(0.0), tmp_path / "file" / "x")


def test_what_can_t_be_renewed_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    identity = kept(25.0)

    def renew(folder: Path) -> Renewed:
        raise Unreachable("nobody answers")

    monkeypatch.setattr(enrolment, "renew", renew)
    assert identity_for("farm:7443") == identity
    assert "the certificate was not renewed: nobody answers" in caplog.text

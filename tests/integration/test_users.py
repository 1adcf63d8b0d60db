"""Users of a running controller, by what people type: several machines, roles, shutting out, taking in again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import Done, controller
from tests.integration.serving import ServeProcess


class Farm:
    """A controller process, and people with a configuration folder per machine."""

    def __init__(self, served: ServeProcess, folder: Path) -> None:
        self._served, self._folder = served, folder

    def on(self, machine: str, *words: str) -> Done:
        where = self._served.socket if machine == "farm" else self._served.join
        changes = {"XDG_CONFIG_HOME": str(self._folder / machine)}
        return controller(*words, "--controller", where, "--json", cwd=self._folder, changes=changes)

    def told(self, machine: str, *words: str) -> dict[str, Any]:
        done = self.on(machine, *words)
        assert done.code == 0, done.stderr
        return done.document

    def refused(self, machine: str, *words: str) -> str:
        done = self.on(machine, *words)
        assert done.code == 2, (done.code, done.stderr)
        return str(done.document["error"]["message"])

    def log_in(self, machine: str, *words: str) -> dict[str, Any]:
        return self.told(machine, "login", "--token", self.told("farm", "user", "add", *words)["token"])


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    with ServeProcess(tmp_path / "state") as served:
        yield Farm(served, tmp_path)


def test_a_user_from_the_first_login_to_the_last(farm: Farm, tmp_path: Path) -> None:
    first = farm.log_in("desk", "anna", "--role", "admin")
    assert (first["name"], first["certificate_until"] > "2026") == ("anna", True)
    farm.log_in("laptop", "anna")
    (anna,) = farm.told("desk", "user", "list")["users"]
    assert {k: anna[k] for k in ("name", "role", "standing", "machines")} == {
        "name": "anna", "role": "admin", "standing": "good", "machines": 2,
    }  # fmt: skip

    farm.told("laptop", "login", "--pem", str(tmp_path / "pem"))  # renews; no token is needed
    assert {p.name for p in (tmp_path / "pem").iterdir()} == {"authority.pem", "certificate.pem", "key.pem"}

    farm.told("farm", "user", "add", "anna", "--role", "viewer")
    assert "a viewer, may not call Control.Users" in farm.refused("laptop", "user", "list")
    assert farm.told("laptop", "devices")["devices"] == []

    assert farm.told("farm", "user", "revoke", "anna") == {"user": "anna", "revoked": True}
    for machine in ("desk", "laptop"):
        assert "user 'anna' is revoked; an admin's 'controller user add anna'" in farm.refused(machine, "devices")
    assert farm.log_in("laptop", "anna")["name"] == "anna"
    assert farm.told("laptop", "devices")["devices"] == []
    assert "key counts no more" in farm.refused("desk", "devices")
    assert "no user 'bob' has enrolled" in farm.refused("farm", "user", "revoke", "bob")


def test_a_devices_token_is_not_used_up_by_a_login(farm: Farm) -> None:
    token = farm.told("farm", "token", "create")["token"]
    assert "this token is for a device, not for a user: 'controller user add' makes one" in farm.refused("desk", "login", "--token", token)
    assert "log in first" in farm.refused("desk", "login")

"""What all verbs have in common: options, an example, and that `--controller` is asked and nobody else."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from controller.cli import app
from controller.cli.later import _VERBS as LATER
from controller.login import TOKEN_VARIABLE
from controller.store import SqlStore
from edgefarm.model import Capability
from tests import zoo
from tests.e2e.zoo_fleets import write_fleet
from tests.fakes.orders import a_device

NOWHERE = "farm.example:7443"
ALONE = {"serve"}  # it is the controller
HERE = {"toolchain list", "toolchain install"}  # about this machine, wherever the controller is
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "show": ("c@1",),
    "report": ("c@1",),
    "cancel": ("c@1",),
    "drain": ("pi",),
    "lease": ("pi", "--for", "2h"),
    "release": ("pi",),
    "user add": ("anna",),
    "user revoke": ("anna",),
    "device label": ("pi", "site=lab"),
    "device replace": ("pi",),
    "device revoke": ("pi",),
}
WITH_A_FLEET_FILE = {"deploy", "rollback", "bench"}
COMPARED = {"compare": ("zoo@1", "zoo@2"), "bench": ("--variant", __file__)}


def verbs(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, found in getattr(command, "commands", {}).items():
        yield from verbs(found, (*path, name)) if hasattr(found, "commands") else [(" ".join((*path, name)), found)]


VERBS = {name: command for name, command in verbs(get_command(app)) if name not in LATER}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody has logged in anywhere, and the verbs' signal handlers end with the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in (TOKEN_VARIABLE, "EDGEFARM_CONTROLLER"):
        monkeypatch.delenv(name, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of enrolled devices, without a word of their controller."""
    folder = tmp_path_factory.mktemp("fleet")
    path = write_fleet(folder, zoo.dense(folder))
    document = {**json.loads(path.read_text()), "devices": [{"name": "pi"}]}
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("name", VERBS)
def test_options_and_an_example(name: str) -> None:
    options = {option for parameter in VERBS[name].params for option in parameter.opts}
    assert {"--json", "--state"} <= options
    assert name in ALONE or {"--controller", "--fleet"} <= options
    assert f"Example: controller {name}" in VERBS[name].help


@pytest.mark.parametrize("in_environment", [False, True], ids=["option", "environment"])
@pytest.mark.parametrize("name", [n for n in VERBS if n not in ALONE | HERE])
def test_every_verb_asks_the_controller_that_it_is_told(name: str, in_environment: bool, fleet: Path) -> None:
    words = [*name.split(), *{**ARGUMENTS, **COMPARED}.get(name, ()), "--json"]
    words += ["--fleet", str(fleet)] if name in WITH_A_FLEET_FILE else []
    words += [] if in_environment else ["--controller", NOWHERE]
    done = CliRunner().invoke(app, words, env={"EDGEFARM_CONTROLLER": NOWHERE if in_environment else None})
    assert done.exit_code == 2, done.output
    document = json.loads(done.stdout)
    assert f"controller {NOWHERE}: log in first: controller login --controller {NOWHERE}" in json.dumps(document)


@pytest.mark.parametrize("name", [n for n in ARGUMENTS if n not in ("show", "report")])
def test_who_acts_without_a_controller_is_asked_for_one(name: str) -> None:
    done = CliRunner().invoke(app, [*name.split(), *ARGUMENTS[name]])
    assert (done.exit_code, "which controller? Give --controller" in done.output) == (2, True), done.output


def test_what_a_device_says_is_read_and_not_obeyed(tmp_path: Path) -> None:
    said = "no driver [/gpu] [bold]\x1b]0;owned\x07\x1b[2J"
    store = SqlStore(tmp_path / "store.db")
    store.save_device(replace(a_device("pi"), capabilities=(Capability("tensorrt", "", "", False, said),)), 1)
    store.close()
    done = CliRunner().invoke(app, ["devices", "--state", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "no tensorrt: no driver [/gpu] [bold]" in " ".join(done.output.split())
    assert "\x1b" not in done.output
    assert "\x07" not in done.output
    document = json.loads(CliRunner().invoke(app, ["devices", "--state", str(tmp_path), "--json"]).stdout)
    assert document["devices"][0]["capabilities"][0]["reason"] == said

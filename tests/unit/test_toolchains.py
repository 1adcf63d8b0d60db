"""Toolchains: where they are, when they count as installed, how they are made, and that a pass runs in one with our own code."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from controller.cli.app import app
from edgefarm.errors import Busy, StorageError, UserError
from optimizer import toolchains
from optimizer.auto import drafts
from optimizer.passes import load_pass, missing_tools, remedy
from optimizer.pipeline import Failed, Pipeline, Variant
from optimizer.recipe import Plan, RecipeError, Space, Step, expand
from optimizer.source import inspect_model, load_source
from optimizer.toolchains import Toolchain
from tests import zoo


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toolchain:
    """A toolchain whose list asks for nothing; its folder is not there yet."""
    listed = tmp_path / "none.txt"
    listed.write_text("# nothing\n")

    class Listed(Toolchain):
        @property
        def requirements(self) -> Path:
            return listed

    made = Listed("testing", "for tests", 0.1)
    monkeypatch.setenv(toolchains.HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.setattr(toolchains, "TOOLCHAINS", {made.name: made})
    return made


def fake(stack: Toolchain) -> Path:
    """Stands in for an installed one: this interpreter under another name."""
    folder = toolchains.home() / stack.name
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin/python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (folder / "edgefarm.json").write_text(json.dumps(toolchains._wanted(stack)))
    site = folder / f"lib/python{sys.version_info.major}.{sys.version_info.minor}"
    site.mkdir(parents=True)
    (site / "site-packages").symlink_to(next(p for p in sys.path if p.endswith("site-packages")))
    return python


def test_they_are_where_the_user_says_or_in_the_users_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(toolchains.HOME_VARIABLE, str(tmp_path))
    assert toolchains.home() == tmp_path
    monkeypatch.delenv(toolchains.HOME_VARIABLE)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert toolchains.home() == tmp_path / "edgefarm/toolchains"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert toolchains.home() == Path.home() / ".local/share/edgefarm/toolchains"


def test_one_counts_only_whole_and_as_this_version_wants_it(stack: Toolchain) -> None:
    assert toolchains.interpreter(stack.name) is None
    python = fake(stack)
    assert toolchains.interpreter(stack.name) == python
    assert toolchains.versions(stack.name, ("numpy", "no-such-distribution")).keys() == {"numpy"}
    stack.requirements.write_text("another==1\n")
    assert toolchains.interpreter(stack.name) is None
    assert toolchains.versions(stack.name, ("numpy",)) == {}
    stack.requirements.write_text("# nothing\n")
    python.unlink()
    assert toolchains.interpreter(stack.name) is None


def test_installing_makes_an_environment_once(stack: Toolchain) -> None:
    folder = toolchains.install(stack.name)
    python = toolchains.interpreter(stack.name)
    assert python == folder / "bin/python"
    made = (folder / "edgefarm.json").stat().st_mtime_ns
    toolchains.install(stack.name)
    assert (folder / "edgefarm.json").stat().st_mtime_ns == made


def test_what_cannot_be_installed_leaves_none_and_says_why(stack: Toolchain, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.requirements.write_text("edgefarm-no-such-distribution==1\n")
    with pytest.raises(UserError, match=r"toolchain testing: .* ended with 1: .*edgefarm-no-such-distribution"):
        toolchains.install(stack.name)
    assert toolchains.interpreter(stack.name) is None
    with pytest.raises(UserError, match="unknown toolchain 'nothing'; there are testing"):
        toolchains.install("nothing")
    monkeypatch.setenv(toolchains.HOME_VARIABLE, "/proc/no/such/place")
    with pytest.raises(StorageError, match="set EDGEFARM_TOOLCHAINS to a folder with room"):
        toolchains.install(stack.name)


def test_two_commands_do_not_install_one_at_once(stack: Toolchain) -> None:
    toolchains.home().mkdir(parents=True)
    descriptor = os.open(toolchains.home() / ".testing.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="being installed by another command"):
            toolchains.install(stack.name)
    finally:
        os.close(descriptor)


def test_a_pass_runs_in_its_toolchain_with_our_own_packages(stack: Toolchain, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    used = load_pass("convert_float16")
    monkeypatch.setattr(type(used), "toolchain", stack.name)
    source, plan = load_source(zoo.convolution(tmp_path, channels=4)), Plan("half", (Step(used.name, {}),))
    (failed,) = Pipeline(tmp_path / "cache").run(source, [plan])
    assert isinstance(failed, Failed)
    assert failed.failure.detail == "convert_float16 needs: controller toolchain install testing"
    python, log = fake(stack), tmp_path / "ran"
    python.write_text(python.read_text().replace("exec", f'echo "$1" >> {log}; exec', 1))
    (made,) = Pipeline(tmp_path / "cache").run(source, [plan])
    assert isinstance(made, Variant), made
    assert log.read_text() == "-c\n", "the pass ran elsewhere"
    assert made.lineage[0].tool_versions.keys() == set(used.tools)


def test_a_recipe_names_what_is_to_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(toolchains.HOME_VARIABLE, str(tmp_path / "none"))
    space = Space(inspect_model(zoo.convolution(tmp_path, channels=4)), has_calibration=True)
    with pytest.raises(RecipeError, match="to_tflite needs: controller toolchain install litert"):
        expand([{"name": "lite", "passes": [{"pass": "to_tflite"}]}], space, 10)
    assert remedy(load_pass("prune_structured")) == "pip install 'edgefarm[torch]'"


def test_auto_converts_where_it_can_and_nobody_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signature = inspect_model(zoo.convolution(tmp_path, channels=4))
    monkeypatch.setattr("optimizer.auto.missing_tools", lambda used: [])
    names = [d.name for d in drafts(signature, True)]
    assert {"tflite", "tflite-int8-static", "tflite-int8-dynamic"} <= set(names)
    assert not any(d.name.startswith("tflite") for d in drafts(signature, True, others=["tflite"]))
    assert not any("static" in d.name for d in drafts(signature, False) if d.name.startswith("tflite"))
    assert "pruned50-tflite-int8" in [d.name for d in drafts(signature, True, 1000)]
    assert {"openvino-int8", "openvino-int8-mixed"} <= set(names)
    assert "openvino-int8" not in [d.name for d in drafts(signature, False)]
    monkeypatch.setattr("optimizer.auto.missing_tools", missing_tools)
    monkeypatch.setenv(toolchains.HOME_VARIABLE, str(tmp_path / "none"))
    assert not any(d.name.startswith("tflite") for d in drafts(signature, True))


def test_the_command_lists_and_installs(stack: Toolchain) -> None:
    runner = CliRunner()
    listed = json.loads(runner.invoke(app, ["toolchain", "list", "--json"]).stdout)
    assert listed == {"toolchains": [{"name": "testing", "about": "for tests", "gigabytes": 0.1, "folder": None}]}
    assert "not installed; about 0.1 GB" in runner.invoke(app, ["toolchain", "list"]).stdout
    fake(stack)
    assert f"installed in {toolchains.home() / 'testing'}" in runner.invoke(app, ["toolchain", "list"]).stdout
    done = runner.invoke(app, ["toolchain", "install", "testing", "--json"])
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"name": "testing", "folder": str(toolchains.home() / "testing")})
    unknown = runner.invoke(app, ["toolchain", "install", "nothing"])
    assert unknown.exit_code == 2

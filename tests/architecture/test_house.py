"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agent.runtimes import RUNTIMES
from controller.roles import LEAST_ROLE, ROLES
from edgefarm.v1 import artifacts_pb2, control_pb2

ROOT = Path(__file__).parents[2]
ROOMS = ("agent", "controller", "optimizer", "proto/edgefarm")
SOURCES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py") if "v1" not in p.relative_to(ROOT).parts)
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "misc"}


def test_no_file_is_longer_than_400_lines() -> None:
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}


def test_no_room_is_a_drawer() -> None:
    found = [str(p.relative_to(ROOT)) for p in SOURCES if FORBIDDEN_NAMES & {part.removesuffix(".py") for part in p.parts}]
    assert found == []
    assert not (ROOT / "proto" / "__init__.py").exists()


@pytest.mark.parametrize("module", ["agent.cli", "agent.link", "agent.worker", "agent.bench", "agent.supervisor"])
def test_the_supervisor_imports_neither_numpy_nor_a_runtime(module: str) -> None:
    libraries = [library.module for entry in RUNTIMES.values() for library in entry.libraries]
    forbidden = ["numpy", *libraries, "onnx", "controller", "optimizer", "cryptography"]
    program = f"import sys, {module}; print([m for m in {forbidden!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_command_without_its_extra_says_what_to_install() -> None:
    program = "import sys; sys.modules['typer'] = None; from controller.entry import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: the command needs: pip install 'edgefarm[controller]' (no module 'typer')\n"


def test_the_runner_child_does_not_import_grpc() -> None:
    program = "import sys, agent.runner.child; print([m for m in ('grpc', 'google.protobuf') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_a_device_runs_is_python_3_10() -> None:
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] in ("agent", "proto"):
            ast.parse(path.read_text(), feature_version=(3, 10))
            text = path.read_text().replace("if sys.version_info >= (3, 11):\n    import tomllib\n", "").replace("tomli as tomllib", "")
            newer = re.findall(r"\b(?:StrEnum|import tomllib|ExceptionGroup)\b", text)
            assert newer == [], path


def test_every_method_that_users_call_has_a_least_role() -> None:
    services = {**control_pb2.DESCRIPTOR.services_by_name, **artifacts_pb2.DESCRIPTOR.services_by_name}
    methods = {f"{service}.{method.name}" for service, found in services.items() for method in found.methods}
    assert methods == set(LEAST_ROLE)
    assert set(LEAST_ROLE.values()) == set(ROLES)


def test_architecture_names_only_files_that_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`((?:agent|controller|optimizer|proto|deploy|tests)/[\w./-]+)`", text))
    missing = sorted(n for n in named if not (ROOT / n).exists())
    assert missing == []
    assert named
    assert len(text.splitlines()) <= 120


def test_the_readme_has_no_gaps_and_no_dead_links() -> None:
    text = (ROOT / "README.md").read_text()
    assert "@@" not in text
    linked = re.findall(r"\]\(([^)#]+)\)", text)
    assert linked
    assert [name for name in linked if "://" not in name and not (ROOT / name).exists()] == []

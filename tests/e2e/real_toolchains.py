"""Toolchains as a user installs them. Gigabytes, so they are kept in the working copy from one run to the next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from optimizer import toolchains
from tests.e2e.command import controller

ROOT = Path(__file__).parents[2]
HOME = str(ROOT / ".venv-toolchains")
WHERE = {toolchains.HOME_VARIABLE: HOME}


@contextmanager
def installed(name: str) -> Iterator[None]:
    """Installs one by the command; inside of the block this process finds it too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(toolchains.HOME_VARIABLE, HOME)
        done = controller("toolchain", "install", name, "--json", cwd=ROOT, changes=WHERE, timeout_s=1500)
        assert done.code == 0, done.stderr
        assert done.document["folder"] == f"{HOME}/{name}"
        yield

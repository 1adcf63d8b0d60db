"""Copies of examples whose prepare.py downloads what they need."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def prepared(example: Path, into: Path) -> Path:
    """A copy with build/, which is copied where it is there already; skips, and says so, without a package index."""
    folder = into / example.name
    shutil.copytree(example, folder, ignore=shutil.ignore_patterns(".edgefarm", "__pycache__"))
    done = subprocess.run([sys.executable, str(folder / "prepare.py")], capture_output=True, text=True, timeout=280, check=False)
    if done.returncode and "pip could not get" in done.stderr:
        pytest.skip(f"no package index from here, so the example {example.name} was NOT run: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    return folder

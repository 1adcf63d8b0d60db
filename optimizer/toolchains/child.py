"""Starts a pass in a toolchain's Python: our own packages come from where the command has them, everything else from the toolchain."""

from __future__ import annotations

from pathlib import Path

import edgefarm
import optimizer

# Runs there. No folder goes onto the import path: beside our packages may lie the command's own libraries.
_PROGRAM = """
import importlib.machinery, runpy, sys
_, request, *places = sys.argv
folders = dict(zip(("optimizer", "edgefarm"), places))
class Ours:
    def find_spec(name, path=None, target=None):
        return importlib.machinery.PathFinder.find_spec(name, [folders[name]]) if name in folders else None
sys.meta_path.insert(0, Ours)
sys.argv = ["pass_process", request]
runpy.run_module("optimizer.pass_process", run_name="__main__", alter_sys=True)
"""


def command(interpreter: str, request: str) -> list[str]:
    """The command line that runs the pass of a request there."""
    places = [str(Path(str(package.__file__)).parents[1]) for package in (optimizer, edgefarm)]
    return [interpreter, "-c", _PROGRAM, request, *places]

"""Starts a module of ours in a toolchain's Python: our packages come from where the command has them, all others from the toolchain."""

from __future__ import annotations

from pathlib import Path

import edgefarm
import optimizer

# Runs there. No folder goes onto the import path: beside our packages may lie the command's own libraries.
_PROGRAM = """
import importlib.machinery, runpy, sys
_, module, argument, *places = sys.argv
folders = dict(zip(("optimizer", "edgefarm"), places))
class Ours:
    def find_spec(name, path=None, target=None):
        return importlib.machinery.PathFinder.find_spec(name, [folders[name]]) if name in folders else None
sys.meta_path.insert(0, Ours)
sys.argv = [module, argument]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def command(interpreter: str, module: str, argument: str) -> list[str]:
    """The command line that runs `python -m module argument` there."""
    places = [str(Path(str(package.__file__)).parents[1]) for package in (optimizer, edgefarm)]
    return [interpreter, "-c", _PROGRAM, module, argument, *places]

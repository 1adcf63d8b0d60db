"""A torch module as the source: `net.py:build` is exported to ONNX beside the command, in a process and on an import path of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from edgefarm.errors import StorageError, UserError
from optimizer.exported import Exported, keep

MAIN = "model.onnx"
LIMIT_S = 600.0
EXTERNAL_ABOVE = 3 * 2**29  # bytes of weights; protobuf ends at 2 GiB
_CHILD = Path(__file__).with_name("torch_source_child.py")
_NEEDED = ("torch", "onnxscript")
_MARK = ".py:"


def names_function(path: str) -> bool:
    """Whether a model's path is `FILE.py:FUNCTION`, not a file."""
    return _MARK in path


def locate(function: str, folder: Path) -> tuple[Path, str]:
    """`net.py:build` -> (file, name); nothing is looked for. Raises UserError."""
    name, _, attribute = function.rpartition(":")
    if not name.endswith(".py") or not attribute.isidentifier():
        raise UserError(f"{function!r}: write FILE.py:FUNCTION")
    return folder / name, attribute


def export(function: str, folder: Path, store: Path, *, limit_s: float = LIMIT_S, external_above: int = EXTERNAL_ABOVE) -> Exported:
    """Calls the function, without arguments, and exports the module that it gives; equal modules give the same file.

    Args:
        function: `FILE.py:FUNCTION`, relative to `folder`; gives (nn.Module, example inputs: a tensor, a tuple, or a dict of names).
        store: folder under which the file is kept, named by its digest.
        external_above: bytes of weights from which they lie in a file beside the model.

    Raises:
        UserError: the function gives nothing that can be exported, takes too long, or a library is missing; the text says what to do.
        StorageError: `store` cannot be written.
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"{function}: a torch model needs {' and '.join(missing)}: pip install 'edgefarm[torch]'")
    file, attribute = locate(function, folder)
    try:
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=store) as name:
            work = Path(name)
            request = {"file": str(file.resolve()), "function": attribute, "external_above": external_above}
            (work / "request.json").write_text(json.dumps(request))
            reply = _run(work, function, file.resolve().parent, limit_s)
            return Exported(keep(work, MAIN, store), function, reply["fixed"])
    except OSError as error:
        raise StorageError(f"{store}: cannot be written: {error.strerror or error}") from error


def _run(work: Path, function: str, folder: Path, limit_s: float) -> dict[str, Any]:
    # A token of the controller, or where our own modules lie, is not the user's code's business; sets are in the same order each time.
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("EDGEFARM_")}
    reading, writing = os.pipe()  # only this process holds the writing end: the child ends with it, however that happens
    said = work / "said"  # a file: a process that the user's code left behind could keep a pipe open
    try:
        with said.open("wb") as stream:
            done = subprocess.run(
                [sys.executable, str(_CHILD), str(work), str(reading)],
                cwd=folder, env={**kept, "PYTHONHASHSEED": "0"}, pass_fds=(reading,), stdin=subprocess.DEVNULL,
                stdout=stream, stderr=stream, timeout=limit_s, check=False,
            )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(f"{function}: was not exported within {limit_s:g} s: load trained weights there, don't train") from None
    finally:
        os.close(reading)
        os.close(writing)
    reply = work / "reply.json"
    if not reply.exists():
        tail = "\n".join(said.read_text(errors="replace").strip().splitlines()[-6:])
        raise UserError(f"{function}: its process ended with code {done.returncode} and no model\n{tail}".rstrip())
    value: dict[str, Any] = json.loads(reply.read_text())
    if "error" in value:
        raise UserError(f"{function}: {value['error']}")
    return value

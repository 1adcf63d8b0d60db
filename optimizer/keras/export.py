"""Exports a Keras file: `python -m optimizer.keras.export WORK_DIR`, in the toolchain; it ends when its standard input does.

Reads `request.json` (`file`); writes `model.tflite`, `model.onnx` where tf2onnx can, and `reply.json`: `error`, or `without`, why
there is no ONNX file (empty: there is one).
"""

from __future__ import annotations

import json
import sys
import threading
import traceback
from pathlib import Path

from edgefarm.digest import atomic_write
from optimizer.keras_source import LITE, ONNX
from optimizer.pass_process import die_with_parent


def main(work: Path) -> None:
    """Does what the request says."""
    threading.Thread(target=die_with_parent, daemon=True).start()
    request = json.loads((work / "request.json").read_text())
    try:
        reply = {"without": _export(Path(request["file"]), work)}
    except Exception as error:
        reply = {"error": _explained(error)}
    atomic_write(work / "reply.json", json.dumps(reply).encode())


def _export(file: Path, work: Path) -> str:
    from optimizer.keras import files, lite

    model = files.load(file)
    if not getattr(model, "inputs", None) or not model.built:
        raise files.Unreadable("the model does not tell its inputs: save it after it was built or called")
    lite.to_tflite(model, work / LITE)
    try:
        lite.to_onnx(model, work / ONNX)
    except lite.NotConverted as error:
        (work / ONNX).unlink(missing_ok=True)
        return str(error)
    return ""


def _explained(error: Exception) -> str:
    from optimizer.keras import files, lite

    if isinstance(error, (files.Unreadable, lite.NotConverted)):
        return str(error)
    return "the export ended unexpectedly\n" + "\n".join("".join(traceback.format_exception(error)).strip().splitlines()[-6:])


if __name__ == "__main__":
    main(Path(sys.argv[1]))

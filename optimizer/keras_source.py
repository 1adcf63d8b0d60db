"""A Keras file as the source: the toolchain `keras` exports it to ONNX, if tf2onnx takes it, and to TFLite."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from edgefarm.digest import atomic_write, canonical_json, check_digest, digest_bytes, digest_file
from edgefarm.errors import StorageError, UserError
from optimizer import toolchains
from optimizer.exported import Exported, keep
from optimizer.process import environment
from optimizer.source import Source, describe, load_source
from optimizer.toolchains.child import command

SUFFIXES = (".keras", ".h5")
FORMAT = "keras"
LIMIT_S = 600.0
LITE, ONNX = "model.tflite", "model.onnx"
_MODULE = "optimizer.keras.export"
_TOOLCHAIN = "keras"
_TOOLS = ("tensorflow", "keras", "tf-keras", "tf2onnx", "onnx")
_VERSION = "2"  # raised when the export changes


def is_keras(path: str) -> bool:
    """Whether a model's path names a Keras file."""
    return path.lower().endswith(SUFFIXES)


def original(exported: Exported) -> Source | None:
    """The file that a source was exported from, for passes that ask for it: it has the signature of what it became."""
    if exported.original is None:
        return None
    artifact = describe(exported.original.parent, (exported.original.name,), FORMAT)
    return Source(exported.original, artifact, load_source(exported.path).signature)


def export(file: Path, store: Path, *, limit_s: float = LIMIT_S) -> Exported:
    """Exports a file, once: what the same bytes became with the same libraries is found again in `store`.

    Raises:
        UserError: the toolchain is not installed; Keras does not read the file, or TensorFlow does not convert it; it takes too long.
        StorageError: `store` cannot be written.
    """
    python = toolchains.interpreter(_TOOLCHAIN)
    if python is None:
        raise UserError(f"{file.name}: a Keras model needs TensorFlow beside the command: controller toolchain install {_TOOLCHAIN}")
    try:
        store.mkdir(parents=True, exist_ok=True)
        note = store / f"{_key(file)}.json"
        if (known := _known(note, store)) is None:
            with tempfile.TemporaryDirectory(prefix=".export-", dir=store) as name:
                known = _exported(Path(name), file, python, store, limit_s)
            atomic_write(note, json.dumps(known).encode())
    except OSError as error:
        raise StorageError(f"{store}: cannot be written: {error.strerror or error}") from error
    first, *others = (store / name for name in known["files"])
    return Exported(first, file.name, others=tuple(others), original=file, without=known["without"])


def _key(file: Path) -> str:
    libraries = toolchains.versions(_TOOLCHAIN, _TOOLS)
    return check_digest(digest_bytes(canonical_json([_VERSION, libraries, digest_file(file)])))[:16]


def _known(note: Path, store: Path) -> dict[str, Any] | None:
    """What an earlier export gave, if all of it is there still."""
    try:
        value: dict[str, Any] = json.loads(note.read_bytes())
        whole = all(load_source(store / name).artifact.digest == digest for name, digest in value["files"].items())
    except (OSError, ValueError, UserError):
        return None
    return value if whole else None


def _exported(work: Path, file: Path, python: Path, store: Path, limit_s: float) -> dict[str, Any]:
    (work / "request.json").write_text(json.dumps({"file": str(file.resolve())}))
    said = work / "said"
    with said.open("wb") as stream:
        child = subprocess.Popen(
            command(str(python), _MODULE, str(work)), cwd=work, env=environment(), stdin=subprocess.PIPE, stdout=stream, stderr=stream
        )
        with child:  # it ends when this process does: its standard input ends then
            try:
                code = child.wait(limit_s)
            except subprocess.TimeoutExpired:
                child.kill()
                raise UserError(f"{file.name}: was not exported within {limit_s:g} s") from None
    try:
        reply = json.loads((work / "reply.json").read_text())
    except FileNotFoundError:
        tail = "\n".join(said.read_text(errors="replace").strip().splitlines()[-6:])
        raise UserError(f"{file.name}: the process that exports it ended with code {code} and no model\n{tail}".rstrip()) from None
    if "error" in reply:
        raise UserError(f"{file.name}: {reply['error']}")
    kept = [keep(work, name, store) for name in (ONNX, LITE) if (work / name).exists()]
    files = {str(path.relative_to(store)): load_source(path).artifact.digest for path in kept}
    return {"files": files, "without": f"ONNX: {reply['without']}" if reply["without"] else ""}

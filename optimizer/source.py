"""A model on disk: its signature, its files, its digest. Judges files before any parser that would load them sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgefarm.digest import artifact_digest, digest_file
from edgefarm.errors import UserError
from edgefarm.model import Artifact, FileEntry
from optimizer import onnx_source, openvino_source, tflite_source
from optimizer.signature import Malformed, Signature, TensorSpec

__all__ = ["FORMATS", "Format", "Signature", "Source", "TensorSpec", "describe", "format_of", "inspect_model", "load_source"]


@dataclass(frozen=True)
class Format:
    """A row of the table of formats.

    Attributes:
        name: as artifacts and runtimes call it.
        title: as people do.
        runtime: the runtime in which a source's own bytes are the baseline.
        read: signature of a main file; raises Malformed, OSError, UserError.
    """

    name: str
    title: str
    runtime: str
    read: Callable[[Path], Signature]


FORMATS = {
    ".onnx": Format("onnx", "ONNX", "onnxruntime", onnx_source.read),
    ".tflite": Format("tflite", "TFLite", "tflite", tflite_source.read),
    ".xml": Format("openvino", "OpenVINO", "openvino", openvino_source.read),
}


@dataclass(frozen=True)
class Source:
    """A model as the pipeline takes it. `path` is the main file; the artifact's other files lie relative to its folder."""

    path: Path
    artifact: Artifact
    signature: Signature


def format_of(path: Path) -> Format:
    """The format that a file's suffix tells. Raises UserError."""
    suffix, known = path.suffix.lower(), ", ".join(FORMATS)
    if suffix not in FORMATS:
        raise UserError(f"{path}: the format is told by the suffix, and {path.suffix or 'none'!r} is not known; give one of {known}")
    return FORMATS[suffix]


def inspect_model(path: Path) -> Signature:
    """Reads a model's signature without loading weights.

    Raises:
        UserError: missing, truncated or not a model; weights in other files missing, cut short or outside of the model's folder.
    """
    model_format = format_of(path)
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; give the path of {_article(model_format)} file")
    try:
        signature = model_format.read(path)
    except Malformed as error:
        raise UserError(f"{path}: not a whole {model_format.title} model: {error}; export or copy it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    for side, specs in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        names = [spec.name for spec in specs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{path}: two {side} are named {twice[0]!r}, so they can't be told apart; export it with names of their own")
    return signature


def _article(model_format: Format) -> str:
    return f"{'an' if model_format.title[0] in 'AEIO' else 'a'} {model_format.title}"


def load_source(path: Path) -> Source:
    """Inspects a model and digests its files. Raises as `inspect_model`."""
    signature = inspect_model(path)
    return Source(path, describe(path.parent, signature.files, signature.format), signature)


def describe(folder: Path, names: tuple[str, ...], model_format: str) -> Artifact:
    """The artifact that these files of a folder are."""
    entries = tuple(FileEntry(n, digest_file(folder / n), (folder / n).stat().st_size) for n in sorted(names))
    digest = artifact_digest((e.name, e.digest, e.bytes) for e in entries)
    return Artifact(digest, sum(e.bytes for e in entries), model_format, entries)

"""A model on disk: its signature, its files, its digest. Judges file names before any parser opens them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from edgefarm.digest import artifact_digest, digest_file
from edgefarm.errors import NotAvailable, UserError
from edgefarm.model import Artifact, FileEntry
from optimizer.onnx_header import ExternalRange, Header, Malformed, ValueInfo, read_header

_LATER = {".tflite": "TFLite", ".xml": "OpenVINO", ".keras": "Keras", ".h5": "Keras"}


@dataclass(frozen=True)
class TensorSpec:
    """An input or output, e.g. `x: float32[None, 3, 224, 224]`; None is a dynamic axis.

    `ranked` is False where the model declares no shape at all (`shape` is empty then).
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    ranked: bool = True

    def __str__(self) -> str:
        axes = ", ".join("N" if s is None else str(s) for s in self.shape) if self.ranked else "…"
        return f"{self.dtype}[{axes}]"


@dataclass(frozen=True)
class Signature:
    """What a model takes and gives, and the facts that recipes are chosen by.

    Attributes:
        files: main file and external data, as names relative to the model's folder; the main file first.
        op_types: operator -> number of nodes, subgraphs included.
        weight_dtypes: dtype -> number of stored tensors.
        grouped_convolutions: convolutions with groups (depthwise ones among them).
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    opset: int
    format: str
    files: tuple[str, ...] = ()
    op_types: Mapping[str, int] = field(default_factory=dict)
    weight_dtypes: Mapping[str, int] = field(default_factory=dict)
    grouped_convolutions: int = 0


@dataclass(frozen=True)
class Source:
    """A model as the pipeline takes it. `path` is the main file; the artifact's other files lie relative to its folder."""

    path: Path
    artifact: Artifact
    signature: Signature


def inspect_model(path: Path) -> Signature:
    """Reads a model's signature without loading weights.

    Raises:
        UserError: missing, truncated or not a model; external data missing, cut short or outside of the model's folder.
        NotAvailable: a format that this version does not read.
    """
    if path.suffix.lower() in _LATER:
        raise NotAvailable(f"{path}: {_LATER[path.suffix.lower()]} models are not available in this version; give an .onnx file")
    if path.suffix.lower() != ".onnx":
        raise UserError(f"{path}: the format is told by the suffix, and {path.suffix or 'none'!r} is not known; give an .onnx file")
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; give the path of an .onnx file")
    try:
        header = read_header(path)
    except Malformed as error:
        raise UserError(f"{path}: not a whole ONNX model: {error}; export or copy it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not header.has_graph or not header.outputs:
        raise UserError(f"{path}: not an ONNX model: it holds no graph with outputs; export it again")
    if not header.domains:
        raise UserError(f"{path}: not a whole ONNX model: it names no operator set; export or copy it again")
    return _signature(path, header)


def load_source(path: Path) -> Source:
    """Inspects a model and digests its files. Raises as `inspect_model`."""
    signature = inspect_model(path)
    return Source(path, describe(path.parent, signature.files, signature.format), signature)


def describe(folder: Path, names: tuple[str, ...], model_format: str) -> Artifact:
    """The artifact that these files of a folder are."""
    entries = tuple(FileEntry(n, digest_file(folder / n), (folder / n).stat().st_size) for n in sorted(names))
    digest = artifact_digest((e.name, e.digest, e.bytes) for e in entries)
    return Artifact(digest, sum(e.bytes for e in entries), model_format, entries)


def _signature(path: Path, header: Header) -> Signature:
    for value in header.inputs:
        if value.shape is None:
            raise UserError(f"{path}: input {value.name!r} is declared as {value.dtype} without a shape; export it with one")
    outside = dict.fromkeys(_inside(path, external) for external in header.external)
    return Signature(
        inputs=tuple(_spec(v) for v in header.inputs),
        outputs=tuple(_spec(v) for v in header.outputs),
        opset=header.opset,
        format="onnx",
        files=(path.name, *outside),
        op_types=dict(header.op_types),
        weight_dtypes=dict(header.weight_dtypes),
        grouped_convolutions=header.grouped_convolutions,
    )


def _spec(value: ValueInfo) -> TensorSpec:
    return TensorSpec(value.name, value.dtype, value.shape or (), value.shape is not None)


def _inside(path: Path, external: ExternalRange) -> str:
    """The name of external data, once it is sure to lie inside the model's folder, with all the bytes that are asked for."""
    where = f"{path}: tensor {external.tensor!r}: external data {external.location!r}"
    name = PurePosixPath(external.location)
    parts = external.location.split("/")
    if name.is_absolute() or ".." in parts or "\\" in external.location or "\0" in external.location or str(name) in ("", "."):
        raise UserError(f"{where}: must be a relative name inside of the model's folder; save the model with its data beside it")
    file = path.parent / name
    try:
        if not file.resolve().is_relative_to(path.parent.resolve()):
            raise UserError(f"{where}: leads out of the model's folder by a link; copy the data beside the model")
        size = file.stat().st_size if file.is_file() else None
    except (OSError, RuntimeError) as error:  # a loop of links
        raise UserError(f"{where}: cannot be read: {error}") from error
    if size is None:
        raise UserError(f"{where}: no such file beside the model; copy it there")
    end = external.offset + (external.length or 0)
    if end > size:
        raise UserError(f"{where}: bytes up to {end} are asked for, the file has {size}: it is cut short; copy it again")
    if name == PurePosixPath(path.name):
        raise UserError(f"{where}: names the model file itself")
    return str(name)

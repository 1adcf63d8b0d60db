"""The signature of an ONNX file, with its external data judged before any parser opens them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from edgefarm.errors import UserError
from optimizer.onnx_header import ExternalRange, ValueInfo, read_header
from optimizer.signature import Malformed, Signature, TensorSpec


def read(path: Path) -> Signature:
    """Reads the header; weights stay on the disk. Raises Malformed, OSError, and UserError for what lies beside the file."""
    header = read_header(path)
    if not header.has_graph or not header.outputs:
        raise Malformed("it holds no graph with outputs")
    if not header.domains:
        raise Malformed("it names no operator set")
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

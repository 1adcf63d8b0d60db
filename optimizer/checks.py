"""What every output of a pass must stand before it may become a candidate. Runs in the pass's process; a failure is a value.

Drift is the relative L2 distance of an output to the parent's, pooled over all probe samples: ||variant - parent|| / ||parent||.
0 is equal, 1 as far as an output of zeros. It finds what is broken, not what is less accurate: accuracy is measured on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgefarm.errors import UserError
from edgefarm.model import FailureKind
from edgefarm.tensors import Tensor
from optimizer.dataset import Dataset
from optimizer.passes import Pass, PassFailure
from optimizer.source import Signature, TensorSpec, inspect_model

VERSION = 1  # raised when a check judges otherwise; part of the cache key
_TINY = 1e-6  # outputs smaller than this count as zero
_INTEGER_OPS = ("QuantizeLinear", "DequantizeLinear", "QLinear", "Integer", "DynamicQuantize", "QGemm", "QAttention", "MatMulNBits")


class Unchanged(Exception):
    """The pass left no evidence of its work."""


def check(parent: Path, output: Path, used: Pass, probe: Dataset | None) -> None:
    """Checks a pass's output against its parent.

    Raises:
        Unchanged: the evidence that the pass names is not there.
        PassFailure: LOAD, UNSUPPORTED_OP, IO_CHANGED or NUMERIC, with the detail that a person needs.
    """
    before = inspect_model(parent)
    try:
        after = inspect_model(output)
    except UserError as error:
        raise PassFailure(FailureKind.LOAD, f"the pass wrote a file that is no model: {error}") from error
    if changed := io_difference(before, after):
        raise PassFailure(FailureKind.IO_CHANGED, changed)
    if parent.read_bytes() == output.read_bytes():
        raise Unchanged("the same bytes")
    EVIDENCE[used.evidence](parent, output, before, after)
    _compare_outputs(parent, output, before, used.drift, probe)


def io_difference(before: Signature, after: Signature) -> str:
    """How inputs or outputs differ in name, dtype, rank or size, as text; empty if whoever ran the one can run the other."""
    for side, old, new in (("input", before.inputs, after.inputs), ("output", before.outputs, after.outputs)):
        if [s.name for s in old] != [s.name for s in new]:
            return f"{side}s were {[s.name for s in old]}, are {[s.name for s in new]}"
        for was, now in zip(old, new):
            if was.dtype != now.dtype or not _fits(was, now, strict=side == "input"):
                return f"{side} {was.name!r} was {was}, is {now}"
    return ""


def _fits(was: TensorSpec, now: TensorSpec, *, strict: bool) -> bool:
    """Ranks and fixed sizes agree; an input that took any size must still do so."""
    if not (was.ranked and now.ranked):
        return True
    if len(was.shape) != len(now.shape):
        return False
    return all(b is None or a == b or (a is None and not strict) for a, b in zip(was.shape, now.shape))


def _integer_evidence(parent: Path, output: Path, before: Signature, after: Signature) -> None:
    def count(signature: Signature) -> int:
        operators = sum(n for name, n in signature.op_types.items() if any(part in name for part in _INTEGER_OPS))
        return operators + signature.weight_dtypes.get("int8", 0) + signature.weight_dtypes.get("uint8", 0)

    if count(after) <= count(before):
        raise Unchanged("no integer operator and no 8-bit weight was added")


def _float16_evidence(parent: Path, output: Path, before: Signature, after: Signature) -> None:
    if after.weight_dtypes.get("float16", 0) <= before.weight_dtypes.get("float16", 0):
        raise Unchanged("no float16 weight was added")


def _structure_evidence(parent: Path, output: Path, before: Signature, after: Signature) -> None:
    from optimizer import onnx_facts, onnx_files

    if onnx_facts.structure(onnx_files.load(parent)) == onnx_facts.structure(onnx_files.load(output)):
        raise Unchanged("operators, attributes and weights are the same")


EVIDENCE: Mapping[str, Callable[[Path, Path, Signature, Signature], None]] = {
    "integer": _integer_evidence,
    "float16": _float16_evidence,
    "structure": _structure_evidence,
}


def _compare_outputs(parent: Path, output: Path, signature: Signature, limit: float, probe: Dataset | None) -> None:
    session = open_session(output)
    if probe is None:
        return
    got = _run(session, probe)
    want = _run(open_session(parent), probe)
    for spec in signature.outputs:
        _compare(spec, want[spec.name], got[spec.name], limit)


def open_session(path: Path) -> Any:
    """An ONNX Runtime session on the CPU. Raises PassFailure LOAD or UNSUPPORTED_OP with the runtime's reason."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        kind = FailureKind.UNSUPPORTED_OP if "NOT_IMPLEMENTED" in str(error) else FailureKind.LOAD
        raise PassFailure(kind, f"does not load in ONNX Runtime: {str(error).strip()[:500]}") from error


def _run(session: Any, probe: Dataset) -> dict[str, list[Tensor]]:
    names = [o.name for o in session.get_outputs()]
    try:
        rows = [session.run(None, probe.feeds(i)) for i in range(probe.n)]
    except Exception as error:
        raise PassFailure(FailureKind.CRASH, f"loads, but does not run on the probe samples: {str(error).strip()[:500]}") from error
    return {name: [row[k] for row in rows] for k, name in enumerate(names)}


def _compare(spec: TensorSpec, want: Sequence[Any], got: Sequence[Any], limit: float) -> None:
    """Raises PassFailure if the output is not finite where the parent's is, or farther from it than `limit`."""
    distance = norm = 0.0
    for index, (a, b) in enumerate(zip(want, got)):
        if not isinstance(a, np.ndarray) or a.dtype.kind != "f":
            continue  # indices and text have no distance
        if a.shape != b.shape:
            if None in spec.shape or not spec.ranked:
                continue  # a size that depends on the data: boxes that were found
            raise PassFailure(FailureKind.IO_CHANGED, f"output {spec.name!r} had shape {list(a.shape)}, has {list(b.shape)}")
        usable = np.isfinite(a)
        if not np.isfinite(b[usable]).all():
            value = "NaN" if np.isnan(b[usable]).any() else "infinity"
            raise PassFailure(FailureKind.NUMERIC, f"output {spec.name!r} holds {value} for probe sample {index}, its parent's is finite")
        x, y = a[usable].astype(np.float64), b[usable].astype(np.float64)
        distance += float(np.square(x - y).sum())
        norm += float(np.square(x).sum() + x.size * _TINY**2)
    drift = float(np.sqrt(distance / norm)) if norm else 0.0
    if drift > limit:
        raise PassFailure(FailureKind.NUMERIC, f"output {spec.name!r} is off by {drift:.3g} (relative L2), allowed is {limit:g}")

"""Takes the same network in another format from the user, once it is proved to be that. Not for recipes: see `model.alternatives`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgefarm.model import FailureKind
from optimizer.passes import ALTERNATIVE, Changed, Context, PassFailure, PassParameters

if TYPE_CHECKING:
    from optimizer.dataset import Dataset

# Seen on five networks (see DECISIONS): float conversions up to 0.005, in half precision; quantised ones up to 0.14 per channel, 0.48 per
# tensor; a wrong layout, scale or order of classes from 0.02 on against float, from 0.3 on where it may be taken for quantisation.
FLOAT_DRIFT, INTEGER_DRIFT = 0.02, 0.3


class AlternativeParameters(PassParameters):
    """`file`: name of the main file; `digest`: of all its files. Where they lie makes no difference: the context says it."""

    file: str
    digest: str


class AlternativePass:
    """The user's own conversion."""

    name: ClassVar[str] = ALTERNATIVE
    version: ClassVar[int] = 2
    formats: ClassVar[tuple[str, ...]] = ("onnx", "tflite", "openvino")
    writes: ClassVar[str] = ""
    extra: ClassVar[str] = "optimizer"
    toolchain: ClassVar[str] = ""
    tools: ClassVar[tuple[str, ...]] = ("numpy",)
    parameters: ClassVar[type[PassParameters]] = AlternativeParameters
    evidence: ClassVar[str] = "format"
    must_change: ClassVar[bool] = True
    drift: ClassVar[float] = INTEGER_DRIFT

    def run(self, source: Path, out_dir: Path, parameters: AlternativeParameters, calibration: Dataset | None, context: Context) -> Changed:
        """Copies the files, and finds the mapping of their tensors by running both models on the probe samples."""
        from optimizer.engines import open_model
        from optimizer.io_maps import is_plain
        from optimizer.matching import match
        from optimizer.source import inspect_model, load_source

        path = context.given.get(parameters.digest)
        if path is None:
            raise PassFailure(FailureKind.LOAD, f"{parameters.file} is not among the files that were given")
        given = load_source(path)
        if given.artifact.digest != parameters.digest:
            raise PassFailure(FailureKind.LOAD, f"{path} was changed while it was read")
        if context.probe is None:
            raise PassFailure(FailureKind.IO_CHANGED, "without samples nothing tells that it is the same network")
        for file in given.artifact.files:
            if "/" in file.name:
                raise PassFailure(FailureKind.LOAD, f"{file.name} must lie beside {given.path.name}, not in a folder below it")
            shutil.copyfile(given.path.parent / file.name, out_dir / file.name)
        before, after = inspect_model(source), given.signature
        quantised = after.integers > 0 and not before.integers
        limit = INTEGER_DRIFT if after.integers or before.integers else FLOAT_DRIFT  # two quantisers round each their own way
        try:
            io = match(before, open_model(source), after, open_model(given.path), context.probe, limit)
        except PassFailure as error:
            rough = error.kind is FailureKind.NUMERIC and limit == INTEGER_DRIFT
            raise PassFailure(
                error.kind, f"{error.detail}; if it is, quantise its weights per channel" if rough else error.detail
            ) from error
        halves = after.weight_dtypes.get("float16", 0) > before.weight_dtypes.get("float16", 0)
        detail = f"{given.path.name}, the same network in {after.format}"
        detail += ", quantised" if quantised else ", its weights in float16" if halves else ""
        return Changed(detail, None if is_plain(io) else io, plain=not quantised)

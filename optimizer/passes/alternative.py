"""Takes the same network in another format from the user, once it is proved to be that. Not for recipes: see `model.alternatives`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgefarm.model import FailureKind
from optimizer.passes import ALTERNATIVE, Changed, Context, PassFailure, PassParameters

if TYPE_CHECKING:
    from optimizer.dataset import Dataset

# Another exporter's float arithmetic differs in the last digits; a network quantised to integers by much more.
FLOAT_DRIFT, INTEGER_DRIFT = 0.05, 0.3


class AlternativeParameters(PassParameters):
    """`file`: the main file; `digest`: of all its files, so that other bytes are another step."""

    file: str
    digest: str


class AlternativePass:
    """The user's own conversion."""

    name: ClassVar[str] = ALTERNATIVE
    version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx", "tflite", "openvino")
    writes: ClassVar[str] = ""
    extra: ClassVar[str] = "optimizer"
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

        given = load_source(Path(parameters.file))
        if given.artifact.digest != parameters.digest:
            raise PassFailure(FailureKind.LOAD, f"{parameters.file} was changed while it was read")
        if context.probe is None:
            raise PassFailure(FailureKind.IO_CHANGED, "without samples nothing tells that it is the same network")
        for file in given.artifact.files:
            if "/" in file.name:
                raise PassFailure(FailureKind.LOAD, f"{file.name} must lie beside {given.path.name}, not in a folder below it")
            shutil.copyfile(given.path.parent / file.name, out_dir / file.name)
        before = inspect_model(source)
        quantised = given.signature.integers > before.integers
        limit = INTEGER_DRIFT if quantised else FLOAT_DRIFT
        io = match(before, open_model(source), given.signature, open_model(given.path), context.probe, limit)
        detail = f"{given.path.name}, the same network in {given.signature.format}{', quantised' if quantised else ''}"
        return Changed(detail, None if is_plain(io) else io, plain=not quantised)

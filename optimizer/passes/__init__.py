"""The table of passes, and what a pass is.

A pass is one file with one class, found through one row of `PASSES` and imported only when used; at module level it imports
nothing heavy. It reads a model and writes a model; it runs in a process of its own, and its output is checked there.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from edgefarm.errors import UserError
from edgefarm.model import FailureKind, Io
from optimizer import toolchains

if TYPE_CHECKING:
    from optimizer.dataset import Dataset

ALTERNATIVE = "alternative"  # not for recipes: `model.alternatives` names the files
PASSES: Mapping[str, str] = {
    ALTERNATIVE: "optimizer.passes.alternative:AlternativePass",
    "graph": "optimizer.passes.graph:Graph",
    "equalize": "optimizer.passes.equalize:Equalize",
    "smooth": "optimizer.passes.smooth:Smooth",
    "convert_float16": "optimizer.passes.convert_float16:ConvertFloat16",
    "quantize_dynamic": "optimizer.passes.quantize_dynamic:QuantizeDynamic",
    "quantize_static": "optimizer.passes.quantize_static:QuantizeStatic",
    "quantize_weights": "optimizer.passes.quantize_weights:QuantizeWeights",
    "codebook": "optimizer.passes.codebook:CodebookPass",
    "distill": "optimizer.passes.distill:Distill",
    "quantize_aware": "optimizer.passes.quantize_aware:QuantizeAware",
    "prune_weights": "optimizer.passes.prune_weights:PruneWeights",
    "prune_structured": "optimizer.passes.prune_structured:PruneStructured",
    "quantize_tflite": "optimizer.passes.quantize_tflite:QuantizeTflite",
    "to_openvino": "optimizer.passes.to_openvino:ToOpenVino",
    "quantize_openvino": "optimizer.passes.quantize_openvino:QuantizeOpenVino",
    "to_tflite": "optimizer.passes.to_tflite:ToTflite",
    "tfmot": "optimizer.passes.tfmot:Tfmot",
}

WRITABLE = tuple(name for name in PASSES if name != ALTERNATIVE)  # what recipes may name


class PassParameters(BaseModel):
    """Base of every pass's parameters: unknown names are refused, values are not cast."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @property
    def needs_calibration(self) -> bool:
        """Whether the pass cannot work without samples."""
        return False

    @property
    def needs_training(self) -> bool:
        """Whether the pass trains, so that it takes long and cannot work without samples to train with."""
        return False

    @property
    def needs_original(self) -> bool:
        """Whether the pass works on the file that the source was exported from; its digest is the parameter `original` then."""
        return False


class PassFailure(Exception):
    """A pass cannot do its work on this model; becomes a Failed outcome of that kind."""

    def __init__(self, kind: FailureKind, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


@dataclass(frozen=True)
class Changed:
    """What a pass says it changed, for people.

    Attributes:
        io: how the output's tensors map to the input's; None: they are the same.
        plain: only the format was changed: same arithmetic, same precision.
    """

    detail: str
    io: Io | None = None
    plain: bool = False


@dataclass(frozen=True)
class Context:
    """What a pass has besides its input.

    Attributes:
        work_dir: for temporary files.
        seed: of anything random.
        probe: the samples that its output will be checked with.
        given: the user's other files, main file by digest.
        train: samples to train with, and their targets if there are any.
        origin: the model as the user gave it: main file, of whatever format.
        checkpoints: a folder that is there again if the pass is killed and run again; None: it starts anew then.
        tell: takes one line of progress; it costs next to nothing, so it may be called at every step.
    """

    work_dir: Path
    seed: int = 0
    probe: Dataset | None = None
    given: Mapping[str, Path] = field(default_factory=dict)
    train: Dataset | None = None
    origin: Path | None = None
    checkpoints: Path | None = None
    tell: Callable[[str], None] = lambda line: None


class Pass(Protocol):
    """One transformation.

    Attributes:
        name: its name in the table and in recipes.
        version: raised when equal input gives other output; part of the cache key.
        formats: formats it reads.
        writes: the format that it writes, empty = the one that it read.
        extra: installs its libraries beside the command.
        toolchain: in whose environment it runs (`optimizer.toolchains`); empty = in the command's own.
        tools: distributions whose versions are part of the cache key and of the lineage.
        parameters: model of its parameters, all with defaults.
        evidence: what proves a change (see `optimizer.checks`): integer, float16, structure, format, or own: the pass itself looks.
        must_change: without that evidence the output is UNCHANGED; a pass that need not change is a normaliser, just skipped.
        drift: largest allowed relative L2 distance of outputs to the parent's, over the probe samples; infinite = any that is finite.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    formats: ClassVar[tuple[str, ...]]
    writes: ClassVar[str]
    extra: ClassVar[str]
    toolchain: ClassVar[str]
    tools: ClassVar[tuple[str, ...]]
    parameters: ClassVar[type[PassParameters]]
    evidence: ClassVar[str]
    must_change: ClassVar[bool]
    drift: ClassVar[float]

    def run(self, source: Path, out_dir: Path, parameters: Any, calibration: Dataset | None, context: Context) -> Changed:
        """Reads `source` (main file) and writes a model with its data into the empty `out_dir`. Raises PassFailure."""
        ...


_loaded: dict[str, Pass] = {}


def load_pass(name: str) -> Pass:
    """The pass of that name. Raises UserError with the nearest name for an unknown one, and with what to install."""
    if name not in PASSES:
        near = difflib.get_close_matches(name, WRITABLE, n=1)
        raise UserError(f"unknown pass {name!r}; " + (f"is {near[0]!r} meant?" if near else f"there are {', '.join(WRITABLE)}"))
    return load_path(PASSES[name])


def load_path(dotted: str) -> Pass:
    """The pass at `module:Class`. Raises UserError with what to install."""
    if dotted not in _loaded:
        module, attribute = dotted.split(":")
        try:
            loaded: Pass = getattr(importlib.import_module(module), attribute)()
        except ModuleNotFoundError as error:
            raise UserError(f"pass {dotted} needs the module {error.name!r}: pip install 'edgefarm[optimizer]'") from error
        _loaded[dotted] = loaded
    return _loaded[dotted]


def missing_tools(used: Pass) -> list[str]:
    """Distributions that a pass needs and this machine lacks; nothing is imported."""
    if used.toolchain:
        found = toolchains.versions(used.toolchain, used.tools)
        return [name for name in used.tools if name not in found]
    return [name for name in used.tools if not _is_installed(name)]


def remedy(used: Pass) -> str:
    """What installs the libraries of a pass."""
    return f"controller toolchain install {used.toolchain}" if used.toolchain else f"pip install 'edgefarm[{used.extra}]'"


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True

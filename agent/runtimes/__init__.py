"""Libraries that run a model: one file per runtime, found through the table. Importing this package imports none of them.

To add one: a file beside this one, a row in RUNTIMES, a parameter in tests/contract/test_runtimes.py.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgefarm.errors import UserError
from edgefarm.model import FailureKind, OperatorTime, Options, Scalar

_OUT_OF_MEMORY = ("bad_alloc", "failed to allocate", "out of memory")

Array = Any  # numpy.ndarray; this module must not import numpy


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype (numpy's name; `str` for strings) and shape (None = dynamic) of one input or output."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class RuntimeFailure(Exception):
    """A runtime could not load or run a model."""

    def __init__(self, kind: FailureKind, detail: str) -> None:
        super().__init__(detail)
        self.kind, self.detail = kind, detail


@dataclass(frozen=True)
class Profile:
    """What took the time in a model, by the library's own profiler; profiling slows it down.

    Attributes:
        operators: means over the inferences, in no order.
        whole_ns: mean of a whole inference while it was profiled, from outside.
        source: what told it.
        unavailable: why the library tells no times; the rest is empty then.
    """

    operators: tuple[OperatorTime, ...] = ()
    whole_ns: float = 0.0
    source: str = ""
    unavailable: str = ""


class Model(Protocol):
    """A loaded model.

    Attributes:
        inputs: what it takes, under the names that the file gives them.
        outputs: what it gives, likewise.
        chosen: options that were not given and matter for what is computed, with what the library took by itself.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    chosen: Mapping[str, str]

    def run(self, feeds: dict[str, Array]) -> list[Array]:
        """Outputs in the order of `outputs`. This is the call that is timed: keep it thin. Raises the runtime's own errors."""
        ...

    def reset(self) -> None:
        """Forgets what earlier runs left inside the model; nothing where it keeps no state. May load it again: never time it."""
        ...

    def placement(self, feeds: dict[str, Array]) -> dict[str, int]:
        """Nodes per execution provider, as `Runtime.providers` names it. Raises RuntimeFailure where the library does not tell.

        May load the model again and run it: never call it while something is timed.
        """
        ...

    def profile(self, feeds: Sequence[dict[str, Array]], inferences: int) -> Profile:
        """Time of each operator, over `inferences` runs (at least 1) with `feeds` in turn, after a few that are not counted.

        Loads the model again with the library's profiler on, in place of the one that was loaded.
        """
        ...

    def close(self) -> None:
        """Frees what the model holds."""
        ...


class Runtime(Protocol):
    """A library that runs models."""

    def version(self) -> str:
        """The library's version."""
        ...

    def providers(self) -> list[str]:
        """Execution providers (or delegates) that the library offers here and that compute on this device.

        The first is what runs where no option selects one: the baseline's.
        """
        ...

    def selection(self, provider: str) -> Options:
        """The options of a candidate that is to run with `provider`."""
        ...

    def requested(self, options: Options) -> str:
        """The inverse: the execution provider or delegate that `options` ask for by name, empty where they leave it to the library."""
        ...

    def prepare(self, options: Options) -> None:
        """Loads what any model with `options` needs besides itself, such as a device's plugin. Raises RuntimeFailure as `load` does."""
        ...

    def resting(self, options: Options) -> Options:
        """`options` with which idle threads go to sleep soon after an inference; the same where there is no such option, or none is needed.

        Inferences that follow each other at once must take as long as with `options`.
        """
        ...

    def load(self, path: Path, options: Options) -> Model:
        """Loads a model. Every runtime takes `threads`.

        Raises RuntimeFailure (LOAD, UNSUPPORTED_OP, OOM); a wrong option is named in it.
        """
        ...

    def explain(self, error: Exception) -> RuntimeFailure | None:
        """What an error raised by `Model.run` means; None if it is not this library's."""
        ...

    def probe_model(self, folder: Path) -> Path:
        """A tiny model that any build of the library can run: `x: float32[2, 2] -> y = x @ x + 1`; `folder` is for what must be written."""
        ...


WARM_UP = 2  # inferences before a profile's first: kernels are chosen and memory is laid out in those
CUT_OFF_NS = 500  # what a profiler that counts whole microseconds leaves out of each reading, on average


def in_turn(run: Callable[[dict[str, Array]], object], feeds: Sequence[dict[str, Array]], inferences: int, first: int = 0) -> float:
    """Runs `inferences` times, from `feeds[first]` on; mean nanoseconds of one."""
    spent = 0
    for index in range(first, first + inferences):
        fed = feeds[index % len(feeds)]
        started = time.perf_counter_ns()
        run(fed)
        spent += time.perf_counter_ns() - started
    return spent / inferences


@dataclass(frozen=True)
class Library:
    """What a runtime stands on: the module that it imports, the distribution that brings it."""

    module: str
    distribution: str


@dataclass(frozen=True)
class RuntimeEntry:
    """A row of the table.

    Attributes:
        target: where the runtime lives (`module:class`).
        formats: formats of artifacts that it opens.
        extra: installs it.
        libraries: any of them will do; the first that is installed is used.
    """

    target: str
    formats: tuple[str, ...]
    extra: str
    libraries: tuple[Library, ...]


# Where several open a format, the first is the one that it belongs to.
RUNTIMES: dict[str, RuntimeEntry] = {
    "onnxruntime": RuntimeEntry(
        "agent.runtimes.onnxruntime:OnnxRuntime", ("onnx",), "onnxruntime", (Library("onnxruntime", "onnxruntime"),)
    ),
    "tflite": RuntimeEntry(
        "agent.runtimes.tflite:Tflite", ("tflite",), "tflite",
        (Library("ai_edge_litert", "ai-edge-litert"), Library("tflite_runtime", "tflite-runtime")),
    ),
    "openvino": RuntimeEntry(
        "agent.runtimes.openvino:OpenVino", ("openvino", "onnx", "tflite"), "openvino", (Library("openvino", "openvino"),)
    ),
}  # fmt: skip


def load_runtime(name: str) -> Runtime:
    """The runtime `name`. Raises UserError if there is no such row or its library is missing."""
    entry = RUNTIMES.get(name)
    if entry is None:
        raise UserError(f"unknown runtime {name!r}; known are: {', '.join(sorted(RUNTIMES))}")
    module, _, attribute = entry.target.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise UserError(f"{missing(name)} ({error})") from error
    return kind()  # type: ignore[no-any-return]


def thread_count(value: Scalar) -> int:
    """The option `threads`. Raises RuntimeFailure(LOAD)."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise RuntimeFailure(FailureKind.LOAD, f"option 'threads' must be a positive whole number, got {value!r}")
    return value


def missing(name: str) -> str:
    """The sentence for a runtime whose library is not installed."""
    return f"runtime {name!r} needs: pip install 'edgefarm[{RUNTIMES[name].extra}]'"


def installed_library(name: str) -> Library | None:
    """The library that the runtime would use; nothing is imported for it."""
    return next((library for library in RUNTIMES[name].libraries if importlib.util.find_spec(library.module) is not None), None)


def is_installed(name: str) -> bool:
    """Whether a library of the runtime is there."""
    return installed_library(name) is not None


def is_out_of_memory(text: str) -> bool:
    """Whether a library's error says that an allocation failed."""
    lower = text.lower()
    return any(sign in lower for sign in _OUT_OF_MEMORY)

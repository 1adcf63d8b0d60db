"""LiteRT (TensorFlow Lite), https://ai.google.dev/edge/litert. Tried with ai-edge-litert 2.0 to 2.3 and, with NumPy 1, tflite-runtime 2.14.

Options: `threads`, `delegate` (xnnpack, the library's default, or none: its built-in kernels).
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agent.runtimes import Array, Profile, RuntimeFailure, TensorSpec, is_out_of_memory, thread_count
from edgefarm.model import FailureKind, Options

try:
    from ai_edge_litert import __version__ as _VERSION
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
except ImportError:
    if int(np.__version__.partition(".")[0]) > 1:  # it would import, and then fail at its first model
        raise ImportError("tflite-runtime does not work with NumPy 2: pip install ai-edge-litert") from None
    from tflite_runtime import __version__ as _VERSION
    from tflite_runtime.interpreter import Interpreter, OpResolverType

_XNNPACK, _NONE = "xnnpack", "none"
_DELEGATE = "DELEGATE"
_DELEGATES = {_XNNPACK: OpResolverType.AUTO, _NONE: OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES}
_REACH_RESOURCES = frozenset({"VAR_HANDLE", "CALL_ONCE", "IF", "WHILE"})
_UNSUPPORTED = ("unresolved custom op", "didn't find op for builtin opcode", "not supported by this interpreter")
_WRONG_INPUT = ("Cannot set tensor", "Attempting to resize dimension")
Ends = tuple[set[int], set[int]]  # tensors that go in, and that come out


class TfliteModel:
    """One interpreter. Open axes are resized to what is fed, when it changes."""

    def __init__(self, path: Path, options: Options) -> None:
        self._path, self._options = path, options
        self.chosen: dict[str, str] = {}
        self._open()
        found = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self.inputs, self.outputs = (tuple(map(_spec, side)) for side in found)
        operators = {o["op_name"] for o in self._interpreter._get_ops_details()}
        self._keeps_resources = not operators.isdisjoint(_REACH_RESOURCES)

    def run(self, feeds: dict[str, Array]) -> list[Array]:
        """One inference."""
        if self._shapes:
            self._resize(feeds)
        for name, index in self._feeds:
            self._interpreter.set_tensor(index, feeds[name])
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for index in self._results]

    def reset(self) -> None:
        """Forgets what earlier runs left: variable tensors become 0; resource variables are out of that call's reach, so it opens anew."""
        if self._keeps_resources:
            self._open()
        else:
            self._interpreter.reset_all_variables()

    def placement(self, feeds: dict[str, Array]) -> dict[str, int]:
        """Operators that the delegate took, and those left to the built-in kernels (`none`).

        LiteRT lists all operators and the delegates' border tensors, but not who runs what: that follows from who makes and reads them.
        """
        self.run(feeds)
        listed = [(o["op_name"], _tensors(o["inputs"]), _tensors(o["outputs"])) for o in self._interpreter._get_ops_details()]
        operators = [(inputs, outputs) for name, inputs, outputs in listed if name != _DELEGATE]
        delegates = [(inputs, outputs) for name, inputs, outputs in listed if name == _DELEGATE]
        taken = delegated(operators, delegates, set(self._results))
        return dict(collections.Counter(_XNNPACK if index in taken else _NONE for index in range(len(operators))))

    def profile(self, feeds: Sequence[dict[str, Array]], inferences: int) -> Profile:
        """Nothing: the profiler is in the library, but the interpreter of its Python package can't be given one."""
        return Profile(unavailable=f"LiteRT {_VERSION} tells no times of operators to Python")

    def close(self) -> None:
        """Frees the interpreter."""
        del self._interpreter

    def _open(self) -> None:
        self._interpreter = _interpreter(self._path, self._options)
        inputs = self._interpreter.get_input_details()
        self._feeds = [(d["name"], d["index"]) for d in inputs]
        self._results = [d["index"] for d in self._interpreter.get_output_details()]
        self._shapes = {d["name"]: tuple(d["shape"]) for d in inputs if -1 in d["shape_signature"]}

    def _resize(self, feeds: dict[str, Array]) -> None:
        changed = {name: feeds[name].shape for name, shape in self._shapes.items() if feeds[name].shape != shape}
        if not changed:
            return
        for name, index in self._feeds:
            if name in changed:
                self._interpreter.resize_tensor_input(index, changed[name], strict=True)
        self._interpreter.allocate_tensors()
        self._shapes |= changed


class Tflite:
    """The table's entry point."""

    def version(self) -> str:
        """The wheel's version."""
        return str(_VERSION)

    def providers(self) -> list[str]:
        """Delegates in this build, and the built-in kernels."""
        return list(_DELEGATES)

    def selection(self, provider: str) -> Options:
        """One option names it."""
        return {"delegate": provider}

    def requested(self, options: Options) -> str:
        """What the option names; a delegate leaves to the built-in kernels what it does not know."""
        return str(options.get("delegate", ""))

    def prepare(self, options: Options) -> None:
        """The import brought all of it."""

    def resting(self, options: Options) -> Options:
        """Its threads sleep when there is nothing to do."""
        return options

    def load(self, path: Path, options: Options) -> TfliteModel:
        """Opens `path` and allocates its tensors."""
        return TfliteModel(path, options)

    def explain(self, error: Exception) -> RuntimeFailure | None:
        """LiteRT raises plain ValueError and RuntimeError: only the text tells."""
        text = str(error)
        if not isinstance(error, (ValueError, RuntimeError)):
            return None
        if text.startswith(_WRONG_INPUT):
            return RuntimeFailure(FailureKind.IO_CHANGED, text)
        if "Node number" in text:
            return RuntimeFailure(FailureKind.OOM if is_out_of_memory(text) else FailureKind.CRASH, text)
        return None

    def probe_model(self, folder: Path) -> Path:
        """Made of the first versions of both operators."""
        return Path(__file__).with_name("probe.tflite")


def delegated(operators: Sequence[Ends], delegates: Sequence[Ends], results: set[int]) -> set[int]:
    """Indices of the operators that run inside a delegate. Raises RuntimeFailure where it does not follow from the tensors.

    Args:
        operators: tensors that each reads and makes.
        delegates: tensors that each takes from outside, constants included, and those that it gives to others.
        results: the model's outputs.
    """
    makers = {tensor: index for index, (_, outputs) in enumerate(operators) for tensor in outputs}
    readers: dict[int, list[int]] = collections.defaultdict(list)
    for index, (inputs, _) in enumerate(operators):
        for tensor in inputs:
            readers[tensor].append(index)
    taken: set[int] = set()
    for taken_in, given in delegates:
        found = [makers[tensor] for tensor in given]
        while found:
            index = found.pop()
            if index not in taken:
                taken.add(index)
                inputs, outputs = operators[index]
                found += [makers[tensor] for tensor in inputs - taken_in if tensor in makers]
                found += [reader for tensor in outputs - given for reader in readers[tensor]]
    within = {tensor for taken_in, _ in delegates for tensor in taken_in} | {t for index in taken for t in operators[index][1]}
    for index, (inputs, outputs) in enumerate(operators):
        unread = not any(tensor in readers or tensor in results for tensor in outputs)
        calls = not inputs | outputs  # a subgraph, by CALL_ONCE: no delegate takes that
        if delegates and index not in taken and unread and inputs <= within and not calls:
            raise RuntimeFailure(FailureKind.UNSPECIFIED, f"LiteRT does not tell who runs operator {index}, whose result nobody reads")
    return taken


def _tensors(indices: Any) -> set[int]:
    return {int(index) for index in indices if index >= 0}  # -1: an optional one that is not there


def _interpreter(path: Path, options: Options) -> Interpreter:
    threads, resolver = _settings(options)
    try:
        interpreter = Interpreter(str(path), num_threads=threads, experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError, MemoryError) as error:
        raise _load_failure(error) from error
    return interpreter


def _settings(options: Options) -> tuple[int | None, OpResolverType]:
    threads, resolver = None, OpResolverType.AUTO
    for name, value in options.items():
        if name == "threads":
            threads = thread_count(value)
        elif name == "delegate":
            if value not in _DELEGATES:
                raise RuntimeFailure(FailureKind.LOAD, f"option 'delegate' must be one of {', '.join(_DELEGATES)}, got {value!r}")
            resolver = _DELEGATES[str(value)]
        else:
            raise RuntimeFailure(FailureKind.LOAD, f"unknown option {name!r} of tflite; known are threads, delegate")
    return threads, resolver


def _load_failure(error: Exception) -> RuntimeFailure:
    text = str(error)
    if isinstance(error, MemoryError) or is_out_of_memory(text):
        return RuntimeFailure(FailureKind.OOM, text)
    unsupported = any(sign in text.lower() for sign in _UNSUPPORTED)
    return RuntimeFailure(FailureKind.UNSUPPORTED_OP if unsupported else FailureKind.LOAD, text)


def _spec(detail: dict[str, Any]) -> TensorSpec:
    kind = np.dtype(detail["dtype"])
    signature = detail["shape_signature"] if len(detail["shape_signature"]) else detail["shape"]
    return TensorSpec(detail["name"], "str" if kind.kind in "SUO" else kind.name, tuple(None if d < 0 else int(d) for d in signature))

"""ONNX Runtime, https://onnxruntime.ai/docs/api/python/. Tried with 1.18 to 1.32.

Options: `threads` (intra-op), `execution_provider`, `graph_optimization_level` (disable, basic, extended, all), and session configuration
entries under their own dotted names, e.g. `session.intra_op.allow_spinning`.
"""

from __future__ import annotations

import collections
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.runtimes import CUT_OFF_NS, WARM_UP, Array, Profile, RuntimeFailure, TensorSpec, in_turn, is_out_of_memory, thread_count
from edgefarm.model import FailureKind, OperatorTime, Options, Scalar

# The wheel's telemetry starts a thread and writes below the home folder while it is imported: only this variable comes early enough.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort

_DEFAULT_PROVIDER = "CPUExecutionProvider"
_REMOTE_PROVIDERS = frozenset({"AzureExecutionProvider"})  # they send tensors elsewhere: nothing of this device
_FATAL = 4
_SPINNING = ("session.intra_op.", "session.force_spinning_stop")
_REST_US = 5_000
_LEVELS = {
    "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_DTYPES = {
    "float": "float32", "double": "float64", "float16": "float16", "bool": "bool", "string": "str",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip
_UNSUPPORTED = ("no op registered", "not_implemented", "could not find an implementation", "is not a registered function/op")


class OnnxModel:
    """One session."""

    def __init__(self, path: Path, options: Options) -> None:
        self._path, self._options = path, options
        self.chosen: dict[str, str] = {}
        self._session = _session(path, options)
        self.inputs = tuple(map(_spec, self._session.get_inputs()))
        self.outputs = tuple(map(_spec, self._session.get_outputs()))

    def run(self, feeds: dict[str, Array]) -> list[Array]:
        """One inference."""
        return self._session.run(None, feeds)  # type: ignore[no-any-return]

    def reset(self) -> None:
        """A session keeps nothing between runs: state goes in and out by inputs and outputs."""

    def placement(self, feeds: dict[str, Array]) -> dict[str, int]:
        """Nodes per execution provider after optimisation, from a session of its own: the assignment it records, else a profiled run."""
        recording = _session(self._path, {**self._options, "session.record_ep_graph_assignment_info": "1"})
        if hasattr(recording, "get_provider_graph_assignment_info"):
            counts: collections.Counter[str] = collections.Counter()
            for part in recording.get_provider_graph_assignment_info():
                counts[part.ep_name] += len(part.get_nodes())
            return dict(counts)
        return _profiled_placement(self._path, self._options, feeds)

    def profile(self, feeds: Sequence[dict[str, Array]], inferences: int) -> Profile:
        """From the trace of a session that profiles itself, per node after optimisation."""
        del self._session
        with tempfile.TemporaryDirectory() as folder:
            self._session = _session(self._path, self._options, profile=str(Path(folder) / "profile"))
            in_turn(self.run, feeds, WARM_UP)
            whole_ns = in_turn(self.run, feeds, inferences, WARM_UP)
            events = json.loads(Path(self._session.end_profiling()).read_text())
        return Profile(operator_times(events), whole_ns, f"profiler of ONNX Runtime {ort.__version__}, in microseconds")

    def close(self) -> None:
        """Frees the session."""
        del self._session


class OnnxRuntime:
    """The table's entry point."""

    def __init__(self) -> None:
        ort.disable_telemetry_events()
        ort.set_default_logger_severity(_FATAL)  # errors come as exceptions; stderr is kept for crashes

    def version(self) -> str:
        """The wheel's version."""
        return str(ort.__version__)

    def providers(self) -> list[str]:
        """Execution providers in this build, the CPU's first, without those that compute elsewhere."""
        local = [p for p in ort.get_available_providers() if p not in _REMOTE_PROVIDERS]
        return sorted(local, key=lambda provider: provider != _DEFAULT_PROVIDER)

    def selection(self, provider: str) -> Options:
        """One option names it."""
        return {"execution_provider": provider}

    def requested(self, options: Options) -> str:
        """What the option names; ONNX Runtime gives nodes that it can't run there to the CPU without a word."""
        return str(options.get("execution_provider", ""))

    def prepare(self, options: Options) -> None:
        """The import brought all of it."""

    def resting(self, options: Options) -> Options:
        """Threads spin for a time that is long beside the gaps within an inference, instead of a million turns (16 to 500 ms by processor).

        Versions before https://github.com/microsoft/onnxruntime/pull/27916 (2026) take no notice of the entry.
        """
        spins = options.get("threads", 0) != 1 and not any(name.startswith(_SPINNING) for name in options)
        return {**options, "session.intra_op.spin_duration_us": _REST_US} if spins else options

    def load(self, path: Path, options: Options) -> OnnxModel:
        """Opens `path`; external data is looked for beside it."""
        return OnnxModel(path, options)

    def explain(self, error: Exception) -> RuntimeFailure | None:
        """ONNX Runtime's errors at run time: shapes and types that do not fit are IO_CHANGED, failed allocations OOM, others CRASH."""
        if not _is_ours(error):
            return None
        text = str(error)
        if is_out_of_memory(text):
            return RuntimeFailure(FailureKind.OOM, text)
        return RuntimeFailure(FailureKind.IO_CHANGED if type(error).__name__ == "InvalidArgument" else FailureKind.CRASH, text)

    def probe_model(self, folder: Path) -> Path:
        """Made with opset 9 and IR 4, which every supported version reads."""
        return Path(__file__).with_name("probe.onnx")


def _session(path: Path, options: Options, profile: str = "") -> ort.InferenceSession:
    settings, provider = _settings(options)
    if profile:
        settings.enable_profiling, settings.profile_file_prefix = True, profile
    if provider not in ort.get_available_providers():
        raise RuntimeFailure(FailureKind.LOAD, f"execution_provider {provider!r} is not in this build of ONNX Runtime {ort.__version__}")
    try:
        session = ort.InferenceSession(str(path), settings, providers=[provider])
    except Exception as error:
        raise _load_failure(error) from error
    if provider not in session.get_providers():
        raise RuntimeFailure(FailureKind.LOAD, f"execution_provider {provider!r} did not start: ONNX Runtime fell back to the CPU")
    return session


def _settings(options: Options) -> tuple[ort.SessionOptions, str]:
    settings, provider = ort.SessionOptions(), _DEFAULT_PROVIDER
    settings.log_severity_level = _FATAL
    settings.inter_op_num_threads = 1
    for name, value in options.items():
        if name == "threads":
            settings.intra_op_num_threads = thread_count(value)
        elif name == "execution_provider":
            provider = str(value)
        elif name == "graph_optimization_level":
            settings.graph_optimization_level = _level(value)
        elif "." in name:
            settings.add_session_config_entry(name, str(int(value)) if isinstance(value, bool) else str(value))
        else:
            known = "threads, execution_provider, graph_optimization_level, and session entries with a dot in their name"
            raise RuntimeFailure(FailureKind.LOAD, f"unknown option {name!r} of onnxruntime; known are {known}")
    return settings, provider


def _level(value: Scalar) -> ort.GraphOptimizationLevel:
    if value not in _LEVELS:
        raise RuntimeFailure(FailureKind.LOAD, f"option 'graph_optimization_level' must be one of {', '.join(_LEVELS)}, got {value!r}")
    return _LEVELS[str(value)]


def _load_failure(error: Exception) -> RuntimeFailure:
    text = str(error)
    if isinstance(error, MemoryError) or is_out_of_memory(text):
        return RuntimeFailure(FailureKind.OOM, text)
    unsupported = type(error).__name__ == "NotImplemented" or any(sign in text.lower() for sign in _UNSUPPORTED)
    return RuntimeFailure(FailureKind.UNSUPPORTED_OP if unsupported else FailureKind.LOAD, text)


def _is_ours(error: Exception) -> bool:
    return type(error).__module__.startswith("onnxruntime") or "ONNXRuntimeError" in str(error)


def _spec(node: ort.NodeArg) -> TensorSpec:
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    if not node.type.startswith("tensor(") or kind not in _DTYPES:
        raise RuntimeFailure(FailureKind.UNSUPPORTED_OP, f"{node.name!r} is a {node.type}: only plain tensors can be fed and measured")
    return TensorSpec(node.name, _DTYPES[kind], tuple(d if isinstance(d, int) else None for d in node.shape))


def _profiled_placement(path: Path, options: Options, feeds: Mapping[str, Array]) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        session = _session(path, options, profile=str(Path(folder) / "profile"))
        session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = {e["name"]: e["args"]["provider"] for e in events if e.get("cat") == "Node" and e.get("args", {}).get("provider")}
    return dict(collections.Counter(nodes.values()))


def operator_times(events: Sequence[Mapping[str, Any]]) -> tuple[OperatorTime, ...]:
    """Means by node, from the events of a trace (Chrome's trace format) without its first `WARM_UP` runs.

    Readings are whole microseconds, cut off. A node that runs others (If, Loop, Scan) encloses their events: it is left with what it
    took itself. Raises RuntimeFailure where the trace ends too early: the profiler keeps a million events.
    """
    runs = list(_runs(events))[WARM_UP:]
    if not runs:
        raise RuntimeFailure(FailureKind.UNSPECIFIED, "the profiler's trace holds no whole inference: the model has too many nodes for it")
    spent: dict[tuple[str, str, str], float] = collections.defaultdict(float)
    calls: collections.Counter[tuple[str, str, str]] = collections.Counter()
    for nodes in runs:
        for node, own_ns in _own_times(nodes):
            spent[node] += own_ns
            calls[node] += 1
    count = len(runs)
    return tuple(OperatorTime(*node, spent[node] / count, max(1, round(calls[node] / count))) for node in calls)


def _runs(events: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Node events of each inference: that of the whole comes after them."""
    nodes: list[Mapping[str, Any]] = []
    for event in events:
        if event.get("cat") == "Node" and event.get("args", {}).get("provider"):
            nodes.append(event)
        elif event.get("name") == "model_run":
            yield nodes
            nodes = []


def _own_times(nodes: Sequence[Mapping[str, Any]]) -> Iterator[tuple[tuple[str, str, str], float]]:
    """((name, kind, provider), nanoseconds without those of nodes inside it)."""
    within: list[tuple[int, list[float]]] = []  # end of each event that is open, and what it took itself so far
    found: list[tuple[tuple[str, str, str], list[float]]] = []
    for event in sorted(nodes, key=lambda e: (e["ts"], e["dur"] > 0, -e["dur"])):  # one of no length is before what begins then
        while within and within[-1][0] <= event["ts"]:
            within.pop()
        own = [1e3 * event["dur"] + CUT_OFF_NS]
        if within:
            within[-1][1][0] -= own[0]
        within.append((event["ts"] + event["dur"], own))
        arguments = event["args"]
        kind = str(arguments.get("op_name", ""))
        name = event["name"].removesuffix("_kernel_time") or f"{kind} {arguments.get('node_index', '')}".strip()
        found.append(((name, kind, str(arguments["provider"])), own))
    return ((node, max(0.0, own[0])) for node, own in found)

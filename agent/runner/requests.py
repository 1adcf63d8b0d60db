"""What a runner can be asked for. Each method is one request; its parameters are those of the request's header.

Paths are of this device; options and io are those of `edgefarm.model`, as JSON.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from agent.runner import accuracy, loadgen, schedule
from agent.runner import spend as spending
from agent.runner.footprint import footprint, mapped_bytes
from agent.runner.lanes import Lane, Plan
from agent.runner.mapping import Bound, Feeds, Tensor
from agent.runner.summaries import summaries
from agent.runtimes import Runtime, RuntimeFailure, load_runtime
from edgefarm.errors import UserError
from edgefarm.model import FailureKind, Io, OperatorTime, Options, TensorMap
from edgefarm.tensors import unpack

Answer = tuple[dict[str, Any], bytes]
T = TypeVar("T")
_MOST_OPERATORS, _NAME = 300, 120  # an answer is a frame's header, which is bounded
_PROFILED_SAMPLES = 8


class _Loaded:
    def __init__(self, runtime: Runtime, bound: Bound, path: Path) -> None:
        self.runtime, self.bound, self.path = runtime, bound, path

    def run(self, feeds: Feeds) -> list[Tensor]:
        """One untimed inference whose errors are typed."""
        return _typed(self.runtime, lambda: self.bound.run(feeds))


class Bench:
    """State of one runner: its runtimes, its loaded models, the inputs read last."""

    def __init__(self) -> None:
        self._runtimes: dict[str, Runtime] = {}
        self._loaded: dict[str, _Loaded] = {}
        self._shard: tuple[str, Mapping[str, Sequence[Tensor]]] = ("", {})
        self.answers: dict[str, Callable[..., Answer]] = {
            "import": self.import_runtime, "load": self.load, "first": self.first, "launch": self.launch,
            "loadgen": self.loadgen, "placement": self.placement,
            "profile": self.profile, "memory": self.memory, "evaluate": self.evaluate, "golden_check": self.golden_check,
            "spend": self.spend, "probe": self.probe, "prove": self.prove,
        }  # fmt: skip

    def import_runtime(self, runtime: str) -> Answer:
        """Imports a library, so that it is not part of the time a model takes to load."""
        return {"version": self._runtime(runtime).version()}, b""

    def load(self, key: str, path: str, runtime: str, options: Options, io: dict[str, Any] | None, rest: bool = False) -> Answer:
        """Loads a model under `key`; gives `load_ns`, the provider asked for, options that the library chose, inputs and outputs.

        `rest`: others will run beside it in turn, so its threads are to sleep soon after an inference; `resting`: the options that do it.
        """
        library = self._runtime(runtime)
        given = library.resting(options) if rest else options
        started = time.perf_counter_ns()
        model = library.load(Path(path), given)
        load_ns = time.perf_counter_ns() - started
        self._loaded[key] = _Loaded(library, Bound(model, _io(io)), Path(path))
        specs = {side: [[s.name, s.dtype, list(s.shape)] for s in getattr(model, side)] for side in ("inputs", "outputs")}
        resting = {name: value for name, value in given.items() if name not in options}
        return {"load_ns": load_ns, "chosen": dict(model.chosen), "provider": library.requested(options), "resting": resting, **specs}, b""

    def first(self, key: str, inputs: str) -> Answer:
        """The first inference, with the first of `samples`: `first_inference_ns`, and how many output values are NaN or infinite."""
        loaded = self._loaded[key]
        feeds = self._feeds(loaded, inputs)
        started = time.perf_counter_ns()
        outputs = loaded.run(feeds[0])
        elapsed = time.perf_counter_ns() - started
        return {"first_inference_ns": elapsed, "not_finite": accuracy.count_not_finite(outputs), "samples": len(feeds)}, b""

    def launch(self, keys: list[str], inputs: str, plan: dict[str, Any]) -> Answer:
        """The whole schedule of one launch; payload: the samples, as npz (`KEY.batch`: rows of each, where they are of batches)."""
        lanes = {key: self._lane(key, inputs) for key in keys}
        runtime = self._loaded[keys[0]].runtime
        timed = _typed(runtime, lambda: schedule.run_launch(lanes, Plan(**plan)))
        buffer = io.BytesIO()
        raw = {key: np.asarray(t.samples, dtype=np.uint64) for key, t in timed.items()}
        raw |= {f"{key}.disturbed": np.asarray(t.disturbed, dtype=np.bool_) for key, t in timed.items()}
        raw |= {f"{key}.batch": np.asarray(t.sizes, dtype=np.uint32) for key, t in timed.items() if t.sizes}
        np.savez_compressed(buffer, allow_pickle=False, **raw)
        return {"contenders": summaries(timed, plan["kind"])}, buffer.getvalue()

    def loadgen(self, key: str, inputs: str, folder: str, settings: dict[str, Any]) -> Answer:
        """The model under MLPerf LoadGen, whose logs are left in `folder`; see `agent.runner.loadgen`."""
        lane = self._lane(key, inputs)
        return _typed(self._loaded[key].runtime, lambda: loadgen.run(lane, loadgen.Settings(**settings), Path(folder))), b""

    def placement(self, key: str, inputs: str) -> Answer:
        """Nodes per execution provider."""
        loaded = self._loaded[key]
        feeds = loaded.bound.encode(self._feeds(loaded, inputs)[0])
        return {"placement": _typed(loaded.runtime, lambda: loaded.bound.model.placement(feeds))}, b""

    def profile(self, key: str, inputs: str, inferences: int) -> Answer:
        """Time of each operator over `inferences` runs; the longest ones by name, the rest as one."""
        loaded = self._loaded[key]
        feeds = [loaded.bound.encode(sample) for sample in self._feeds(loaded, inputs)[:_PROFILED_SAMPLES]]
        found = _typed(loaded.runtime, lambda: loaded.bound.model.profile(feeds, inferences))
        rows = [[o.name[:_NAME], o.kind[:_NAME], o.provider, o.mean_ns, o.calls, o.kernel[:_NAME]] for o in longest(found.operators)]
        return {"operators": rows, "whole_ns": found.whole_ns, "source": found.source, "unavailable": found.unavailable}, b""

    def memory(self, key: str | None, inputs: str, inferences: int, runtime: str = "", options: Options | None = None) -> Answer:
        """Memory after the load of `key`, its first inference and all `inferences`; or of all that a model needs, without one."""
        if key is None:
            self._runtime(runtime).prepare(options or {})
            self._read(inputs)
            return {**footprint(), "model_file_bytes": 0}, b""
        loaded = self._loaded[key]
        feeds = self._feeds(loaded, inputs)
        readings = [footprint()]
        for index in range(max(1, inferences)):
            loaded.run(feeds[index % len(feeds)])
            if index in (0, inferences - 1):
                readings.append(footprint())
        largest = {name: max(reading[name] for reading in readings) for name in readings[0]}
        return {**largest, "model_file_bytes": mapped_bytes(loaded.path)}, b""

    def spend(self, key: str, inputs: str, duration_ns: int, rate_per_s: float | None) -> Answer:
        """Inferences for a time; gives `marks`: moments, and how many had ended."""
        loaded = self._loaded[key]
        feeds = self._feeds(loaded, inputs)
        return {"marks": _typed(loaded.runtime, lambda: spending.spend(loaded.bound.run, feeds, duration_ns, rate_per_s))}, b""

    def evaluate(self, key: str, shards: list[str], outputs: str, golden: str, **how: Any) -> Answer:
        """Runs every sample of `shards`; writes reduced outputs and golden samples as tensor packs; gives `n`."""
        loaded = self._loaded[key]
        collector = accuracy.Collector(loaded.bound.outputs, **how)
        for shard in shards:
            for feeds in self._feeds(loaded, shard):
                loaded.bound.model.reset()
                collector.add(feeds, loaded.run(feeds))
        return {"n": collector.write(Path(outputs), Path(golden))}, b""

    def golden_check(self, key: str, golden: str, relative: float, absolute: float) -> Answer:
        """Runs the golden inputs; fails where an output is not what it was."""
        loaded = self._loaded[key]
        inputs, wanted = accuracy.read_golden(Path(golden))
        for index, feeds in enumerate(loaded.bound.feeds(inputs)):
            loaded.bound.model.reset()
            got = dict(zip(loaded.bound.outputs, loaded.run(feeds)))
            accuracy.compare(index, got, {name: np.asarray(values[index]) for name, values in wanted.items()}, relative, absolute)
        return {}, b""

    def probe(self, runtime: str) -> Answer:
        """Version and execution providers of a library, each with the options that select it."""
        library = self._runtime(runtime)
        return {"version": library.version(), "providers": {p: dict(library.selection(p)) for p in library.providers()}}, b""

    def prove(self, runtime: str, options: Options) -> Answer:
        """Runs a tiny model with `options` and checks what comes out."""
        library = self._runtime(runtime)
        model = library.load(library.probe_model(Path.cwd()), {**options, "threads": 1})
        x = np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32)
        outputs = _typed(library, lambda: model.run({model.inputs[0].name: x}))
        if not np.allclose(outputs[0], x @ x + 1, rtol=1e-2):
            raise RuntimeFailure(FailureKind.NUMERIC, f"the probe's output is wrong: {outputs[0].tolist()}")
        return {}, b""

    def _runtime(self, name: str) -> Runtime:
        if name not in self._runtimes:
            try:
                self._runtimes[name] = load_runtime(name)
            except UserError as error:
                raise RuntimeFailure(FailureKind.LOAD, str(error)) from error
        return self._runtimes[name]

    def _read(self, path: str) -> Mapping[str, Sequence[Tensor]]:
        if self._shard[0] != path:
            try:
                self._shard = (path, unpack(Path(path)))
            except ValueError as error:
                raise RuntimeFailure(
                    FailureKind.IO_CHANGED, f"inputs {Path(path).name} are not a tensor pack: {str(error).split('.')[0]}"
                ) from error
        return self._shard[1]

    def _lane(self, key: str, inputs: str) -> Lane:
        loaded = self._loaded[key]
        return Lane(loaded.bound.run, self._feeds(loaded, inputs), loaded.bound.batch_axes())

    def _feeds(self, loaded: _Loaded, path: str) -> list[Feeds]:
        feeds = loaded.bound.feeds(self._read(path))
        if not feeds:
            raise RuntimeFailure(FailureKind.IO_CHANGED, f"inputs {Path(path).name} hold no samples")
        return feeds


def longest(operators: Sequence[OperatorTime], most: int = _MOST_OPERATORS) -> list[OperatorTime]:
    """The longest first; what is beyond `most` is one row for each provider, so that no time is lost."""
    ordered = sorted(operators, key=lambda o: (-o.mean_ns, o.name))
    kept, rest = ordered[:most], ordered[most:]
    for provider in sorted({o.provider for o in rest}):
        mine = [o for o in rest if o.provider == provider]
        kept.append(OperatorTime(f"({len(mine)} others)", "", provider, sum(o.mean_ns for o in mine), sum(o.calls for o in mine)))
    return kept


def _typed(runtime: Runtime, call: Callable[[], T]) -> T:
    try:
        return call()
    except Exception as error:
        failure = runtime.explain(error)
        if failure is None:
            raise
        raise failure from error


def _io(value: dict[str, Any] | None) -> Io | None:
    if value is None:
        return None
    sides = {side: tuple(TensorMap(**{**m, "permutation": tuple(m["permutation"])}) for m in value[side]) for side in ("inputs", "outputs")}
    return Io(**sides)

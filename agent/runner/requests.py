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

from agent.runner import accuracy, schedule
from agent.runner.footprint import footprint
from agent.runner.mapping import Bound, Feeds, Tensor
from agent.runtimes import Runtime, RuntimeFailure, load_runtime
from edgefarm.errors import UserError
from edgefarm.model import FailureKind, Io, Options, TensorMap
from edgefarm.tensors import unpack

Answer = tuple[dict[str, Any], bytes]
T = TypeVar("T")


class _Loaded:
    def __init__(self, runtime: Runtime, bound: Bound) -> None:
        self.runtime, self.bound = runtime, bound

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
            "import": self.import_runtime, "load": self.load, "first": self.first, "launch": self.launch, "placement": self.placement,
            "memory": self.memory, "evaluate": self.evaluate, "golden_check": self.golden_check,
            "probe": self.probe, "prove": self.prove,
        }  # fmt: skip

    def import_runtime(self, runtime: str) -> Answer:
        """Imports a library, so that it is not part of the time a model takes to load."""
        return {"version": self._runtime(runtime).version()}, b""

    def load(self, key: str, path: str, runtime: str, options: Options, io: dict[str, Any] | None) -> Answer:
        """Loads a model under `key`; gives `load_ns`, the options that the library chose, inputs and outputs."""
        library = self._runtime(runtime)
        started = time.perf_counter_ns()
        model = library.load(Path(path), options)
        load_ns = time.perf_counter_ns() - started
        self._loaded[key] = _Loaded(library, Bound(model, _io(io)))
        specs = {side: [[s.name, s.dtype, list(s.shape)] for s in getattr(model, side)] for side in ("inputs", "outputs")}
        return {"load_ns": load_ns, "chosen": dict(model.chosen), **specs}, b""

    def first(self, key: str, inputs: str) -> Answer:
        """The first inference, with the first of `samples`: `first_inference_ns`, and how many output values are NaN or infinite."""
        loaded = self._loaded[key]
        feeds = self._feeds(loaded, inputs)
        started = time.perf_counter_ns()
        outputs = loaded.run(feeds[0])
        elapsed = time.perf_counter_ns() - started
        return {"first_inference_ns": elapsed, "not_finite": accuracy.count_not_finite(outputs), "samples": len(feeds)}, b""

    def launch(self, keys: list[str], inputs: str, plan: dict[str, Any]) -> Answer:
        """The whole schedule of one launch; payload: the samples, as npz."""
        lanes = {key: schedule.Lane(self._loaded[key].bound.run, self._feeds(self._loaded[key], inputs)) for key in keys}
        runtime = self._loaded[keys[0]].runtime
        timed = _typed(runtime, lambda: schedule.run_launch(lanes, schedule.Plan(**plan)))
        buffer = io.BytesIO()
        raw = {key: np.asarray(t.samples, dtype=np.uint64) for key, t in timed.items()}
        raw |= {f"{key}.disturbed": np.asarray(t.disturbed, dtype=np.bool_) for key, t in timed.items()}
        np.savez_compressed(buffer, allow_pickle=False, **raw)
        return {"contenders": schedule.summaries(timed)}, buffer.getvalue()

    def placement(self, key: str, inputs: str) -> Answer:
        """Nodes per execution provider."""
        loaded = self._loaded[key]
        feeds = self._feeds(loaded, inputs)[0]
        return {"placement": _typed(loaded.runtime, lambda: loaded.bound.model.placement(feeds))}, b""

    def memory(self, key: str | None, inputs: str, inferences: int) -> Answer:
        """Peak resident and proportional memory after `inferences` runs of `key`, or with the inputs but without a model."""
        if key is None:
            self._read(inputs)
        else:
            loaded = self._loaded[key]
            feeds = self._feeds(loaded, inputs)
            for index in range(inferences):
                loaded.run(feeds[index % len(feeds)])
        return footprint(), b""

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

    def _feeds(self, loaded: _Loaded, path: str) -> list[Feeds]:
        feeds = loaded.bound.feeds(self._read(path))
        if not feeds:
            raise RuntimeFailure(FailureKind.IO_CHANGED, f"inputs {Path(path).name} hold no samples")
        return feeds


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

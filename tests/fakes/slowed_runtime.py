"""ONNX Runtime that can be told to be slower. `python -m tests.fakes.slowed_runtime` is a runner that has it.

Its option `slower_percent` (0 is a plain run through the same wrapper) adds a busy wait of that share of each inference's own time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.runner import child
from agent.runtimes import RUNTIMES, Array, Library, Model, Profile, Runtime, RuntimeEntry, RuntimeFailure, TensorSpec
from edgefarm.model import Options

NAME, OPTION = "slowed", "slower_percent"


class FakeSlowedModel:
    """A model of ONNX Runtime with a wait after each run."""

    def __init__(self, inner: Model, percent: float) -> None:
        self._inner, self._share = inner, percent / 100
        self.inputs: tuple[TensorSpec, ...] = inner.inputs
        self.outputs: tuple[TensorSpec, ...] = inner.outputs
        self.chosen: Mapping[str, str] = inner.chosen

    def run(self, feeds: dict[str, Array]) -> list[Array]:
        now = time.perf_counter_ns
        started = now()
        outputs = self._inner.run(feeds)
        ended = now()
        until = ended + (ended - started) * self._share
        while now() < until:
            pass
        return outputs

    def reset(self) -> None:
        self._inner.reset()

    def placement(self, feeds: dict[str, Array]) -> dict[str, int]:
        return self._inner.placement(feeds)

    def profile(self, feeds: Sequence[dict[str, Array]], inferences: int) -> Profile:
        return self._inner.profile(feeds, inferences)

    def close(self) -> None:
        self._inner.close()


class FakeSlowedRuntime:
    def __init__(self) -> None:
        from agent.runtimes.onnxruntime import OnnxRuntime

        self._inner: Runtime = OnnxRuntime()

    def version(self) -> str:
        return self._inner.version()

    def providers(self) -> list[str]:
        return self._inner.providers()

    def selection(self, provider: str) -> Options:
        return self._inner.selection(provider)

    def requested(self, options: Options) -> str:
        return self._inner.requested(options)

    def prepare(self, options: Options) -> None:
        self._inner.prepare({name: value for name, value in options.items() if name != OPTION})

    def resting(self, options: Options) -> Options:
        return self._inner.resting(options)

    def load(self, path: Path, options: Options) -> FakeSlowedModel:
        rest = {name: value for name, value in options.items() if name != OPTION}
        return FakeSlowedModel(self._inner.load(path, rest), float(options[OPTION]))

    def explain(self, error: Exception) -> RuntimeFailure | None:
        return self._inner.explain(error)

    def probe_model(self, folder: Path) -> Path:
        return self._inner.probe_model(folder)


if __name__ == "__main__":
    target = "tests.fakes.slowed_runtime:FakeSlowedRuntime"
    RUNTIMES[NAME] = RuntimeEntry(target, ("onnx",), "onnxruntime", (Library("onnxruntime", "onnxruntime"),))
    child.main()

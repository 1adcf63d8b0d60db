"""Real launches of two copies of one model, on a machine that shows a board's files of /sys."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from agent.bench.latency import measure_latency
from agent.bench.site import Site
from controller.evidence import Launch
from edgefarm.model import Artifact, Candidate, Contender, FileEntry, LatencyResult, LatencyWork, Limits, Scenario
from tests import zoo
from tests.fakes import disturber
from tests.fixtures.trees import plant

LAUNCHES = 2
DIGEST = "sha256:" + "0" * 64


class Place:
    """Two copies of one model, and a board that shows what the test wants."""

    def __init__(self, folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "scratch").mkdir()
        self.root = plant(disturber.board(max(os.sched_getaffinity(0)) + 1), folder / "root")
        self.site = Site(folder / "scratch", threads=1, lock=folder / "lock", sensors_root=self.root)
        self._model = zoo.dense(folder / "model", width=256)
        self._inputs = zoo.write_shard(folder / "inputs.npz", self._model)
        size = self._model.stat().st_size
        candidate = Candidate(Artifact(DIGEST, size, "onnx", (FileEntry("model.onnx", DIGEST, size),)), "onnxruntime", {})
        contenders = (Contender("base", candidate), Contender("control", candidate))
        self._work = LatencyWork(contenders, Scenario(), "", tuple(range(LAUNCHES)), bursts=30, burst_ns=10_000_000)

    def launch(self, index: int, site: Site | None = None, bursts: int = 30) -> Launch:
        work, models = replace(self._work, bursts=bursts), dict.fromkeys(("base", "control"), self._model)
        measured = measure_latency(work, index, models, self._inputs, Limits(), site or self.site)
        assert isinstance(measured.outcome, LatencyResult)
        base, control = measured.outcome.contenders
        assert control.failure is None
        return Launch("o", index, "d", control, base, measured.conditions, 1)

    def launches(self, disturbed: Callable[[], AbstractContextManager[None]], bursts: int = 30) -> list[Launch]:
        """The last one is disturbed."""
        found = [self.launch(index) for index in range(LAUNCHES - 1)]
        with disturbed():
            return [*found, self.launch(LAUNCHES - 1, bursts=bursts)]

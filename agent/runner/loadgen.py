"""A loaded model under MLPerf LoadGen, https://github.com/mlcommons/inference/tree/master/loadgen, with its own logs. Runs in the child.

LoadGen decides when a sample is asked for, takes the time, and judges the run. Its rules for a submission ask for ten minutes; here a
run may be shorter (`min_duration_ms`), which its log says, and what makes percentiles of few queries valid is its early stopping.
"""

from __future__ import annotations

import ctypes
import os
import queue
import re
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.runner import batches
from agent.runner.lanes import Lane, Plan, uncollected
from agent.runtimes import RuntimeFailure
from edgefarm.model import FailureKind

SCENARIOS = {"paced": "SingleStream", "offline": "Offline", "server": "Server"}
SUMMARY = "mlperf_log_summary.txt"
_MORE = 1.5
_TRIES, _TRY_NS = 3, 20_000_000
_TARGETS = {"paced": 0.9, "server": 0.99}  # of v5 rules: the percentile that SingleStream and Server are held to
_NUMBERS = {
    "n": r"Processed (?:at least \d+ queries \()?(\d+)", "mean_ns": r"Mean latency \(ns\)\s*: (\d+)",
    "p50_ns": r"50\.00 percentile latency \(ns\)\s*: (\d+)", "p90_ns": r"90\.00 percentile latency \(ns\)\s*: (\d+)",
    "p99_ns": r"99\.00 percentile latency \(ns\)\s*: (\d+)",
    "samples_per_s": r"(?:Samples per second|Completed samples per second)\s*: ([\d.e+]+)",
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What LoadGen is told.

    Attributes:
        kind: the scenario's, one of SCENARIOS.
        min_duration_ms: of the run, at the least.
        min_queries: at the least.
        rate_per_s: of `server`.
        batch_size: rows that are run at once under `offline`.
        target_latency_ns: what 99 % of requests under `server` must keep.
        seed: of which samples are asked for, and when.
    """

    kind: str
    min_duration_ms: int
    min_queries: int
    rate_per_s: float | None = None
    batch_size: int = 1
    target_latency_ns: int = 0
    seed: int = 0


def run(lane: Lane, settings: Settings, folder: Path) -> dict[str, Any]:
    """Warms up, hands the model to LoadGen, and tells what its summary says; the logs are left in `folder`.

    Raises:
        RuntimeFailure: LoadGen is not installed, or the model can't be run with the batch size.
    """
    try:
        import mlperf_loadgen as loadgen  # late: an extra
    except ImportError as error:
        raise RuntimeFailure(FailureKind.LOAD, "MLPerf LoadGen needs: pip install 'edgefarm[loadgen]'") from error
    answer = _batched(lane, settings)
    served = _Server(loadgen, answer)
    lane.warm_up(Plan(0, 0, 0, 100_000_000, ""))
    rate = _rate(answer, lane, settings) if settings.kind == "offline" else 0.0
    inline, cores = settings.kind != "server", _Apart()
    system = loadgen.ConstructFastSUT(served.issue if inline else served.enqueue, lambda: None)
    samples = len(lane.feeds)
    library = loadgen.ConstructQSL(samples, samples, lambda indices: cores.infer() if inline else None, lambda indices: None)
    try:
        with served, uncollected(), cores:
            told, logs = _settings(loadgen, settings, lane.typical_ns, rate), _logging(loadgen, folder)
            loadgen.StartTestWithLogSettings(system, library, told, logs, "")
    finally:
        loadgen.DestroyQSL(library)
        loadgen.DestroyFastSUT(system)
    if served.failed is not None:
        raise served.failed
    found = read_summary((folder / SUMMARY).read_text())
    if settings.kind != "offline":  # there a query is all samples
        found["numbers"]["inference_p50_ns"] = float(statistics.median(served.spent))
    return found


def read_summary(text: str) -> dict[str, Any]:
    """What a summary of LoadGen's says: `result`, `reasons` why it is not valid, and the numbers that it has.

    Raises RuntimeFailure if it is none.
    """
    result = re.search(r"Result is : (\w+)", text)
    if result is None:
        raise RuntimeFailure(FailureKind.CRASH, f"LoadGen left no result; its summary begins with {text[:200]!r}")
    reasons = [line.strip() for line in text.splitlines() if re.search(r"satisfied\s*: NO", line, re.IGNORECASE)]
    _, _, advice = text.partition("Recommendations:")
    reasons += [line.strip(" *") for line in advice.split("\n\n")[0].splitlines() if line.startswith(" *")]
    found = {name: float(match[1]) for name, pattern in _NUMBERS.items() if (match := re.search(pattern, text))}
    return {"result": result[1], "reasons": reasons if result[1] != "VALID" else [], "numbers": found}


class _Apart:
    """The thread that infers on the core where it is, LoadGen's on the others of this process, if there are any.

    LoadGen writes its logs every 10 ms in a thread of its own; on the model's core it makes every tenth inference of a fast model slower.
    Threads that the runtime has already keep their cores.
    """

    def __init__(self) -> None:
        self._all = os.sched_getaffinity(0)
        self._here = {ctypes.CDLL(None).sched_getcpu()} & self._all

    def __enter__(self) -> None:
        """What this thread starts from now on runs on the others; so does it itself, until it infers."""
        if self._here and self._all - self._here:
            os.sched_setaffinity(0, self._all - self._here)

    def infer(self) -> None:
        """This thread infers from now on."""
        if self._here:
            os.sched_setaffinity(0, self._here)

    def __exit__(self, *_: object) -> None:
        os.sched_setaffinity(0, self._all)


class _Server:
    """Answers LoadGen's queries: in its own thread, or, where they may overlap, one after the other in a second one."""

    def __init__(self, loadgen: Any, answer: Callable[[Sequence[int]], None]) -> None:
        self._answer = answer
        self._complete, self._response = loadgen.QuerySamplesComplete, loadgen.QuerySampleResponse
        self._waiting: queue.SimpleQueue[tuple[Sequence[int], Sequence[int]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.failed: Exception | None = None
        self.spent: list[int] = []  # ns of each query in the model alone: what is above it in LoadGen's latencies is its own

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._waiting.put(None)
        self._thread.join()

    def enqueue(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        """Puts a query into the queue."""
        self._waiting.put((ids, indices))

    def issue(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        """Runs a query. An error can't be told to LoadGen: it is kept, and the rest is answered without running anything.

        LoadGen's clock runs, so as little as possible is done here.
        """
        if self.failed is None:
            try:
                started = time.perf_counter_ns()
                self._answer(indices)
                self.spent.append(time.perf_counter_ns() - started)
            except Exception as error:
                self.failed = error
        response = self._response
        self._complete([response(id, 0, 0) for id in ids])

    def _work(self) -> None:
        while (query := self._waiting.get()) is not None:
            self.issue(*query)


def _batched(lane: Lane, settings: Settings) -> Callable[[Sequence[int]], None]:
    run, feeds = lane.run, lane.feeds
    if settings.batch_size == 1 or settings.kind != "offline":

        def one_by_one(indices: Sequence[int]) -> None:
            for index in indices:
                run(feeds[index])

        return one_by_one
    try:
        count = batches.samples_of(lane, settings.batch_size)
    except batches.NoBatch as error:
        raise RuntimeFailure(FailureKind.UNSUPPORTED_OP, f"batch size {settings.batch_size}: {error}") from error

    def stacked(indices: Sequence[int]) -> None:
        for first in range(0, len(indices), count):
            run(batches.stack([feeds[index] for index in indices[first : first + count]]))

    return stacked


def _rate(answer: Callable[[Sequence[int]], None], lane: Lane, settings: Settings) -> float:
    """The most samples per second of a few tries."""
    indices = [
        i % len(lane.feeds) for i in range(settings.batch_size * max(1, int(_TRY_NS / max(1, lane.typical_ns) / settings.batch_size)))
    ]
    times = []
    for _ in range(_TRIES):
        started = time.perf_counter_ns()
        answer(indices)
        times.append(time.perf_counter_ns() - started)
    return len(indices) * 1e9 / min(times)


def _settings(loadgen: Any, settings: Settings, typical_ns: int, rate_per_s: float) -> Any:
    told = loadgen.TestSettings()
    told.scenario = getattr(loadgen.TestScenario, SCENARIOS[settings.kind])
    told.mode = loadgen.TestMode.PerformanceOnly
    told.min_duration_ms, told.min_query_count = settings.min_duration_ms, settings.min_queries
    told.qsl_rng_seed = told.sample_index_rng_seed = told.schedule_rng_seed = settings.seed
    if settings.kind == "paced":
        # It makes its queries beforehand, as many as fit into the duration by this: more than there will be, so that none lack.
        told.single_stream_expected_latency_ns = max(1, typical_ns // 4)
        told.single_stream_target_latency_percentile = _TARGETS["paced"]
    elif settings.kind == "offline":
        told.offline_expected_qps = rate_per_s * _MORE
    else:
        told.server_target_qps = settings.rate_per_s
        told.server_target_latency_ns = settings.target_latency_ns
        told.server_target_latency_percentile = _TARGETS["server"]
    return told


def _logging(loadgen: Any, folder: Path) -> Any:
    told = loadgen.LogSettings()
    told.enable_trace = False
    told.log_output.outdir = str(folder)
    told.log_output.copy_summary_to_stdout = False
    return told

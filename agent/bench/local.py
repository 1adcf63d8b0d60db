"""Measures on this machine, as the worker asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from agent.bench.site import Measured, Site
from agent.runner.process import Cancelled as RunnerCancelled
from agent.transfer import Cancelled
from edgefarm.model import AccuracyWork, Candidate, Failure, Golden, LatencyWork, Limits, Order


class LocalBench:
    """Measures in runner processes. What it measures with is imported when it is first asked: an agent may idle for weeks before."""

    def __init__(self, site: Site, memory_bytes: int) -> None:
        self._site, self._memory_bytes = site, memory_bytes

    def measure(
        self, order: Order, index: int, models: Mapping[str, Path], inputs: Sequence[Path], cancelled: Callable[[], bool]
    ) -> Measured:
        """One launch, or the pass, of an order. Raises Cancelled."""
        from agent.bench.latency import measure_latency
        from agent.bench.passes import measure_accuracy, measure_pass

        site, work, limits = replace(self._site, cancelled=cancelled), order.work, self._within(order.limits)
        try:
            if isinstance(work, LatencyWork):
                return measure_latency(work, index, models, inputs[0], limits, site)
            model = models[work.contender.key]
            if isinstance(work, AccuracyWork):
                return measure_accuracy(work, model, inputs, limits, site)
            return measure_pass(work, model, inputs[0], limits, site)
        except RunnerCancelled:
            raise Cancelled from None

    def golden(self, candidate: Candidate, model: Path, pack: Path, golden: Golden, cancelled: Callable[[], bool]) -> Failure | None:
        """Runs golden inputs through a file that is about to go live. Raises Cancelled."""
        from agent.bench.golden import check_golden

        try:
            return check_golden(candidate, model, pack, golden, self._within(Limits()), replace(self._site, cancelled=cancelled))
        except RunnerCancelled:
            raise Cancelled from None

    def _within(self, asked: Limits) -> Limits:
        """What was asked for, at most what this device's user allows."""
        bounds = [bound for bound in (asked.memory_bytes, self._memory_bytes) if bound]
        return replace(asked, memory_bytes=min(bounds, default=0))

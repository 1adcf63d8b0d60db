"""Passes over one contender: which work is done by whom, and accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agent.bench.energy import measure_energy
from agent.bench.memory import measure_memory
from agent.bench.profile import measure_profile
from agent.bench.session import Session, session, without_path
from agent.bench.site import Measured, Site
from agent.runner.process import RunnerFailed
from edgefarm.model import (
    AccuracyResult,
    AccuracyWork,
    EnergyWork,
    Limits,
    MemoryWork,
    Outcome,
    ProfileWork,
    Stage,
)


def measure_pass(work: MemoryWork | EnergyWork | ProfileWork, path: Path, inputs: Path, limits: Limits, site: Site) -> Measured:
    """A pass of its own over one contender."""
    if isinstance(work, MemoryWork):
        return measure_memory(work, path, inputs, limits, site)
    if isinstance(work, ProfileWork):
        return measure_profile(work, path, inputs, limits, site)
    return measure_energy(work, path, inputs, limits, site)


def measure_accuracy(work: AccuracyWork, path: Path, shards: Sequence[Path], limits: Limits, site: Site) -> Measured:
    """Runs every sample; two tensor packs lie in `Measured.blobs`.

    Outputs: with `topk`, int64 indices under the output's name, largest first; with `raw`, all outputs under the source's names.
    Golden: for the first `golden_samples`, `input:NAME` and `output:NAME` (raw).

    Args:
        work: what to run.
        path: the contender's main file.
        shards: the tensor packs that `work.shards` name, in that order.
        limits: time-outs (`run_ns` for the whole pass, or longer where the first inference says so) and memory.
        site: where.
    """
    with session(site, limits, [path], shards, cool=False) as measuring:
        try:
            outcome: Outcome = _accuracy(measuring, work, path, shards)
        except RunnerFailed as error:
            outcome = without_path(error.failure, path, work.contender.candidate.artifact.main_file)
        return measuring.finish(outcome)


def _accuracy(measuring: Session, work: AccuracyWork, path: Path, shards: Sequence[Path]) -> AccuracyResult:
    key, reduction = work.contender.key, work.reduction
    request = {
        "do": "evaluate", "key": key, "shards": [str(s.absolute()) for s in shards],
        "kind": reduction.kind, "output": reduction.output, "k": reduction.k,
        "golden_samples": work.golden_samples, "output_bytes_limit": work.output_bytes_limit,
    }  # fmt: skip
    with measuring.runner() as runner:
        outputs, golden = runner.folder / "outputs.npz", runner.folder / "golden.npz"
        request |= {"outputs": str(outputs), "golden": str(golden)}
        measuring.load(runner, key, work.contender.candidate, path)
        largest = max(shards, key=lambda shard: shard.stat().st_size)
        first = runner.call({"do": "first", "key": key, "inputs": str(largest.absolute())}, measuring.limits.run_ns, Stage.RUN).body
        limit_ns = measuring.run_limit_ns(first["samples"] * len(shards), first["first_inference_ns"])
        n = runner.call(request, limit_ns, Stage.RUN).body["n"]
    measuring.keep("outputs", outputs)
    measuring.keep("golden", golden)
    return AccuracyResult(key, "", "", n)

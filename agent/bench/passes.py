"""Memory and accuracy of one contender, each in a pass of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agent.bench.site import Measured, Session, Site, session, without_path
from agent.runner.process import RunnerFailed
from edgefarm.model import (
    AccuracyResult,
    AccuracyWork,
    Conditions,
    EnergyWork,
    Failure,
    FailureKind,
    Limits,
    MemoryResult,
    MemoryWork,
    Outcome,
    ProfileWork,
    Stage,
)


def measure_pass(work: MemoryWork | EnergyWork | ProfileWork, path: Path, inputs: Path, limits: Limits, site: Site) -> Measured:
    """A pass of its own over one contender; an order that this agent's features don't promise gets a failure."""
    if isinstance(work, MemoryWork):
        return measure_memory(work, path, inputs, limits, site)
    detail = f"{type(work).__name__} is not available in this version of the agent"
    return Measured(Failure(FailureKind.UNSPECIFIED, detail, Stage.RUN), Conditions())


def measure_memory(work: MemoryWork, path: Path, inputs: Path, limits: Limits, site: Site) -> Measured:
    """Peak RSS and PSS of a fresh runner with the model, next to one that holds the same runtime and inputs, but no model.

    Args:
        work: what to measure.
        path: the contender's main file.
        inputs: the tensor pack that `work.inputs` names.
        limits: time-outs and memory.
        site: where.
    """
    with session(site, limits, [path], [inputs]) as measuring:
        try:
            outcome: Outcome = _memory(measuring, work, path, inputs)
        except RunnerFailed as error:
            outcome = without_path(error.failure, path, work.contender.candidate.artifact.main_file)
        return measuring.finish(outcome)


def _memory(measuring: Session, work: MemoryWork, path: Path, inputs: Path) -> MemoryResult:
    key, candidate, limits = work.contender.key, work.contender.candidate, measuring.limits
    request = {"do": "memory", "inputs": str(inputs.absolute()), "inferences": work.inferences}
    with measuring.runner() as runner:
        runner.call({"do": "import", "runtime": candidate.runtime}, limits.load_ns, Stage.LOAD)
        reference = runner.call({**request, "key": None}, limits.run_ns, Stage.RUN).body
    with measuring.runner() as runner:
        measuring.load(runner, key, candidate, path)
        full = runner.call({**request, "key": key}, limits.run_ns, Stage.RUN).body
    return MemoryResult(key, full["peak_rss_bytes"], full["pss_bytes"], reference["peak_rss_bytes"], reference["pss_bytes"])


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
    with session(site, limits, [path], shards) as measuring:
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

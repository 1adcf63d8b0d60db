"""Memory of one contender: one definition for all runtimes.

Two fresh runners: one holds the runtime, the device's plugin and the inputs; the other holds the model as well and has run it, on every
sample that the inferences reach, so that weights that are mapped or laid out late are there. What the first holds is the reference; the
difference is the model's. Nothing is trimmed: what an allocator keeps, a program that deploys the model keeps too. Stacks and arenas of
the candidate's threads count. Files are read before, since pages that are not in the page cache are mapped one by one, later or never.
The private part is what the kernel calls so: pages of a library count only while no other process maps them, so it may differ by those
between two measurements; peak RSS does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.bench.accelerator import held_by
from agent.bench.session import Session, options_for, session, without_path
from agent.bench.site import Measured, Site
from agent.runner.process import RunnerFailed
from edgefarm.model import Limits, MemoryResult, MemoryWork, Outcome, Stage

_READ_BYTES = 1 << 20
_ACCELERATOR = "accelerator_bytes"


def measure_memory(work: MemoryWork, path: Path, inputs: Path, limits: Limits, site: Site) -> Measured:
    """Peak RSS, PSS and private bytes of a fresh runner with the model, next to one without it; the accelerator's apart.

    Args:
        work: what to measure.
        path: the contender's main file.
        inputs: the tensor pack that `work.inputs` names.
        limits: time-outs and memory.
        site: where.
    """
    with session(site, limits, [path], [inputs], cool=False) as measuring:
        try:
            outcome: Outcome = _memory(measuring, work, path, inputs)
        except RunnerFailed as error:
            outcome = without_path(error.failure, path, work.contender.candidate.artifact.main_file)
        return measuring.finish(outcome)


def _memory(measuring: Session, work: MemoryWork, path: Path, inputs: Path) -> MemoryResult:
    key, candidate, limits = work.contender.key, work.contender.candidate, measuring.limits
    _read_through([path.parent / file.name for file in candidate.artifact.files])
    options = options_for(candidate, measuring.site)
    request = {"do": "memory", "inputs": str(inputs.absolute()), "inferences": work.inferences}
    alone = {**request, "key": None, "runtime": candidate.runtime, "options": options}
    _without_model(measuring, alone)  # for the libraries what reading them through is for the model
    reference = _without_model(measuring, alone)
    with measuring.runner() as runner:
        provider = measuring.load(runner, key, candidate, path)["provider"]
        full = runner.call({**request, "key": key}, limits.run_ns, Stage.RUN).body
        held = held_by(runner.pid, provider, measuring.site.sensors_root)
    if held.reason:
        measuring.watch.unavailable(_ACCELERATOR, held.reason)
    return MemoryResult(
        key, full["peak_rss_bytes"], full["pss_bytes"], reference["peak_rss_bytes"], reference["pss_bytes"],
        full["private_bytes"], reference["private_bytes"], held.bytes, held.name, full["model_file_bytes"],
    )  # fmt: skip


def _without_model(measuring: Session, request: Mapping[str, Any]) -> dict[str, Any]:
    with measuring.runner() as runner:
        runner.call({"do": "import", "runtime": request["runtime"]}, measuring.limits.load_ns, Stage.LOAD)
        return runner.call(request, measuring.limits.run_ns, Stage.RUN).body


def _read_through(files: Sequence[Path]) -> None:
    for file in filter(Path.is_file, files):
        with file.open("rb", buffering=0) as stream:
            while stream.read(_READ_BYTES):
                pass

"""Does a deployed file still give what its variant gave when it was chosen?"""

from __future__ import annotations

from pathlib import Path

from agent.bench.session import session, without_path
from agent.bench.site import Site
from agent.runner.process import RunnerFailed
from edgefarm.model import Candidate, Failure, Golden, Limits, Stage

_KEY = "candidate"


def check_golden(candidate: Candidate, path: Path, golden_path: Path, golden: Golden, limits: Limits, site: Site) -> Failure | None:
    """Loads `path` in a fresh runner and compares its outputs with the golden ones; None if they agree.

    Args:
        candidate: what is to run: runtime, options, io.
        path: the model's main file.
        golden_path: the tensor pack that `golden.digest` names.
        golden: the tolerances; |got - want| <= absolute + relative * max|want|.
        limits: time-outs and memory.
        site: where.
    """
    request = {
        "do": "golden_check", "key": _KEY, "golden": str(golden_path.absolute()),
        "relative": golden.relative_tolerance, "absolute": golden.absolute_tolerance,
    }  # fmt: skip
    with session(site, limits, [path], [golden_path], cool=False) as measuring, measuring.runner() as runner:
        try:
            measuring.load(runner, _KEY, candidate, path)
            runner.call(request, limits.run_ns, Stage.RUN)
        except RunnerFailed as error:
            return without_path(error.failure, path, candidate.artifact.main_file)
    return None

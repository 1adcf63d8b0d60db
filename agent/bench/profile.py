"""Where the time goes inside of one contender, in a pass of its own: profiling slows a model down, so it is never on while one is timed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from agent.bench.session import Session, session, without_path
from agent.bench.site import Measured, Site
from agent.runner.process import RunnerFailed, RunnerProcess
from edgefarm.model import Limits, OperatorTime, Outcome, ProfileResult, ProfileWork, Stage


def measure_profile(work: ProfileWork, path: Path, inputs: Path, limits: Limits, site: Site) -> Measured:
    """Time of each operator and where it ran, as the runtime's own profiler tells.

    A runtime that tells no times gives a result with `unavailable`, and its placement where it tells that.

    Args:
        work: what to profile.
        path: the contender's main file.
        inputs: the tensor pack that `work.inputs` names.
        limits: time-outs and memory.
        site: where.
    """
    with session(site, limits, [path], [inputs]) as measuring:
        try:
            outcome: Outcome = _profile(measuring, work, path, str(inputs.absolute()))
        except RunnerFailed as error:
            outcome = without_path(error.failure, path, work.contender.candidate.artifact.main_file)
        return measuring.finish(outcome)


def _profile(measuring: Session, work: ProfileWork, path: Path, inputs: str) -> ProfileResult:
    key, limits = work.contender.key, measuring.limits
    about = {"key": key, "inputs": inputs}
    with measuring.runner() as runner:
        loaded = measuring.load(runner, key, work.contender.candidate, path)
        first = runner.call({"do": "first", **about}, limits.run_ns, Stage.RUN).body
        longest_ns = limits.load_ns + measuring.run_limit_ns(2 * work.inferences, first["first_inference_ns"])
        found = runner.call({"do": "profile", **about, "inferences": work.inferences}, longest_ns, Stage.RUN).body
        placement = _placement(measuring, runner, about)
    operators = tuple(OperatorTime(*row) for row in found["operators"])
    return ProfileResult(key, operators, placement, found["whole_ns"], found["source"], found["unavailable"], loaded["provider"])


def _placement(measuring: Session, runner: RunnerProcess, about: Mapping[str, str]) -> dict[str, int]:
    try:
        return dict(runner.call({"do": "placement", **about}, measuring.limits.load_ns, Stage.RUN).body["placement"])
    except RunnerFailed as error:
        measuring.watch.unavailable(f"placement of {about['key']}", error.failure.detail.splitlines()[0])
        return {}

"""`edge-agent profile`: where the time goes inside of one model, and where it ran, without a controller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agent.bench.profile import measure_profile
from agent.bench.site import Site
from agent.given import candidate_of, given_inputs
from agent.runner.scratch import folder
from edgefarm.errors import UserError
from edgefarm.model import Candidate, Contender, Limits, Options, ProfileResult, ProfileWork, fallen_back

_KEY = "model"
_SHOWN = 25


def profile_file(
    model: Path, *, runtime: str | None, options: Options, inputs: Path | None, inferences: int, lock: Path | None = None
) -> dict[str, Any]:
    """Time of each operator of one model file, as `--json` prints it; `fallback` is null where the options ask for no provider.

    Raises UserError: the file, the runtime, its options or the inputs don't fit; the message has the runtime's own words.
    """
    candidate = candidate_of(model, runtime, options)
    if inferences < 1:
        raise UserError(f"--inferences {inferences}: must be at least 1")
    with folder(None, "edgefarm-profile-") as scratch:
        fed = given_inputs(inputs, model, candidate, scratch)
        work = ProfileWork(Contender(_KEY, candidate), "", inferences)
        measured = measure_profile(work, model, fed, Limits(), Site(scratch, int(options["threads"]), lock))
    if not isinstance(measured.outcome, ProfileResult):
        failure: Any = measured.outcome
        raise UserError(f"{model}: {failure.kind.value}: {failure.detail}")
    return _report(model, candidate, inputs, inferences, measured.outcome)


def _report(model: Path, candidate: Candidate, inputs: Path | None, inferences: int, found: ProfileResult) -> dict[str, Any]:
    whole = sum(o.mean_ns for o in found.operators)
    nodes = fallen_back(found.provider, found.placement)
    fallback = {"asked": found.provider, "nodes": nodes, "time_share": found.fallback_share} if found.provider else None
    return {
        "model": str(model), "digest": candidate.artifact.digest, "runtime": candidate.runtime, "options": dict(candidate.options),
        "inputs": "random values" if inputs is None else str(inputs), "inferences": inferences, "source": found.source,
        "whole_ns": found.whole_ns, "operators_ns": whole,
        "operators": [{**vars(o), "share": o.mean_ns / whole if whole else 0.0} for o in found.operators],
        "placement": dict(found.placement), "fallback": fallback,
        "unavailable": {"operators": found.unavailable} if found.unavailable else {},
    }  # fmt: skip


def shown(report: dict[str, Any]) -> str:
    """The report as text: the longest operators, where the nodes are, and what fell back."""
    placed = ", ".join(f"{name}: {count}" for name, count in sorted(report["placement"].items())) or "not told"
    lines = [f"{Path(report['model']).name}, {report['runtime']}, fed with {report['inputs']}; nodes by provider: {placed}"]
    if report["operators"]:
        lines += [
            f"{report['source']}; means of {report['inferences']} inferences; profiling slows a model down",
            f"a whole inference {report['whole_ns'] / 1e3:.1f} us, its operators {report['operators_ns'] / 1e3:.1f} us", "",
            f"{'share':>6} {'us':>10} {'calls':>5}  {'kind':22} {'name':32} on",
        ]  # fmt: skip
        lines += [_line(operator) for operator in report["operators"][:_SHOWN]]
        if len(report["operators"]) > _SHOWN:
            lines.append(f"{len(report['operators']) - _SHOWN} more with --json")
    lines += [f"no {name}: {reason}" for name, reason in report["unavailable"].items()]
    fallback = report["fallback"]
    if fallback and fallback["nodes"]:
        share = "" if fallback["time_share"] is None else f", {fallback['time_share']:.0%} of the time"
        lines.append(f"FALLBACK: {fallback['asked']} was asked for, {fallback['nodes']} nodes ran elsewhere{share}")
    return "\n".join(lines)


def _line(operator: dict[str, Any]) -> str:
    on = " ".join(filter(None, (operator["provider"], operator["kernel"])))
    times = f"{operator['share']:6.1%} {operator['mean_ns'] / 1e3:10.1f} {operator['calls']:5}"
    return f"{times}  {operator['kind'][:22]:22} {operator['name'][:32]:32} {on}"

"""What a person names on either side: a model file, a variant of a run (`NAME@3:int8-static/3f2a`, `NAME@3:winner`), or a run."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgefarm.errors import UserError
from edgefarm.model import Artifact, Candidate, FileEntry, Io, TensorMap

_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*@[0-9]+")
_PLACES = ("winner", "baseline")  # of a run, on each device


@dataclass(frozen=True)
class FileSide:
    """A model file; `shown`: as it was typed."""

    path: Path
    shown: str

    def __str__(self) -> str:
        return self.shown


@dataclass(frozen=True)
class RunSide:
    """A run; its winners are meant, or `variant` of it: by name, or what is `winner` or `baseline` on each device."""

    run: str
    variant: str = ""

    def __str__(self) -> str:
        return f"{self.run}:{self.variant}" if self.variant else self.run


Side = FileSide | RunSide


def parse(text: str) -> Side:
    """Reads one side as typed. Raises UserError for what is neither a file nor has the form of a run."""
    if Path(text).exists():
        return FileSide(Path(text).absolute(), text)
    run, colon, variant = text.partition(":")
    if _RUN.fullmatch(run) and bool(colon) == bool(variant):
        return RunSide(run, variant)
    near = (
        difflib.get_close_matches(Path(text).name, [p.name for p in Path(text).parent.glob("*")], 1) if Path(text).parent.is_dir() else []
    )
    hint = f"; did you mean '{Path(text).parent / near[0]}'?" if near else ""
    raise UserError(f"{text}: no such file, and no run: give a model file, RUN (as fashion@3) or RUN:VARIANT (as fashion@3:winner){hint}")


def both(base: str, new: str) -> tuple[Side, Side]:
    """Reads both sides. Raises UserError also where a whole run is held against something else."""
    sides = parse(base), parse(new)
    whole = [s for s in sides if isinstance(s, RunSide) and not s.variant]
    if len(whole) == 1:
        raise UserError(f"{whole[0]} is a whole run, the other side is not: name one variant of it, e.g. {whole[0]}:winner")
    return sides


def candidates_of(side: RunSide, report: Mapping[str, Any]) -> dict[str, tuple[Candidate, str]]:
    """Device -> the candidate that a run's variant is there, and its variant's name.

    Raises:
        UserError: no device of the run has it; names those that there are.
    """
    found: dict[str, tuple[Candidate, str]] = {}
    names: dict[str, None] = {}
    for device in report["devices"]:
        names.update(dict.fromkeys(c["variant"] for c in device["candidates"]))
        shown = device[side.variant] if side.variant in _PLACES else _named(device, side.variant)
        if shown is not None:
            found[device["name"]] = candidate_of(shown), shown["variant"]
    if not found:
        known = ", ".join((*_PLACES, *names))
        raise UserError(f"{side}: no device of that run has such a variant; there are: {known}")
    return found


def _named(device: Mapping[str, Any], variant: str) -> Mapping[str, Any] | None:
    """The best placed of a variant's candidates: the winner, else the fastest that was compared, else any."""

    def rank(candidate: Mapping[str, Any]) -> tuple[bool, bool, float]:
        latency = candidate["latency_ns"]
        return candidate != device["winner"], latency is None, latency["p50"]["value"] if latency else 0.0

    return min((c for c in device["candidates"] if c["variant"] == variant), key=rank, default=None)


def candidate_of(shown: Mapping[str, Any]) -> Candidate:
    """The candidate that a report shows."""
    artifact, io = shown["artifact"], shown["io"]
    files = tuple(FileEntry(f["name"], f["digest"], f["bytes"]) for f in artifact["files"])
    made = Artifact(artifact["digest"], artifact["bytes"], artifact["format"], files)
    return Candidate(
        made, shown["runtime"], dict(shown["options"]), None if io is None else Io(*(_tensors(io[s]) for s in ("inputs", "outputs")))
    )


def _tensors(side: list[Mapping[str, Any]]) -> tuple[TensorMap, ...]:
    return tuple(
        TensorMap(t["source"], t["name"], tuple(t["permutation"] or ()), t["scale"], t["zero_point"], t.get("dtype") or "") for t in side
    )


def report_of(side: RunSide, find: Callable[[str], Mapping[str, Any]]) -> Mapping[str, Any]:
    """The report of a side's run. Raises UserError where it has none, or is of another kind."""
    report = find(side.run)
    if not report:
        raise UserError(f"{side.run} has no report yet; 'controller deploy' goes on with it")
    if report.get("kind", "run") != "run":
        raise UserError(f"{side.run} is a {report['kind']}: give a run of 'controller deploy', or model files")
    return report

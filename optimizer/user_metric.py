"""Runs a user's metric, `score(outputs, targets) -> float`, beside the command: in a process and on an import path of its own.

The function sees whole sets, so the interval of a difference comes from the paired bootstrap (Efron and Tibshirani, "An Introduction
to the Bootstrap", 1993, chapter 13): the same resampled indices for variant and baseline, percentile interval, fixed seed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgefarm.errors import UserError
from edgefarm.statistics import Interval
from edgefarm.tensors import Samples, pack

_CHILD = Path(__file__).with_name("user_metric_child.py")


@dataclass(frozen=True)
class UserScore:
    """A variant's score, the baseline's on the same samples, and the interval of value - reference."""

    value: float
    reference: float
    difference: Interval


def locate(function: str, folder: Path) -> tuple[Path, str]:
    """`metric.py:score` -> (file, name), relative to the fleet file's folder. Raises UserError."""
    name, _, attribute = function.rpartition(":")
    file = (folder / name).resolve()
    if not name or not attribute.isidentifier():
        raise UserError(f"metric function {function!r}: write FILE.py:FUNCTION")
    if not file.is_file():
        raise UserError(f"metric function {function!r}: {file}: no such file")
    return file, attribute


def check(function: str, folder: Path, *, timeout_s: float = 120.0) -> None:
    """Loads the user's file and looks for the function, without calling it. Raises UserError as `score`."""
    file, attribute = locate(function, folder)
    with tempfile.TemporaryDirectory(prefix="edgefarm-metric-") as name:
        work = Path(name)
        (work / "request.json").write_text(json.dumps({"file": str(file), "function": attribute, "call": False}))
        _run(work, f"{file}:{attribute}", file.parent, timeout_s)


def score(
    function: str,
    folder: Path,
    outputs: Mapping[str, Samples],
    reference: Mapping[str, Samples],
    targets: Mapping[str, Samples],
    *,
    batch: int = 1,
    resamples: int = 200,
    confidence: float = 0.95,
    timeout_s: float = 120.0,
) -> UserScore:
    """Scores a variant's and the baseline's raw outputs over the same samples.

    Args:
        outputs, reference: output name -> one array per sample.
        targets: target name -> one array per sample.
        batch: rows that one sample holds (`Dataset.batch`): the user's function sees them apart, as in the user's file.

    Raises:
        UserError: with file, function and the end of the traceback, if the function fails, takes too long or gives no finite number.
    """
    file, attribute = locate(function, folder)
    with tempfile.TemporaryDirectory(prefix="edgefarm-metric-") as name:
        work = Path(name)
        for part, tensors in (("outputs", outputs), ("reference", reference), ("targets", targets)):
            (work / f"{part}.npz").write_bytes(pack(tensors))
        request = {"file": str(file), "function": attribute, "call": True, "batch": batch, "resamples": resamples, "seed": 0}
        (work / "request.json").write_text(json.dumps(request))
        reply = _run(work, f"{file}:{attribute}", file.parent, timeout_s)
    return _scored(reply, confidence)


def _run(work: Path, where: str, folder: Path, timeout_s: float) -> dict[str, Any]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    reading, writing = os.pipe()  # only this process holds the writing end: the child ends with it, however that happens
    try:
        done = subprocess.run(
            [sys.executable, str(_CHILD), str(work), str(reading)],
            cwd=folder, env=environment, pass_fds=(reading,), stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise UserError(f"metric {where}: gave no score within {timeout_s:g} s") from error
    finally:
        os.close(reading)
        os.close(writing)
    reply = work / "reply.json"
    if not reply.exists():
        tail = "\n".join(done.stderr.decode(errors="replace").strip().splitlines()[-6:])
        raise UserError(f"metric {where}: ended with code {done.returncode} and no score\n{tail}")
    value: dict[str, Any] = json.loads(reply.read_text())
    if "error" in value:
        raise UserError(f"metric {where}: {value['error']}")
    return value


def _scored(reply: Mapping[str, Any], confidence: float) -> UserScore:
    differences = np.sort(np.array(reply["differences"], dtype=np.float64))
    low, high = (-np.inf, np.inf) if not len(differences) else np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    difference = Interval(reply["value"] - reply["reference"], float(low), float(high), reply["n"])
    return UserScore(reply["value"], reply["reference"], difference)

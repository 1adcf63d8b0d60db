"""Pairs of sentences that belong together: a function's summary, and the paragraph that explains it, out of a package's documentation."""

from __future__ import annotations

import ast
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_SHORTEST, _LONGEST = 5, 25  # words of a summary
_EXPLAINED = 12  # words of an explanation, at the least


class Pair(NamedTuple):
    """A question, and the passage that answers it."""

    summary: str
    explanation: str


def read(wheel: Path, seed: int) -> list[Pair]:
    """All pairs of the Python files in `wheel`, none twice, in an order drawn by `seed`."""
    found: dict[str, Pair] = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".py") and "/tests/" not in name:
                for pair in _of_module(archive.read(name).decode()):
                    found.setdefault(pair.summary, pair)
    passages: dict[str, Pair] = {}
    for pair in found.values():
        passages.setdefault(pair.explanation, pair)
    pairs = list(passages.values())
    random.Random(seed).shuffle(pairs)
    return pairs


def _of_module(source: str) -> Iterator[Pair]:
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or not (text := ast.get_docstring(node)):
            continue
        summary, _, rest = text.partition("\n\n")
        explanation = " ".join(rest.partition("\n\n")[0].split())
        summary = " ".join(summary.split())
        titled = "---" in explanation or explanation.startswith((".. ", ">>>"))  # a heading, a directive, an example
        if _SHORTEST <= len(summary.split()) <= _LONGEST and len(explanation.split()) >= _EXPLAINED and not titled:
            yield Pair(summary, explanation)

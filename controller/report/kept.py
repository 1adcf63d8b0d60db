"""Where reports lie: each is an artifact that its run names, since those of large fleets are larger than a message may be."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgefarm.model import Run


def keep(document: Mapping[str, Any], put: Callable[[bytes], str]) -> str:
    """Stores a report with `put`; returns its digest."""
    return put(json.dumps(document).encode())


def kept(run: Run, get: Callable[[str], Path]) -> dict[str, Any]:
    """The report of a run, fetched with `get`; empty if it has none yet. Raises what `get` raises."""
    text = get(run.report_digest).read_bytes() if run.report_digest else run.report.encode()
    document: dict[str, Any] = json.loads(text) if text else {}
    return document

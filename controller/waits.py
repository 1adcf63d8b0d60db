"""What orders wait for, as people and programs read it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from controller.report.times import utc
from edgefarm.model import Wait


def as_json(waits: Iterable[Wait]) -> list[dict[str, Any]]:
    """The JSON form of waits of one run."""
    return [
        {
            "device": w.device,
            "orders": w.orders,
            "state": w.state,
            "holder": w.holder or None,
            "until": utc(w.until_unix_ms),
            "ahead": w.ahead,
            "reason": w.reason,
        }
        for w in waits
    ]


def told(waits: Iterable[Wait]) -> str:
    """One line; empty for no waits."""
    text = "; ".join(f"{w.device}: {w.reason}" for w in waits)
    return f"waits for {text}" if text else ""

"""Wall-clock times as reports and verbs show them."""

from __future__ import annotations

from datetime import datetime, timezone


def utc(unix_ms: int) -> str | None:
    """RFC 3339 in UTC, to the second; None for 0."""
    return datetime.fromtimestamp(unix_ms / 1000, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ") if unix_ms else None

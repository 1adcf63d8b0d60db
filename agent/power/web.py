"""JSON from a meter in the network: small, quick, without a proxy."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from agent.power import NoPower

_TIMEOUT_S = 2.0
_MOST_BYTES = 2**20


def address(name: str, url: str) -> str:
    """`url` without a slash at its end. Raises NoPower if it is none."""
    if not url:
        raise NoPower(f"{name}: no address; set `url` in [power] of agent.toml")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise NoPower(f"{name}: url {url!r}: must be like http://192.168.1.20")
    return url.rstrip("/")


def fetch(url: str) -> Any:
    """The answer to a GET. Raises OSError (with the status) or ValueError (no JSON)."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_TIMEOUT_S) as answer:
            content = answer.read(_MOST_BYTES)
    except urllib.error.HTTPError as error:
        with error:
            needs = "; it wants a password, which is not supported: switch that off" if error.code == 401 else ""
            raise OSError(f"{url}: HTTP {error.code}{needs}") from error
    except urllib.error.URLError as error:
        raise OSError(f"{url}: {error.reason}") from error
    try:
        return json.loads(content)
    except ValueError as error:
        raise ValueError(f"{url}: no JSON: {content[:60]!r}") from error


def watts(value: Any, place: str) -> float:
    """A number. Raises ValueError that names where it should have been."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{place}: no number: {value!r}")
    return float(value)

"""`agent.toml`: what a device's administrator decides once. Options of the command line override it.

Strict: an unknown key or a value of the wrong kind is an error that names file, line and key, since a typing error that is silently
ignored would be found months later, on a device that nobody can reach.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgefarm.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT_PATH = Path("/etc/edgefarm/agent.toml")
DEFAULT_STATE = Path("/var/lib/edgefarm")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_MIB = 2**20


@dataclass(frozen=True)
class AgentFile:
    """The content of `agent.toml`. deploy/agent.toml is an example that explains every key.

    Attributes:
        name: the device's name; empty: the one it enrolled with.
        controller: gRPC target of a controller on this machine; empty: the one it enrolled with.
        state: folder of everything that the agent keeps.
        threads: limit for one model; None: all cores that the agent may use.
        runtimes: those it may use; None: all that are installed.
        labels: of the device, on top of those that it finds itself.
        cache_bytes: quota of the artifact cache; 0: half of the free space.
        metrics: HOST:PORT of the Prometheus page; empty: none.
        runner_socket: where systemd starts runners; None: the agent starts them itself.
        memory_bytes: most that a runner may use; 0: most of what is available.
    """

    name: str = ""
    controller: str = ""
    state: Path = DEFAULT_STATE
    threads: int | None = None
    runtimes: tuple[str, ...] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    cache_bytes: int = 0
    metrics: str = ""
    runner_socket: Path | None = None
    memory_bytes: int = 0


def load(path: Path) -> AgentFile:
    """Reads the file. Raises UserError, which names the file, the line and the key."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file in UTF-8") from error
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not TOML: {error}") from error
    reader = _Reader(path, text)
    return AgentFile(**reader.table(content, _KEYS, ""))


def load_default() -> AgentFile | None:
    """The file at its usual place, or None where there is none. Raises UserError."""
    return load(DEFAULT_PATH) if DEFAULT_PATH.exists() else None


class _Invalid(Exception):
    """What a value should have been."""


class _Reader:
    def __init__(self, path: Path, text: str) -> None:
        self._path, self._lines = path, text.splitlines()

    def table(self, content: Mapping[str, Any], keys: Mapping[str, _Key], table: str) -> dict[str, Any]:
        """Constructor arguments from a table and the tables in it."""
        found: dict[str, Any] = {}
        for key, value in content.items():
            place = f"{table}.{key}" if table else key
            if key not in keys:
                near = difflib.get_close_matches(key, keys, 1)
                known = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(keys))}"
                raise UserError(f"{self._at(table, key)}: unknown key {place!r}; {known}")
            parameter, read = keys[key]
            try:
                found |= self.table(value, _LIMITS, key) if read is _limits and _limits(value) else {parameter: read(value)}
            except _Invalid as wanted:
                raise UserError(f"{self._at(table, key)}: {place}: {wanted}, got {value!r}") from wanted
        return found

    def _at(self, table: str, key: str) -> str:
        """`file:line` of a key. The parser gives no positions; keys of this file stand on lines of their own."""
        here = ""
        for number, line in enumerate(self._lines, 1):
            if header := re.match(r"\s*\[\s*([^\]]+?)\s*\]", line):
                here = header[1]
                if not table and here == key:
                    return f"{self._path}:{number}"
            elif here == table and re.match(rf"""\s*["']?{re.escape(key)}["']?\s*[=.]""", line):
                return f"{self._path}:{number}"
        return str(self._path)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise _Invalid("must be a text")
    return value


def _name(value: Any) -> str:
    if not _NAME.fullmatch(_text(value)):
        raise _Invalid("letters, digits, '.', '_' and '-' only, at most 128")
    return str(value)


def _absolute(value: Any) -> Path:
    if not (path := Path(_text(value))).is_absolute():
        raise _Invalid("must be an absolute path")
    return path


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 2**32:
        raise _Invalid("must be a whole number of at least 1")
    return value


def _mib(value: Any) -> int:
    return _count(value) * _MIB


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise _Invalid("must be a list of texts")
    return tuple(map(_text, value))


def _labels(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise _Invalid("must be a table of texts")
    return value


def _limits(value: Any) -> bool:
    if not isinstance(value, dict):
        raise _Invalid("must be a table")
    return True


_Key = tuple[str, Callable[[Any], Any]]
_LIMITS: dict[str, _Key] = {"memory_mib": ("memory_bytes", _mib)}
_KEYS: dict[str, _Key] = {
    "name": ("name", _name),
    "controller": ("controller", _text),
    "state": ("state", _absolute),
    "threads": ("threads", _count),
    "runtimes": ("runtimes", _texts),
    "labels": ("labels", _labels),
    "cache_mib": ("cache_bytes", _mib),
    "metrics": ("metrics", _text),
    "runner_socket": ("runner_socket", _absolute),
    "limits": ("", _limits),
}

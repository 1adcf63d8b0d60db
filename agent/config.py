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

from agent.bench.affinity import CHOICES, numbers
from agent.bench.gate import WAIT_S
from agent.power import LOCAL, METERS, Meter
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
        cpus: cores that models are measured on: `all`, `big`, `little`, or a list such as `0-3`.
        governor: CPU frequency governor while measuring; empty: it is left alone.
        start_below_celsius: a launch begins when the hottest chip is at most this warm; None: by the device's trip points.
        start_wait_s: longest wait for that.
        power_source: where power is read, a name of `agent.power`; empty: the best that the device has.
        power_rail: a rail of that source; empty: its first.
        power_url: address of a meter in the network.
        power_channel: which of its sockets.
        power_query: of Prometheus, an expression that gives watts.
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
    cpus: str = "all"
    governor: str = ""
    start_below_celsius: float | None = None
    start_wait_s: float = WAIT_S
    power_source: str = ""
    power_rail: str = ""
    power_url: str = ""
    power_channel: int = 0
    power_query: str = ""

    @property
    def meter(self) -> Meter:
        """What `[power]` says."""
        return Meter(self.power_source, self.power_rail, self.power_url, self.power_channel, self.power_query)


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
                found |= self.table(_table(value), _TABLES[key], key) if key in _TABLES and not table else {parameter: read(value)}
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


def _table(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Invalid("must be a table")
    return value


def _cores(value: Any) -> str:
    if _text(value) not in CHOICES:
        try:
            numbers(value)
        except ValueError as error:
            raise _Invalid("must be 'all', 'big', 'little' or a list of cores such as '0-3,6'") from error
    return str(value)


def _word(value: Any) -> str:
    if not re.fullmatch(r"[a-z_]{1,32}", _text(value)):
        raise _Invalid("must be the name of a governor, e.g. 'performance'")
    return str(value)


def _number(low: float, high: float, unit: str) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise _Invalid(f"must be {low:g} to {high:g} {unit}")
        return float(value)

    return read


def _source(value: Any) -> str:
    if _text(value) not in (known := [*LOCAL, *METERS]):
        raise _Invalid(f"must be one of {', '.join(known)}")
    return str(value)


def _channel(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 63:
        raise _Invalid("must be the number of a socket, from 0")
    return value


_Key = tuple[str, Callable[[Any], Any]]
_TABLES: dict[str, dict[str, _Key]] = {
    "limits": {"memory_mib": ("memory_bytes", _mib)},
    "measure": {
        "cpus": ("cpus", _cores),
        "governor": ("governor", _word),
        "start_below_celsius": ("start_below_celsius", _number(20, 110, "degrees Celsius")),
        "start_wait_s": ("start_wait_s", _number(0, 3600, "seconds")),
    },
    "power": {
        "source": ("power_source", _source),
        "rail": ("power_rail", _text),
        "url": ("power_url", _text),
        "channel": ("power_channel", _channel),
        "query": ("power_query", _text),
    },
}
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
    **dict.fromkeys(_TABLES, ("", _table)),
}

"""YAML that remembers the line of every value, so that an error can name it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from edgefarm.errors import FleetFileError

Key = tuple[str | int, ...]
_BYTES_LIMIT = 1 << 20


@dataclass
class Document:
    """Parsed YAML: `content`, and the line (from 1) of the value at each path of keys and indices."""

    path: Path
    content: Any
    lines: dict[Key, int] = field(default_factory=dict)

    def line(self, key: Key) -> int | None:
        """Line of the value at `key`, or of the nearest thing around it."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key)

    def error(self, message: str, key: Key = ()) -> FleetFileError:
        """An error at `key`."""
        return FleetFileError(message, path=self.path, line=self.line(key), field=dotted(key))


def dotted(key: Key) -> str:
    """`devices[0].local.threads`."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def parse(text: str) -> Key:
    """Inverse of `dotted`, for keys that hold neither dots nor brackets."""
    return tuple(int(index) if index else name for index, name in re.findall(r"\[(\d+)\]|([^.\[\]]+)", text))


def read(path: Path) -> Document:
    """Parses a YAML file. Raises FleetFileError if it is missing, unreadable, not YAML, or says a key twice."""
    try:
        if path.stat().st_size > _BYTES_LIMIT:
            raise FleetFileError("larger than 1 MiB: not a fleet file", path=path)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FleetFileError("no such file", path=path) from None
    except (OSError, UnicodeDecodeError) as error:
        raise FleetFileError(f"cannot be read: {error}", path=path) from error
    document = Document(path, None)
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            if root is not None:
                _walk(root, (), document)
                document.content = loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        raise FleetFileError(f"not valid YAML: {error.problem or error.context}", path=path, line=line) from error
    except yaml.YAMLError as error:
        raise FleetFileError(f"not valid YAML: {error}", path=path) from error
    return document


def _walk(node: yaml.Node, key: Key, document: Document) -> None:
    if key in document.lines and len(key) > 100:
        return
    document.lines.setdefault(key, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for name, value in node.value:
            child = (*key, str(name.value))
            if name.value in seen:
                document.lines[child] = name.start_mark.line + 1
                raise document.error("this key stands here twice", child)
            seen.add(name.value)
            document.lines[child] = name.start_mark.line + 1
            _walk(value, child, document)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*key, index), document)

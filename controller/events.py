"""Progress of a command: text on stderr for people, JSON lines in a file for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from edgefarm.errors import UserError


class Events:
    """Where a driver says what it does; also keeps the time of each phase. A context manager."""

    def __init__(self, file: Path | None = None, *, quiet: bool = False) -> None:
        self.phases: dict[str, float] = {}
        self._quiet = quiet
        self._began = time.monotonic()
        self._stream: IO[str] | None = None
        if file is not None:
            try:
                self._stream = file.open("a", encoding="utf-8")
            except OSError as error:
                raise UserError(f"--events {file}: cannot be written: {error.strerror}") from error

    def __enter__(self) -> Events:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._stream is not None:
            self._stream.close()

    def emit(self, event: str, text: str = "", **fields: Any) -> None:
        """Records one event; `text` is shown to people."""
        if self._stream is not None:
            unix_ms = time.time_ns() // 1_000_000
            self._stream.write(json.dumps({"event": event, "unix_ms": unix_ms, **({"text": text} if text else {}), **fields}) + "\n")
            self._stream.flush()
        if text and not self._quiet:
            print(f"{time.monotonic() - self._began:6.1f} s  {text}", file=sys.stderr, flush=True)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times a phase; phases of one name add up."""
        began = time.monotonic()
        self.emit("phase-started", phase=name)
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            self.phases[name] = self.phases.get(name, 0.0) + seconds
            self.emit("phase-ended", phase=name, seconds=round(seconds, 3))

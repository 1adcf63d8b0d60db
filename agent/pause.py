"""Whether this device may measure: a file in its state folder, so that a pause outlives the agent and needs none to be set."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from edgefarm.digest import atomic_write, sync_directory
from edgefarm.errors import StorageError


class Pause:
    """A pause of one device. While it lasts, no launch begins; deployments and going back still work.

    Args:
        state: the agent's state folder.
    """

    def __init__(self, state: Path) -> None:
        self._path = state / "paused.json"

    def __bool__(self) -> bool:
        return os.path.exists(self._path)

    def since_unix_ms(self) -> int | None:
        """When it began; None if there is none, 0 if the file does not say."""
        try:
            return int(json.loads(self._path.read_bytes())["since_unix_ms"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def begin(self) -> None:
        """Pauses; a pause that lasts already keeps its beginning. Raises StorageError."""
        if self:
            return
        try:
            atomic_write(self._path, json.dumps({"since_unix_ms": time.time_ns() // 10**6}).encode())
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror}") from error

    def end(self) -> None:
        """Measures again. Raises StorageError."""
        try:
            self._path.unlink(missing_ok=True)
            sync_directory(self._path.parent)
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror}") from error

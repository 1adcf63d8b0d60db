"""Reads a hosted controller's state without driving it, also while another command does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from controller.artifacts import ArtifactStore
from controller.control import Control
from controller.farm import Farm
from controller.store import SqlStore


@contextmanager
def look_into(state: Path) -> Iterator[Control]:
    """The farm of a state folder, without devices. Raises StorageError if it cannot be read."""
    store = SqlStore(state / "store.db")
    try:
        yield Farm(store, ArtifactStore(state / "artifacts"))
    finally:
        store.close()

"""What a source that is no file of ours was exported to, and where that is kept."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from edgefarm.digest import check_digest, sync_directory
from optimizer.source import Source, describe, load_source


@dataclass(frozen=True)
class Exported:
    """An exported source.

    Attributes:
        path: the file that is the source now.
        origin: `net.py:build` or `net.keras`, as the user wrote it.
        fixed: why the inputs have an example's own sizes; empty: their first axes are open.
        others: the same network, exported to other formats.
        original: the file that it was exported from, for passes that work on that; None: there is none.
        without: what it could not be exported to, and why; empty: nothing.
    """

    path: Path
    origin: str
    fixed: str = ""
    others: tuple[Path, ...] = ()
    original: Path | None = None
    without: str = ""


def keep(work: Path, name: str, store: Path) -> Path:
    """Moves an exported model, whose main file is `work/name`, to a folder of `store` that its digest names.

    A run that goes on with it never sees another. Raises OSError.
    """
    source = load_source(work / name)
    place = store / check_digest(source.artifact.digest)[:16]
    if _holds(place, source):
        return place / name
    aside = work / f"{name}.files"
    aside.mkdir()
    for file in source.signature.files:
        with (work / file).open("rb") as stream:
            os.fsync(stream.fileno())
        (work / file).rename(aside / file)
    sync_directory(aside)
    shutil.rmtree(place, ignore_errors=True)
    try:
        aside.rename(place)
    except OSError:
        if not _holds(place, source):  # another command, with the same model, may have been faster
            raise
    sync_directory(store)
    return place / name


def _holds(place: Path, source: Source) -> bool:
    names = source.signature.files
    return all((place / n).is_file() for n in names) and describe(place, names, source.artifact.format) == source.artifact

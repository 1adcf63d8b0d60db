"""Makes a fleet's source ready: a torch module is exported to ONNX, a Keras file to ONNX and TFLite; any other file is taken as it is."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from controller.config import Fleet
from controller.events import Events
from edgefarm.errors import UserError
from optimizer import keras_source, torch_source
from optimizer.exported import Exported
from optimizer.source import FORMATS, inspect_model

_FOLDER = "sources"  # of a state folder


def ready(fleet: Fleet, state: Path, events: Events) -> Fleet:
    """The fleet with a source that can be read.

    Args:
        state: the state folder, under which what is exported lies.

    Raises:
        FleetFileError: a source that cannot be exported; the text says why.
        StorageError: `state` cannot be written.
    """
    if not fleet.is_exported:
        return fleet
    origin, began = fleet.file.model.path, time.monotonic()
    events.emit("export", f"{origin}: exporting", origin=origin)
    try:
        exported = _export(fleet, state / _FOLDER)
    except UserError as error:
        raise fleet.document.error(str(error), ("model", "path")) from None
    signature = inspect_model(exported.path)
    seconds, inputs = time.monotonic() - began, ", ".join(f"{i.name}: {i}" for i in signature.inputs)
    made = " and ".join(FORMATS[path.suffix].title for path in (exported.path, *exported.others))
    text = f"{origin}: exported to {made} in {seconds:.1f} s: {inputs}"
    text += f"; sizes are the example's own: {exported.fixed}" if exported.fixed else ""
    text += f"; not to {exported.without}" if exported.without else ""
    events.emit(
        "exported", text, origin=origin, seconds=round(seconds, 3), path=str(exported.path), fixed=exported.fixed or None,
        others=[str(path) for path in exported.others], without=exported.without or None,
    )  # fmt: skip
    return replace(fleet, exported=exported)


def _export(fleet: Fleet, store: Path) -> Exported:
    if fleet.is_torch:
        return torch_source.export(fleet.file.model.path, fleet.path.parent, store)
    return keras_source.export(fleet.path.parent / fleet.file.model.path, store)

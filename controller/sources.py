"""Makes a fleet's source ready: a torch module is exported to ONNX; a file is taken as it is."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from controller.config import Fleet
from controller.events import Events
from edgefarm.errors import UserError
from optimizer.source import inspect_model
from optimizer.torch_source import export

_FOLDER = "sources"  # of a state folder


def ready(fleet: Fleet, state: Path, events: Events) -> Fleet:
    """The fleet with a source that can be read.

    Args:
        state: the state folder, under which what is exported lies.

    Raises:
        FleetFileError: a torch source that cannot be exported; the text says why.
        StorageError: `state` cannot be written.
    """
    if not fleet.is_torch:
        return fleet
    function, began = fleet.file.model.path, time.monotonic()
    events.emit("export", f"{function}: exporting to ONNX", function=function)
    try:
        exported = export(function, fleet.path.parent, state / _FOLDER)
    except UserError as error:
        raise fleet.document.error(str(error), ("model", "path")) from None
    signature = inspect_model(exported.path)
    seconds, inputs = time.monotonic() - began, ", ".join(f"{i.name}: {i}" for i in signature.inputs)
    caveat = f"; sizes are the example's own: {exported.fixed}" if exported.fixed else ""
    text = f"{function}: exported in {seconds:.1f} s: {inputs}{caveat}"
    events.emit("exported", text, function=function, seconds=round(seconds, 3), path=str(exported.path), fixed=exported.fixed or None)
    return replace(fleet, exported=exported)

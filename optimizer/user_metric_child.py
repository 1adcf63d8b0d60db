"""The process that a user's metric runs in: `python user_metric_child.py WORK_DIR PIPE`; it ends when nobody holds PIPE's other end.

Started by file name, so that nothing of ours but `edgefarm` is imported and a user's `optimizer.py` is theirs: the first entry of the
import path is the folder of the metric's file, not ours.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def main(work: Path) -> None:
    """Scores variant and baseline, and both over resampled samples (or only loads the function); writes `reply.json`."""
    request = json.loads((work / "request.json").read_text())
    file = Path(request["file"])
    sys.path[0] = str(file.parent)
    try:
        function = _load(file, request["function"])
        reply = _evaluate(function, request, work) if request["call"] else {}
    except _Unusable as error:
        reply = {"error": str(error)}
    except Exception:
        tail = traceback.format_exc().strip().splitlines()
        reply = {"error": "raised an error\n" + "\n".join(tail[-6:])}
    aside = work / "reply.tmp"
    aside.write_text(json.dumps(reply))
    aside.rename(work / "reply.json")


class _Unusable(Exception):
    """The function can't be used; the text says why."""


def _load(file: Path, name: str) -> Callable[[Any, Any], Any]:
    specification = importlib.util.spec_from_file_location("edgefarm_user_metric", file)
    if specification is None or specification.loader is None:
        raise _Unusable("is no Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise _Unusable(f"the file defines no function {name!r}")
    found: Callable[[Any, Any], Any] = function
    return found


def _evaluate(function: Callable[[Any, Any], Any], request: Mapping[str, Any], work: Path) -> dict[str, Any]:
    import numpy as np

    from edgefarm.tensors import unpack

    outputs, reference, targets = (unpack(work / f"{part}.npz") for part in ("outputs", "reference", "targets"))
    n = len(next(iter(outputs.values())))

    def value(side: Mapping[str, Any], chosen: Any) -> float:
        return _number(function(_rows(side, chosen, request["batch"]), _rows(targets, chosen, request["batch"])))

    everything = np.arange(n)
    result = {"value": value(outputs, everything), "reference": value(reference, everything), "n": n}
    generator = np.random.default_rng(request["seed"])
    draws = [generator.integers(0, n, n) for _ in range(request["resamples"] if n > 1 else 0)]
    return {**result, "differences": [value(outputs, d) - value(reference, d) for d in draws]}


def _number(result: Any) -> float:
    try:
        number = float(result)
    except (TypeError, ValueError):
        raise _Unusable(f"must return one number, returned {type(result).__name__}") from None
    if not math.isfinite(number):
        raise _Unusable(f"returned {number}")
    return number


def _rows(tensors: Mapping[str, Any], chosen: Any, batch: int) -> dict[str, Any]:
    """Whole arrays as in the user's file: rows that were fed together come apart again."""
    import numpy as np

    result = {}
    for name, samples in tensors.items():
        picked = [np.asarray(samples[int(i)]) for i in chosen]
        if len({p.shape for p in picked}) > 1:
            result[name] = np.empty(len(picked), dtype=object)
            result[name][:] = picked
            continue
        array = np.stack(picked)
        apart = batch > 0 and array.ndim > 1 and array.shape[1] == batch
        result[name] = array.reshape(-1, *array.shape[2:]) if apart else array
    return result


def _end_with_parent(pipe: int, work: Path) -> None:
    os.read(pipe, 1)
    shutil.rmtree(work, ignore_errors=True)  # nobody else is left to do it
    os._exit(3)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    threading.Thread(target=_end_with_parent, args=(int(sys.argv[2]), folder), daemon=True).start()
    main(folder)

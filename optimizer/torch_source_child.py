"""The process that exports a user's torch module: `python torch_source_child.py WORK_DIR PIPE`; it ends when nobody holds PIPE's other end.

Started by file name, so that nothing of ours is imported: the user's folder takes the place of ours on the import path, after the
libraries are loaded. Method: torch.export, translated by torch.onnx.export(dynamo=True) and held against the module itself.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import json
import os
import random
import re
import shutil
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_OPSET = 18  # what the exporter writes by itself; converting further down is not always possible
_DATA = "model.onnx.data"
_TOLERANCE = 1e-3  # relative L2
_SAID = 300
_DTYPES = {"bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"}  # those that numpy and ONNX know too


class _Unusable(Exception):
    """The module can't be used; the text says why."""


class _NotExported(Exception):
    """One try of an export failed; the text says why."""


@dataclass
class _Example:
    """A module that takes and gives flat tuples of tensors, and what it is called with.

    Attributes:
        module: takes `values` in order; gives a tuple of tensors.
        values: the example inputs.
    """

    module: Any
    inputs: list[str]
    outputs: list[str]
    values: list[Any]


def main(work: Path) -> None:
    """Writes `model.onnx`, perhaps `model.onnx.data`, and `reply.json`: `error`, or `fixed`, why the first axes are not open."""
    request = json.loads((work / "request.json").read_text())
    file = Path(request["file"])
    try:
        _libraries(file.parent)
        module, inputs = _call(_load(file, request["function"]), file)
        reply = {"fixed": _export(_example(module, inputs, file), file, work / "model.onnx", request["external_above"])}
    except _Unusable as error:
        reply = {"error": str(error)}
    except Exception:
        tail = traceback.format_exc().strip().splitlines()
        reply = {"error": "the export ended unexpectedly\n" + "\n".join(tail[-6:])}
    aside = work / "reply.tmp"
    aside.write_text(json.dumps(reply))
    aside.rename(work / "reply.json")


def _libraries(folder: Path) -> None:
    """Loads what the export needs before the user's folder, where anything may lie, comes first on the import path."""
    del sys.path[0]
    try:
        numpy, torch, *_ = map(importlib.import_module, ("numpy", "torch", "onnx", "onnxscript", "onnxruntime"))
    except ImportError as error:
        raise _Unusable(f"can't be exported here: {_line(error)}") from None
    sys.path.insert(0, str(folder))
    warnings.simplefilter("ignore")
    for seed in (random.seed, numpy.random.seed, torch.manual_seed):
        seed(0)  # weights that nobody trained are the same weights in every run


def _load(file: Path, name: str) -> Callable[[], Any]:
    alias = file.stem if file.stem.isidentifier() and file.stem not in sys.modules else "edgefarm_user_model"  # pickled classes name it
    specification = importlib.util.spec_from_file_location(alias, file)
    if specification is None or specification.loader is None:
        raise _Unusable("is no Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[alias] = module
    try:
        specification.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise _raised("loading the file", error, file) from None
    function = getattr(module, name, None)
    if not callable(function):
        here = [n for n, v in vars(module).items() if inspect.isfunction(v) or n == name]
        near = difflib.get_close_matches(name, here, 1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; it defines {', '.join(here)}" if here else ""
        what = "has no function" if function is None else f"is a {type(function).__name__}, not a function:"
        raise _Unusable(f"the file {what} {name!r}{hint}")
    found: Callable[[], Any] = function
    return found


def _call(function: Callable[[], Any], file: Path) -> tuple[Any, Any]:
    import torch

    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise _Unusable(f"must be callable without arguments: {error}; give them default values") from None
    except ValueError:  # something callable that tells no signature
        pass
    try:
        result = function()
    except (Exception, SystemExit) as error:
        raise _raised("the function", error, file) from None
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[0], torch.nn.Module):
        raise _Unusable(f"must return (nn.Module, example inputs), returned {_what(result)}")
    return result


def _inputs(module: Any, given: Any) -> dict[str, Any]:
    """The example inputs with their names. Raises _Unusable."""
    import torch

    values = [given] if isinstance(given, torch.Tensor) else list(given.values()) if isinstance(given, Mapping) else given
    if not isinstance(values, (tuple, list)) or not values or not all(isinstance(v, torch.Tensor) for v in values):
        raise _Unusable(f"example inputs are a tensor, a tuple of tensors or a dict of names to tensors, not {_what(given)}")
    names = _names(module, len(values), list(given) if isinstance(given, Mapping) else None)
    for name, value in zip(names, values):
        if not value.numel() or value.layout is not torch.strided or str(value.dtype).removeprefix("torch.") not in _DTYPES:
            raise _Unusable(f"example input {name!r} is {_what(value)}: samples are plain arrays with elements; give it in such a form")
    return {name: value.detach().cpu() for name, value in zip(names, values)}


def _example(module: Any, given: Any, file: Path) -> _Example:
    """The module as one of flat tuples. Raises _Unusable."""
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        raise _Unusable(f"{_what(module)} is TorchScript, which torch can't export; return the nn.Module that it was made of")
    inputs, keyed = _inputs(module, given), isinstance(given, Mapping)
    told: list[str] = []

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *flat: Any) -> tuple[Any, ...]:
            named = _named(self.module(**dict(zip(inputs, flat))) if keyed else self.module(*flat))
            told[:] = [name for name, _ in named]
            return tuple(value for _, value in named)

    flat = Flat().cpu().eval()
    try:
        own = _run(flat, list(inputs.values()))
    except (Exception, SystemExit) as error:
        raise _raised("the module, called with its example inputs,", error, file) from None
    outputs = [f"{name}_output" if name in inputs else name for name in told]
    if not outputs:
        raise _Unusable("the module returns no tensors")
    for name, value in zip(outputs, own):
        if not isinstance(value, torch.Tensor):
            raise _Unusable(f"the module's output {name!r} is a {type(value).__name__}; only tensors can be exported")
        if not bool(torch.isfinite(value).all()):
            raise _Unusable(f"the module's output {name!r} is not finite on the example inputs")
    return _Example(flat, list(inputs), outputs, list(inputs.values()))


def _names(module: Any, count: int, keys: list[Any] | None) -> list[str]:
    """Names of the inputs: the keys, else those of forward's parameters. Raises _Unusable where they don't fit forward."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    variadic = inspect.Parameter.VAR_POSITIONAL if keys is None else inspect.Parameter.VAR_KEYWORD
    rest = next((p.name for p in parameters if p.kind is variadic), None)
    wanted = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    known = [p.name for p in wanted if keys is not None or p.kind is not p.KEYWORD_ONLY]
    given = known[:count] if keys is None else keys
    if keys is None and len(given) < count:
        if rest is None:
            raise _Unusable(f"{count} example inputs for a module whose forward takes {len(known)}: {', '.join(known)}")
        given += [f"{rest}_{index}" for index in range(count - len(given))]
    strange = [k for k in given if k not in known] if rest is None else [k for k in given if not isinstance(k, str)]
    if strange:
        near = difflib.get_close_matches(str(strange[0]), known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}"
        raise _Unusable(f"example input {strange[0]!r} is no parameter of forward; {hint}")
    if missing := [p.name for p in wanted if p.default is p.empty and p.name not in given]:
        raise _Unusable(f"forward needs {missing[0]!r}, and the example inputs hold none; give a value for it, or a default")
    return given


def _named(outputs: Any) -> list[tuple[str, Any]]:
    """What a module returned, as tensors with names; what is None is none."""
    groups = {str(k): _flat(v) for k, v in outputs.items()} if isinstance(outputs, Mapping) else {"output": _flat(outputs)}
    return [(f"{name}_{i}" if len(group) > 1 else name, value) for name, group in groups.items() for i, value in enumerate(group)]


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list, Mapping)):
        return [leaf for inner in (value.values() if isinstance(value, Mapping) else value) for leaf in _flat(inner)]
    return [] if value is None else [value]


def _run(module: Any, values: Sequence[Any]) -> tuple[Any, ...]:
    import torch

    with torch.no_grad():
        result: tuple[Any, ...] = module(*[v.clone() for v in values])  # a module may write into what it is given
    return result


def _export(example: _Example, file: Path, target: Path, external_above: int) -> str:
    """Exports with open first axes where that is right, else with the example's own sizes. Returns why they are not open, or ''."""
    two, why = _rows(example)
    if not why:
        try:
            _write(example, two, target, external_above, open_=True, file=file)
            _compare(example, [two, [v[:1] for v in two], [v.repeat_interleave(2, 0) for v in two]], target)
            return ""
        except _NotExported as error:
            why = str(error)
    try:
        _write(example, example.values, target, external_above, open_=False, file=file)
        _compare(example, [example.values], target)
    except _NotExported as error:
        raise _Unusable(str(error)) from None
    return why


def _rows(example: _Example) -> tuple[list[Any], str]:
    """The example with two rows or more, since torch takes a size of 1 for a constant, or why its first axis is no open batch."""
    import torch

    sizes = {v.shape[0] if v.ndim else 0 for v in example.values}
    if 0 in sizes or len(sizes) > 1:
        return [], "the inputs have no first axis of one size"
    rows = [torch.cat([v, v.flip(-1) if v.ndim > 1 else v]) if v.shape[0] == 1 else v for v in example.values]
    count = rows[0].shape[0]
    try:
        together = _run(example.module, rows)
        alone = _run(example.module, [v[-1:] for v in rows])
    except Exception as error:
        return [], f"the module takes no other number of rows: {_line(error)}"
    for name, whole, last in zip(example.outputs, together, alone):
        if not whole.ndim or not last.ndim or whole.shape[0] != count or _distance(_array(last), _array(whole[-1:])) > _TOLERANCE:
            return [], f"the rows of {name!r} are not those of the inputs, each by itself"
    return rows, ""


def _write(example: _Example, values: list[Any], target: Path, external_above: int, *, open_: bool, file: Path) -> None:
    """One export. Raises _NotExported with torch's reason, and the operator and the user's line where they are known."""
    import torch

    shapes = (tuple({0: torch.export.Dim("N")} for _ in values),) if open_ else None
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                example.module, tuple(v.clone() for v in values), dynamo=True, verbose=False, opset_version=_OPSET,
                input_names=example.inputs, output_names=example.outputs, dynamic_shapes=shapes,
            )  # fmt: skip
    except Exception as error:
        raise _NotExported(f"torch can't export it: {_reason(error, file)}") from None
    graph = program.model.graph
    if open_ and (closed := [i.name for i in graph.inputs if isinstance(i.shape[0], int)]):
        raise _NotExported(f"torch takes the first axis of {closed[0]!r} for a constant")
    weights = sum(v.const_value.nbytes for v in graph.initializers.values() if v.const_value is not None)
    target.with_name(_DATA).unlink(missing_ok=True)
    program.save(str(target), external_data=weights > external_above)
    _without_traces(target)


def _without_traces(target: Path) -> None:
    """Drops what tells of the exporting program and not of the network, so that equal modules are equal bytes."""
    import onnx

    model = onnx.load(str(target), load_external_data=False)
    for name in ("producer_name", "producer_version", "domain", "model_version"):
        model.ClearField(name)
    left = [model]
    while left:
        message = left.pop()
        for field, value in message.ListFields():
            if field.name in ("metadata_props", "doc_string"):
                message.ClearField(field.name)
            elif field.type == field.TYPE_MESSAGE:
                left += [value] if hasattr(value, "ListFields") else list(value)
    target.write_bytes(model.SerializeToString(deterministic=True))


def _compare(example: _Example, cases: list[list[Any]], target: Path) -> None:
    """Holds the file, run by ONNX Runtime, against the module. Raises _NotExported with what differs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(str(target), options, providers=["CPUExecutionProvider"])
        taken = {i.name for i in session.get_inputs()}
        for values in cases:
            given = {name: value.numpy() for name, value in zip(example.inputs, values) if name in taken}
            _agree(example, values, session.run(example.outputs, given))
    except _NotExported:
        raise
    except Exception as error:
        raise _NotExported(f"ONNX Runtime does not run the exported file: {_line(error)}") from None


def _agree(example: _Example, values: list[Any], got: list[Any]) -> None:
    own = [_array(o) for o in _run(example.module, values)]
    for name, one, other in zip(example.outputs, got, own):
        distance = _distance(one, other)
        if distance <= _TOLERANCE:
            continue
        again = [_array(o) for o in _run(example.module, values)]
        if any(_distance(a, b) > _TOLERANCE for a, b in zip(again, own)):
            raise _NotExported("the module's outputs differ from call to call: is something random left in it, such as a dropout?")
        shapes = f"shapes {list(one.shape)} and {list(other.shape)}" if one.shape != other.shape else f"relative L2 {distance:.3g}"
        limit = f"at most {_TOLERANCE:g} is right"
        raise _NotExported(f"the exported file's output {name!r} is not the module's own on the example inputs: {shapes}; {limit}")


def _distance(got: Any, own: Any) -> float:
    """Relative L2; infinite for other shapes and for what is not finite."""
    import numpy as np

    if got.shape != own.shape:
        return float("inf")
    difference = float(np.linalg.norm((got.astype(np.float64) - own.astype(np.float64)).ravel()))
    distance = difference / max(float(np.linalg.norm(own.astype(np.float64).ravel())), 1e-9)
    return distance if np.isfinite(distance) else float("inf")


def _array(value: Any) -> Any:
    import torch

    return value.detach().to(torch.float64).numpy() if value.is_floating_point() else value.detach().numpy()


def _raised(what: str, error: BaseException, file: Path) -> _Unusable:
    place = _place(error, file)
    return _Unusable(f"{what} raised {type(error).__name__}{f' at {place}' if place else ''}: {_line(error)}")


def _place(error: BaseException, file: Path) -> str:
    """The innermost line of the user's own files that took part, `net.py:12`."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}"
    own = [f for f in traceback.extract_tb(error.__traceback__) if file.parent in Path(f.filename).parents]
    own = [f for f in own if "site-packages" not in f.filename]
    return f"{Path(own[-1].filename).relative_to(file.parent)}:{own[-1].lineno}" if own else ""


def _line(error: BaseException) -> str:
    """The first line of what an error says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:_SAID] if lines else "without a message"


def _reason(error: BaseException, file: Path) -> str:
    """torch's reason: the innermost cause; the operator and the user's line, where the errors tell them."""
    chain = [error]
    while (inner := chain[-1].__cause__) is not None:
        chain.append(inner)
    texts = "\n".join(str(e) for e in chain)
    found = re.search(r"OpOverload\(op='([\w.:]+)'|target=torch\.ops\.([\w.]+)", texts)
    operator = f" (operator {found.group(1) or found.group(2)})" if found else ""
    place = next((p for e in reversed(chain) if (p := _place(e, file))), "")
    return f"{f'{place}: ' if place else ''}{_line(chain[-1])}{operator}"


def _what(value: Any) -> str:
    """`a tuple of 3`, `a tensor float32[1, 3]`."""
    import torch

    if isinstance(value, torch.Tensor):
        return f"a tensor {str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, (tuple, list, Mapping)):
        inner = ", ".join(type(v).__name__ for v in (value.values() if isinstance(value, Mapping) else value))
        return f"a {type(value).__name__} of ({inner})"
    return f"a {type(value).__name__}" if value is not None else "None"


def _end_with_parent(pipe: int, work: Path) -> None:
    os.read(pipe, 1)
    shutil.rmtree(work, ignore_errors=True)  # nobody else is left to do it
    os._exit(3)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    threading.Thread(target=_end_with_parent, args=(int(sys.argv[2]), folder), daemon=True).start()
    main(folder)

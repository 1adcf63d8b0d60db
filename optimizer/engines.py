"""Runs models on the host, to hold variants against each other: one small session per format, its library imported when it is used.

Numbers are compared here, never times: everything computes in full precision on one thread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgefarm.errors import UserError
from edgefarm.model import FailureKind
from edgefarm.tensors import Tensor
from optimizer.passes import PassFailure
from optimizer.source import format_of

_DETAIL = 500  # characters of a library's own words
_REACH_RESOURCES = frozenset({"VAR_HANDLE", "CALL_ONCE", "IF", "WHILE"})  # LiteRT's operators through which state outlives a run
_UNSUPPORTED = ("NOT_IMPLEMENTED", "unresolved custom op", "didn't find op", "no translator found", "unsupported operation")


Run = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


class _Session(Protocol):
    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Engine:
    """A row of the table: what opens a format, the extra that installs its library, the library's name."""

    open: Callable[[Path], _Session]
    extra: str
    title: str


def open_model(path: Path) -> Run:
    """A function from inputs to outputs, both by name, for a model of any format that is read.

    Raises:
        PassFailure: LOAD or UNSUPPORTED_OP with the library's reason; CRASH when it is called and the model fails.
        UserError: the library is missing; names the extra that installs it.
    """
    engine = ENGINES[format_of(path).name]
    try:
        session = engine.open(path)
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: checking it needs the module {error.name!r}: pip install 'edgefarm[{engine.extra}]'") from error
    except Exception as error:
        kind = FailureKind.UNSUPPORTED_OP if is_unsupported(error) else FailureKind.LOAD
        raise PassFailure(kind, f"does not load in {engine.title}: {str(error).strip()[:_DETAIL]}") from error

    def run(feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        try:
            return {name: np.asarray(value) for name, value in session.run(feeds).items()}
        except Exception as error:
            detail = f"loads, but does not run on the probe samples: {str(error).strip()[:_DETAIL]}"
            raise PassFailure(FailureKind.CRASH, detail) from error

    return run


def is_unsupported(error: Exception) -> bool:
    """Whether a library says that it lacks an operator."""
    return any(sign in str(error) for sign in _UNSUPPORTED)


class _Onnx:
    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._names = [o.name for o in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(self._names, self._session.run(None, dict(feeds))))


class _TfLite:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._interpreter = self._open()
        operators = {operator["op_name"] for operator in self._interpreter._get_ops_details()}
        self._keeps_resources = not operators.isdisjoint(_REACH_RESOURCES)

    def _open(self) -> Any:
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(self._path), num_threads=1)
        interpreter.allocate_tensors()
        return interpreter

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._keeps_resources:  # which no call resets
            self._interpreter = self._open()
        interpreter = self._interpreter
        inputs = interpreter.get_input_details()
        changed = [d for d in inputs if tuple(d["shape"]) != feeds[d["name"]].shape]
        for detail in changed:
            interpreter.resize_tensor_input(detail["index"], feeds[detail["name"]].shape, strict=True)
        if changed:
            interpreter.allocate_tensors()
        for detail in inputs:
            interpreter.set_tensor(detail["index"], feeds[detail["name"]])
        interpreter.reset_all_variables()  # a hidden state would make samples depend on each other
        interpreter.invoke()
        return {d["name"]: interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()}


class _OpenVino:
    def __init__(self, path: Path) -> None:
        library = import_openvino()
        core = library.Core()
        model = core.read_model(str(path))
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
        self._inputs, self._outputs = ([_port_name(port) for port in side] for side in (model.inputs, model.outputs))
        self._request = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self._request.reset_state()
        self._request.infer({index: feeds[name] for index, name in enumerate(self._inputs)})
        return {name: self._request.get_output_tensor(index).data.copy() for index, name in enumerate(self._outputs)}


def _port_name(port: Any) -> str:
    """As the runtime on a device names it: like its node, if that is one of its names, else the first of them in the alphabet."""
    names, node = port.get_names(), str(port.get_node().get_friendly_name())
    return node if node in names or not names else str(min(names))


def import_openvino() -> Any:
    """The library, kept from calling home: without this package of its own it takes stubs that do nothing. Raises ModuleNotFoundError."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


ENGINES: Mapping[str, Engine] = {
    "onnx": Engine(_Onnx, "onnxruntime", "ONNX Runtime"),
    "tflite": Engine(_TfLite, "tflite", "LiteRT"),
    "openvino": Engine(_OpenVino, "openvino", "OpenVINO"),
}

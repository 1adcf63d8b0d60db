"""OpenVINO, https://docs.openvino.ai. Tried with 2024.6 to 2026.4.

Options: `threads`, `device` (CPU, GPU … as the library names them), `inference_precision` (f32, bf16, f16; absent = what the library takes
by itself, which `chosen` tells). Tuned for latency: one stream. It reads OpenVINO's own files, ONNX and TFLite.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.runtimes import CUT_OFF_NS, WARM_UP, Array, Profile, RuntimeFailure, TensorSpec, in_turn, is_out_of_memory, thread_count
from edgefarm.model import FailureKind, OperatorTime, Options, Scalar

# Importing the library sends an event over the network and writes below the home folder, unless this package of its is missing:
# then it takes stubs that do nothing. No setting of it comes early enough.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino as ov  # noqa: E402

_DEFAULT_DEVICE = "CPU"
_PRECISION = "INFERENCE_PRECISION_HINT"
_PRECISIONS = {"f32": ov.Type.f32, "bf16": ov.Type.bf16, "f16": ov.Type.f16}
_DTYPES = {
    "f16": "float16", "f32": "float32", "f64": "float64", "boolean": "bool",
    **{f"{sign}{bits}": f"{'u' if sign == 'u' else ''}int{bits}" for sign in "iu" for bits in (8, 16, 32, 64)},
}  # fmt: skip
_VIRTUAL = ("AUTO", "HETERO", "MULTI", "BATCH")  # what ran where, and with how many threads, they do not tell
_NOT_COMPUTED = ("Input", "Output", "Const")
_UNSUPPORTED = (
    "opconversionfailure", "no translator found", "from unsupported opset", "doesn't contain the operation", "unsupported operation",
    "does not support the following",
)  # fmt: skip
_WRONG_INPUT = ("are incompatible", "ParameterMismatch", "input tensor precision")
_OURS = ("Exception from src/", "OpenVINO")


class OpenVinoModel:
    """One compiled model and its only request."""

    def __init__(self, core: ov.Core, path: Path, options: Options) -> None:
        self._core, self._path = core, path
        self._settings, self._device = _settings(core, options)
        self._compile(self._settings)
        self.chosen = _chosen_precision(self._compiled, self._device, options)
        self._feeds = [(index, spec.name) for index, spec in enumerate(self.inputs)]
        self._results = range(len(self.outputs))

    def run(self, feeds: dict[str, Array]) -> list[Array]:
        """One inference."""
        request = self._request
        for index, name in self._feeds:
            request.set_input_tensor(index, ov.Tensor(feeds[name], shared_memory=True))
        request.infer()
        return [request.get_output_tensor(index).data.copy() for index in self._results]

    def reset(self) -> None:
        """Sets variables back to their first values."""
        self._request.reset_state()

    def placement(self, feeds: dict[str, Array]) -> dict[str, int]:
        """What the device computes after optimisation: it takes a model as a whole or not at all."""
        operations = self._compiled.get_runtime_model().get_ordered_ops()
        kinds = [operation.get_rt_info()["layerType"].value for operation in operations]
        return {self._device: sum(kind not in _NOT_COMPUTED for kind in kinds)}

    def profile(self, feeds: Sequence[dict[str, Array]], inferences: int) -> Profile:
        """From the counters of a request whose model was compiled to have some, per operation as it runs."""
        self.close()
        self._compile({**self._settings, "PERF_COUNT": True})
        in_turn(self.run, feeds, WARM_UP)
        warm = _counted(self._request)
        whole_ns = in_turn(self.run, feeds, inferences, WARM_UP)
        spent = _counted(self._request)
        if self._device == _DEFAULT_DEVICE:  # its counters are means of all inferences so far; those of others tell of the last one
            spent = {at: later_mean(warm.get(at, 0.0), ns, inferences) for at, ns in spent.items()}
        operators = tuple(OperatorTime(name, kind, self._device, ns, 1, how) for (name, kind, how), ns in spent.items())
        return Profile(operators, whole_ns, f"performance counters of OpenVINO {ov.__version__.partition('-')[0]}, in microseconds")

    def close(self) -> None:
        """Frees the model."""
        del self._request, self._compiled

    def _compile(self, settings: dict[str, Any]) -> None:
        try:
            model = self._core.read_model(str(self._path))
            # Compiling merges tensors, and with them their names: only the model as it was read has those of the file.
            self.inputs, self.outputs = (tuple(map(_spec, side)) for side in (model.inputs, model.outputs))
            self._compiled = self._core.compile_model(model, self._device, settings)
        except (RuntimeError, MemoryError) as error:
            raise _load_failure(error) from error
        self._request = self._compiled.create_infer_request()


class OpenVino:
    """The table's entry point."""

    def __init__(self) -> None:
        self._core = ov.Core()

    def version(self) -> str:
        """The release, without its build."""
        return str(ov.__version__).partition("-")[0]

    def providers(self) -> list[str]:
        """Devices whose driver is there, the CPU first."""
        return sorted(self._core.available_devices, key=lambda device: device != _DEFAULT_DEVICE)

    def selection(self, provider: str) -> Options:
        """One option names it."""
        return {"device": provider}

    def requested(self, options: Options) -> str:
        """What the option names: a device takes a model as a whole, or refuses it."""
        return str(options.get("device", ""))

    def prepare(self, options: Options) -> None:
        """Loads the plugin of the device, which comes with the first model otherwise."""
        device = _settings(self._core, options)[1]
        self._core.get_versions(device)

    def resting(self, options: Options) -> Options:
        """Its threads sleep within milliseconds."""
        return options

    def load(self, path: Path, options: Options) -> OpenVinoModel:
        """Opens `path`; weights of an .xml are looked for beside it."""
        return OpenVinoModel(self._core, path, options)

    def explain(self, error: Exception) -> RuntimeFailure | None:
        """OpenVINO raises plain RuntimeError: only the text tells."""
        text = str(error)
        if not isinstance(error, RuntimeError) or not any(sign in text for sign in _OURS):
            return None
        if is_out_of_memory(text):
            return RuntimeFailure(FailureKind.OOM, text)
        return RuntimeFailure(FailureKind.IO_CHANGED if any(sign in text for sign in _WRONG_INPUT) else FailureKind.CRASH, text)

    def probe_model(self, folder: Path) -> Path:
        """Of IR version 11, which releases since 2022 read; its constant lies in the .bin beside it."""
        return Path(__file__).with_name("probe.xml")


def _settings(core: ov.Core, options: Options) -> tuple[dict[str, Any], str]:
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    device = _DEFAULT_DEVICE
    for name, value in options.items():
        if name == "threads":
            settings["INFERENCE_NUM_THREADS"] = thread_count(value)
        elif name == "device":
            device = _known_device(core, value)
        elif name == "inference_precision":
            settings[_PRECISION] = _precision(value)
        else:
            raise RuntimeFailure(
                FailureKind.LOAD, f"unknown option {name!r} of openvino; known are threads, device, inference_precision"
            )  # fmt: skip
    if device != _DEFAULT_DEVICE:
        settings.pop("INFERENCE_NUM_THREADS", None)  # threads of the host: other devices refuse it
    return settings, device


def later_mean(warm_ns: float, all_ns: float, inferences: int) -> float:
    """Mean of the inferences after the warm-up: the middle of what it can be, given means with and without them.

    Args:
        warm_ns: mean of the `WARM_UP` ones.
        all_ns: mean of those and `inferences` more; both within `CUT_OFF_NS`, and no time is below 0.
    """
    least = (all_ns - CUT_OFF_NS) * (WARM_UP + inferences) - (warm_ns + CUT_OFF_NS) * WARM_UP
    most = (all_ns + CUT_OFF_NS) * (WARM_UP + inferences) - max(0.0, warm_ns - CUT_OFF_NS) * WARM_UP
    return (max(0.0, least) + max(0.0, most)) / 2 / inferences


def _counted(request: ov.InferRequest) -> dict[tuple[str, str, str], float]:
    """(name, kind, kernel with its precision) -> nanoseconds, of what ran; the library cuts them off to microseconds."""
    seen = [info for info in request.get_profiling_info() if info.status == ov.ProfilingInfo.Status.EXECUTED]
    return {(info.node_name, info.node_type, info.exec_type): info.real_time.total_seconds() * 1e9 + CUT_OFF_NS for info in seen}


def _known_device(core: ov.Core, value: Scalar) -> str:
    if str(value).partition(":")[0] in _VIRTUAL:
        raise RuntimeFailure(FailureKind.LOAD, f"device {value!r} chooses by itself: name one of {', '.join(core.available_devices)}")
    if value not in core.available_devices:
        raise RuntimeFailure(FailureKind.LOAD, f"device {value!r} is not here: OpenVINO finds {', '.join(core.available_devices)}")
    return str(value)


def _precision(value: Scalar) -> ov.Type:
    if value not in _PRECISIONS:
        raise RuntimeFailure(FailureKind.LOAD, f"option 'inference_precision' must be one of {', '.join(_PRECISIONS)}, got {value!r}")
    return _PRECISIONS[str(value)]


def _chosen_precision(compiled: ov.CompiledModel, device: str, options: Options) -> dict[str, str]:
    """The precision that was not asked for. Raises RuntimeFailure(LOAD) where another was: the library just takes what it has."""
    found = compiled.get_property(_PRECISION).get_type_name()
    asked = options.get("inference_precision")
    if asked not in (None, found):
        raise RuntimeFailure(FailureKind.LOAD, f"option 'inference_precision' {asked!r}: {device} takes {found} instead")
    return {} if asked is not None else {"inference_precision": found}


def _load_failure(error: Exception) -> RuntimeFailure:
    text = str(error)
    if isinstance(error, MemoryError) or is_out_of_memory(text):
        return RuntimeFailure(FailureKind.OOM, text)
    unsupported = any(sign in text.lower() for sign in _UNSUPPORTED)
    return RuntimeFailure(FailureKind.UNSUPPORTED_OP if unsupported else FailureKind.LOAD, text)


def _spec(port: Any) -> TensorSpec:
    names, node = port.get_names(), port.get_node().get_friendly_name()
    name = node if node in names or not names else min(names)
    kind = port.get_element_type().get_type_name()
    if kind not in _DTYPES:
        raise RuntimeFailure(FailureKind.UNSUPPORTED_OP, f"{name!r} is of type {kind}, which can't be fed and measured")
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        raise RuntimeFailure(FailureKind.UNSUPPORTED_OP, f"{name!r} has no fixed number of axes")
    return TensorSpec(name, _DTYPES[kind], tuple(None if axis.is_dynamic else axis.get_length() for axis in shape))

"""ONNX models as files: load, normalise, save so that the oldest runtime of a fleet still reads them. For pass processes only."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from edgefarm.model import FailureKind
from optimizer.onnx_facts import DEFAULT_DOMAINS, default_opset, nodes, weights
from optimizer.passes import PassFailure
from optimizer.source import inspect_model

MAIN = "model.onnx"
DATA = "model.onnx.data"
LARGE_BYTES = 3 * 2**29  # protobuf ends at 2 GiB; leave room for what a pass adds
_OLDEST_IR = 8  # what opsets up to 17 need; ONNX Runtime reads it since 1.10
_log = logging.getLogger(__name__)


def load(path: Path) -> Any:
    """A ModelProto with its external data in memory."""
    model = onnx.load(str(path))
    for weight in weights(model):
        if weight.data_location == onnx.TensorProto.DEFAULT:
            weight.ClearField("data_location")  # so that equal models are equal bytes, wherever their weights came from
    return model


def is_large(model: Any) -> bool:
    """Whether the model must keep its weights in a file beside it."""
    return bool(model.ByteSize() > LARGE_BYTES)


def save(model: Any, folder: Path, *, like: Any, large: bool | None = None) -> Path:
    """Writes `model.onnx` (and `model.onnx.data` beside it where it must), equal models as equal bytes.

    Tools stamp newer IR versions and operator sets than the graph needs, and older runtimes refuse those: the IR version goes back
    to that of `like`, unused domains go.
    """
    model.ir_version = min(model.ir_version, max(like.ir_version, _OLDEST_IR))
    used = {node.domain for node in nodes(model)} | set(DEFAULT_DOMAINS) | {f.domain for f in model.functions}
    kept = [(o.domain, o.version) for o in model.opset_import if o.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in dict(kept).items())
    path = folder / MAIN
    if is_large(model) if large is None else large:
        onnx.save_model(model, str(path), save_as_external_data=True, all_tensors_to_one_file=True, location=DATA, size_threshold=1024)
    else:
        path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def fold(source: Path, work_dir: Path) -> Any:
    """The model after ONNX Runtime's basic level: constants folded, what is dead dropped. Raises PassFailure if it does not load."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    target = work_dir / "folded.onnx"
    options.optimized_model_filepath = str(target)
    if len(inspect_model(source).files) > 1:  # the folded file would point to the source's data, but from another folder
        model = load(source)
        if is_large(model):
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "folded.onnx.data")
        else:
            source = work_dir / "inline.onnx"
            onnx.save(model, str(source))
    try:
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise PassFailure(FailureKind.LOAD, f"ONNX Runtime does not load the model: {first_line(error)}") from error
    return load(target)


def simplify(model: Any) -> Any:
    """The model after onnxslim's folding and pattern fusions."""
    import onnxslim

    return onnxslim.slim(model)


def prepare(source: Path, work_dir: Path, opset: int) -> Path:
    """What a quantiser needs: constants as initialisers, shapes known, an operator set of at least `opset`."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = fold(source, work_dir)
    _constants_to_weights(model)
    model = raise_opset(model, opset)
    large = is_large(model)
    folded, prepared = work_dir / "upgraded.onnx", work_dir / "prepared.onnx"
    onnx.save_model(model, str(folded), save_as_external_data=large, location="upgraded.onnx.data" if large else None)
    common = {"skip_optimization": True, "save_as_external_data": large, "all_tensors_to_one_file": True}
    quant_pre_process(str(folded), str(prepared), skip_symbolic_shape=True, **common)
    if not _types_known(load(prepared)):
        try:
            quant_pre_process(str(folded), str(prepared), **common)
        except Exception as error:  # it gives up on operators it does not know; what plain inference found is enough for most
            _log.warning("symbolic shape inference failed: %s", first_line(error))
    return prepared


def _types_known(model: Any) -> bool:
    """Whether every tensor of the main graph has a type; a quantiser leaves alone what has none."""
    graph = model.graph
    known = {v.name for values in (graph.value_info, graph.input, graph.output) for v in values}
    return all(not name or name in known for node in graph.node for name in node.output)


def raise_opset(model: Any, opset: int) -> Any:
    """The model in operator set `opset`, or as it is if that is higher already. Raises PassFailure where no conversion is known."""
    if default_opset(model) >= opset:
        return model
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:
        detail = f"needs operator set {opset}, the model's is {default_opset(model)} and can't be converted: {first_line(error)}"
        raise PassFailure(FailureKind.UNSUPPORTED_OP, f"{detail}; export it with opset {opset} or later") from error


def _constants_to_weights(model: Any) -> None:
    """Turns Constant nodes of the main graph into initialisers: quantisers look for weights there only."""
    for node in [n for n in model.graph.node if n.op_type == "Constant" and n.domain in DEFAULT_DOMAINS]:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if value is not None and node.output[0] not in {o.name for o in model.graph.output}:
            weight = model.graph.initializer.add()
            weight.CopyFrom(value)
            weight.name = node.output[0]
            model.graph.node.remove(node)


def op_types(text: str, *, matmul_for_gemm: bool = False) -> list[str]:
    """`"Conv,MatMul"` as a list, empty = all. Dynamic quantisation turns Gemm into MatMul first, so it goes by that name."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    return sorted({"MatMul" if n == "Gemm" and matmul_for_gemm else n for n in names})


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]

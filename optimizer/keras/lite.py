"""Keras models as files that devices run: TFLite by TensorFlow's own converter, ONNX by tf2onnx (https://github.com/onnx/tensorflow-onnx)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.keras.rebuild import example

OPSET = 18
_TOLERANCE = 1e-3  # relative L2


class NotConverted(Exception):
    """A converter does not take the model, or made something else of it; the text says why."""


def to_tflite(model: Any, target: Path, *, integers: bool = False) -> None:
    """Writes a TFLite file for one sample at a time.

    Args:
        integers: the model was trained as such (its ranges are in it): weights and arithmetic become integers, its ends stay float32.

    Raises NotConverted.
    """
    import tensorflow as tf

    try:
        function = _function(model, rows=1).get_concrete_function()
        # Without the model: a Keras 3 model, whose variables TensorFlow does not know by itself, was seen to become a file of NaN.
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module())
        if integers:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        target.write_bytes(converter.convert())
    except Exception as error:  # of TensorFlow or of MLIR: there is no common one
        raise NotConverted(f"TensorFlow's converter does not take it: {_said(error)}") from error
    if not integers:
        _hold_against(model, _run_tflite, target, rows=1)


def to_onnx(model: Any, target: Path) -> None:
    """Writes an ONNX file whose batch is open, with the model's own names, and holds it against the model. Raises NotConverted."""
    import onnx
    import tf2onnx

    function = _function(model)
    try:
        proto, _ = tf2onnx.convert.from_function(function, function.input_signature, opset=OPSET)
    except Exception as error:
        raise NotConverted(f"tf2onnx does not take it: {_said(error)}") from error
    _rename(proto, [i.name for i in proto.graph.input], input_names(model))
    _rename(proto, [o.name for o in proto.graph.output], output_names(model))
    onnx.save(proto, target)
    _hold_against(model, _run_onnx, target, rows=2)


def input_names(model: Any) -> list[str]:
    """One per input, in the order in which the model takes them."""
    return [i.name.split(":")[0].replace("/", "_") for i in model.inputs]


def output_names(model: Any) -> list[str]:
    """One per output: the names of the layers that give them, told apart where one gives several."""
    names: list[str] = []
    for name in getattr(model, "output_names", None) or [model.layers[-1].name]:  # a sequential model has one output
        plain = name.replace("/", "_")
        names.append(plain if plain not in names else f"{plain}_{len(names)}")
    return names


def _function(model: Any, rows: int | None = None) -> Any:
    """A tf.function of flat inputs and outputs."""
    import tensorflow as tf

    specs = [
        tf.TensorSpec((rows, *i.shape[1:]), tf.as_dtype(getattr(i.dtype, "name", i.dtype)), name=name)
        for i, name in zip(model.inputs, input_names(model))
    ]

    @tf.function(input_signature=specs)  # type: ignore[untyped-decorator]
    def call(*inputs: Any) -> Any:
        return tf.nest.flatten(model(list(inputs) if len(inputs) > 1 else inputs[0], training=False))

    return call


def _rename(proto: Any, old: list[str], new: list[str]) -> None:
    """Renames values of a graph's top level."""
    taken = {name for node in proto.graph.node for name in (*node.input, *node.output)} - set(old)
    changed = {a: b if b not in taken else f"{b}_1" for a, b in zip(old, new)}
    for value in (*proto.graph.input, *proto.graph.output):
        value.name = changed.get(value.name, value.name)
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = [changed.get(name, name) for name in names]


def _hold_against(model: Any, run: Callable[[Path, list[Any]], list[Any]], target: Path, rows: int) -> None:
    """Raises NotConverted where a file's outputs are not those of the model, in their order."""
    import tensorflow as tf

    feeds = example(model.inputs, rows)
    wanted = [np.asarray(v) for v in tf.nest.flatten(model(feeds if len(feeds) > 1 else feeds[0], training=False))]
    try:
        got = run(target, feeds)
    except Exception as error:  # of either runtime
        raise NotConverted(f"the converted file ({target.suffix}) does not run: {_said(error)}") from error
    for name, a, b in zip(output_names(model), wanted, got):
        distance = float(np.linalg.norm(np.subtract(a, b, dtype=np.float64)))
        if a.shape != b.shape or not distance <= _TOLERANCE * float(np.linalg.norm(a)) + 1e-6:
            raise NotConverted(f"output {name!r} of the converted file ({target.suffix}) is not the model's own")


def _run_onnx(path: Path, feeds: list[Any]) -> list[Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(zip([i.name for i in session.get_inputs()], feeds))))


def _run_tflite(path: Path, feeds: list[Any]) -> list[Any]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    details = interpreter.get_input_details()
    for detail, value in zip(details, feeds):
        interpreter.resize_tensor_input(detail["index"], value.shape)
    interpreter.allocate_tensors()
    for detail, value in zip(details, feeds):
        interpreter.set_tensor(detail["index"], value)
    interpreter.invoke()
    return [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]


def _said(error: Exception) -> str:
    return " ".join((str(error).strip() or type(error).__name__).split())[:400]

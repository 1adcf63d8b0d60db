"""TFLite twins of models in `models_optimizer`: the same weights, channels last."""

from __future__ import annotations

from pathlib import Path

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tests import models_optimizer as zoo
from tests.zoo_tflite import _OPERATORS as OPERATORS
from tests.zoo_tflite import _Graph as Graph

_RELU, _NONE = schema.ActivationFunctionType.RELU, schema.ActivationFunctionType.NONE


def _graph() -> Graph:
    graph = Graph()
    graph._buffers[0] = schema.BufferT()  # absent, as converters write it, instead of empty
    return graph


def conv_net(folder: Path, batch: int = 1, shift: float = 0.0, x_name: str = "serving_default_x:0", image: int = 8) -> Path:
    """The twin of `models_optimizer.conv_net`: float32[batch, 8, 8, 3] -> float32[batch, 5]; a `shift` of weights makes another network.

    -1 is an open batch.
    """
    folder.mkdir(parents=True, exist_ok=True)
    graph, weights = _graph(), zoo.conv_weights()
    x, y = graph.tensor(x_name, [batch, image, image, 3]), graph.tensor("StatefulPartitionedCall:0", [batch, zoo.CLASSES])
    inner, last, sums = (graph.tensor(name, [batch, image, image, 8]) for name in ("r1", "c2", "r2"))
    pooled = graph.tensor("p", [batch, 8])
    first = [x, graph.constant("w1", weights["w1"].transpose(0, 2, 3, 1) + np.float32(shift)), graph.constant("b1", weights["b1"])]
    second = [inner, graph.constant("w2", weights["w2"].transpose(0, 2, 3, 1)), graph.constant("b2", np.zeros(8, np.float32))]
    for inputs, output, activation in ((first, inner, _RELU), (second, last, _NONE)):
        options = schema.Conv2DOptionsT(padding=schema.Padding.SAME, strideW=1, strideH=1, fusedActivationFunction=activation)
        graph.operator(OPERATORS.CONV_2D, inputs, [output], options)
    graph.operator(OPERATORS.ADD, [last, inner], [sums], schema.AddOptionsT(fusedActivationFunction=_RELU))
    axes = graph.constant("axes", np.array([1, 2], np.int32))
    graph.operator(OPERATORS.MEAN, [sums, axes], [pooled], schema.ReducerOptionsT(keepDims=False))
    dense = [pooled, graph.constant("w3", np.ascontiguousarray(weights["w3"].T)), graph.constant("b3", weights["b3"])]
    graph.operator(OPERATORS.FULLY_CONNECTED, dense, [y], schema.FullyConnectedOptionsT(fusedActivationFunction=_NONE))
    return graph.save(folder, [x], [y])


def half_net(folder: Path) -> Path:
    """A dense layer whose weights are float16 behind DEQUANTIZE, as converters write them: x: float32[1, 4] -> y: float32[1, 5]."""
    graph = _graph()
    x, weights, y = graph.tensor("x", [1, 4]), graph.tensor("w", [5, 4]), graph.tensor("y", [1, 5])
    half = graph.constant("half", np.random.default_rng(3).normal(0, 0.4, (5, 4)).astype(np.float16))
    graph.operator(OPERATORS.DEQUANTIZE, [half], [weights], version=3)
    inputs = [x, weights, graph.constant("b", np.zeros(5, np.float32))]
    graph.operator(OPERATORS.FULLY_CONNECTED, inputs, [y], schema.FullyConnectedOptionsT(fusedActivationFunction=_NONE))
    return graph.save(folder, [x], [y])


def sum_net(folder: Path) -> Path:
    """x: float32[1, 4] -> y: float32[1, 4], without a weight."""
    graph = _graph()
    x, y = graph.tensor("x", [1, 4]), graph.tensor("y", [1, 4])
    graph.operator(OPERATORS.ADD, [x, x], [y], schema.AddOptionsT(fusedActivationFunction=_NONE))
    return graph.save(folder, [x], [y])


def outside(path: Path) -> Path:
    """The same model with its weights behind the flatbuffer, as large ones are written."""
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    contents = [b"" if b.data is None else np.asarray(b.data, np.uint8).tobytes() for b in model.buffers]
    places = [1] * len(contents)
    for _ in range(2):  # the first time to learn where the flatbuffer ends
        for buffer, content, place in zip(model.buffers, contents, places):
            buffer.data, buffer.offset, buffer.size = None, place if content else 0, len(content)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        flat = bytes(builder.Output())
        padded = [content.ljust(-(-len(content) // 16) * 16, b"\0") for content in contents]
        start = -(-len(flat) // 16) * 16
        places = [start + sum(map(len, padded[:index])) for index in range(len(padded))]
    path.write_bytes(flat.ljust(start, b"\0") + b"".join(padded))
    return path

"""A BERT encoder that gives one vector per sentence, as an ONNX graph.

input_ids, attention_mask: int64[N, S] -> embedding: float32[N, 384] of length 1, the mean over the tokens that the mask names.
The network is that of Devlin et al., "BERT", NAACL 2019, in the size of Wang et al., "MiniLM", NeurIPS 2020; mean and length after Reimers
and Gurevych, "Sentence-BERT", EMNLP 2019. Every sentence is segment 0, so that row is part of the positions' table. Names of weights are
those of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

WIDTH, HEADS, LAYERS = 384, 12, 6
EPSILON = 1e-12
MASKED = -10_000.0  # added to the scores of tokens that are only there to fill up
OPSET = 17
IR_VERSION = 8  # what opset 17 came with: older runtimes load it

Weights = Mapping[str, NDArray[Any]]


class _Builder:
    """Collects nodes and initializers."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Adds a node; its one output bears its name."""
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Adds an initializer, once."""
        if name not in {tensor.name for tensor in self.initializers}:
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def number(self, name: str, value: float) -> str:
        return self.constant(name, np.array(value, np.float32))

    def indices(self, name: str, *values: int) -> str:
        return self.constant(name, np.array(values, np.int64))

    def linear(self, x: str, name: str) -> str:
        """x @ weight.T + bias."""
        weight = self.constant(f"{name}.weight", self.weights[f"{name}.weight"].T)
        product = self.node("MatMul", [x, weight], f"{name}.product")
        return self.node("Add", [product, self.constant(f"{name}.bias", self.weights[f"{name}.bias"])], name)

    def norm(self, x: str, name: str) -> str:
        scale, bias = (self.constant(f"{name}.{part}", self.weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return self.node("LayerNormalization", [x, scale, bias], name, axis=-1, epsilon=EPSILON)

    def gelu(self, x: str, name: str) -> str:
        """x * (1 + erf(x / sqrt 2)) / 2."""
        scaled = self.node("Mul", [x, self.number("sqrt_half", 0.5**0.5)], f"{name}.scaled")
        raised = self.node("Add", [self.node("Erf", [scaled], f"{name}.erf"), self.number("one", 1)], f"{name}.raised")
        return self.node("Mul", [self.node("Mul", [x, raised], f"{name}.twice"), self.number("half", 0.5)], name)

    def embed(self) -> str:
        """[N, S, WIDTH]: words, positions and the segment."""
        words = self.constant("word_embeddings", self.weights["embeddings.word_embeddings.weight"])
        table = self.weights["embeddings.position_embeddings.weight"] + self.weights["embeddings.token_type_embeddings.weight"][0]
        shape = self.node("Shape", ["input_ids"], "ids.shape")
        length = self.node("Gather", [shape, self.indices("second", 1)], "ids.length", axis=0)
        inputs = [self.constant("position_embeddings", table), self.indices("first", 0), length, self.indices("first", 0)]
        summed = self.node("Add", [self.node("Gather", [words, "input_ids"], "words"), self.node("Slice", inputs, "positions")], "summed")
        return self.norm(summed, "embeddings.LayerNorm")

    def heads(self, x: str, name: str, order: list[int]) -> str:
        """[N, S, WIDTH] -> [N, HEADS, ...] with the axes of one head as `order` has them."""
        split = self.node("Reshape", [x, self.indices("heads.shape", 0, 0, HEADS, WIDTH // HEADS)], f"{name}.split")
        return self.node("Transpose", [split], f"{name}.heads", perm=order)

    def attend(self, x: str, mask: str, layer: str) -> str:
        """Self-attention of all heads, and the sum with its input."""
        name = f"{layer}.attention"
        query = self.heads(self.linear(x, f"{name}.self.query"), f"{name}.query", [0, 2, 1, 3])
        key = self.heads(self.linear(x, f"{name}.self.key"), f"{name}.key", [0, 2, 3, 1])
        value = self.heads(self.linear(x, f"{name}.self.value"), f"{name}.value", [0, 2, 1, 3])
        scores = self.node("MatMul", [query, key], f"{name}.scores")
        scores = self.node("Mul", [scores, self.number("head.scale", (WIDTH // HEADS) ** -0.5)], f"{name}.scaled")
        scores = self.node("Add", [scores, mask], f"{name}.masked")
        mixed = self.node("MatMul", [self.node("Softmax", [scores], f"{name}.softmax", axis=-1), value], f"{name}.mixed")
        joined = self.node("Transpose", [mixed], f"{name}.joined", perm=[0, 2, 1, 3])
        flat = self.node("Reshape", [joined, self.indices("flat.shape", 0, 0, WIDTH)], f"{name}.flat")
        added = self.node("Add", [self.linear(flat, f"{name}.output.dense"), x], f"{name}.added")
        return self.norm(added, f"{name}.output.LayerNorm")

    def feed_forward(self, x: str, layer: str) -> str:
        inner = self.gelu(self.linear(x, f"{layer}.intermediate.dense"), f"{layer}.gelu")
        added = self.node("Add", [self.linear(inner, f"{layer}.output.dense"), x], f"{layer}.added")
        return self.norm(added, f"{layer}.output.LayerNorm")

    def pool(self, x: str, mask: str) -> None:
        """The mean over what `mask`, float[N, S], names, at length 1."""
        column = self.node("Unsqueeze", [mask, self.indices("last", -1)], "mask.column")
        total = self.node("ReduceSum", [self.node("Mul", [x, column], "kept"), self.indices("second", 1)], "total", keepdims=0)
        count = self.node("ReduceSum", [mask, self.indices("second", 1)], "count", keepdims=1)
        mean = self.node("Div", [total, count], "mean")
        length = self.node("ReduceL2", [mean], "length", axes=[1], keepdims=1)
        self.node("Div", [mean, length], "embedding")


def build(weights: Weights) -> onnx.ModelProto:
    """The network with the checkpoint's weights."""
    graph = _Builder(weights)
    mask = graph.node("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
    absent = graph.node("Sub", [graph.number("one", 1), mask], "absent")
    penalty = graph.node("Mul", [absent, graph.number("masked", MASKED)], "penalty")
    penalty = graph.node("Unsqueeze", [penalty, graph.indices("middle", 1, 2)], "penalty.scores")
    x = graph.embed()
    for layer in (f"encoder.layer.{i}" for i in range(LAYERS)):
        x = graph.feed_forward(graph.attend(x, penalty, layer), layer)
    graph.pool(x, mask)
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "s"]) for name in ("input_ids", "attention_mask")]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", WIDTH])]
    made = helper.make_graph(graph.nodes, "minilm", inputs, outputs, graph.initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="edgefarm-example")
    onnx.checker.check_model(model, full_check=True)
    return model

"""Weights of matrix products as block-wise integers of 4 or 8 bits, activations stay float: MatMulNBits of ONNX Runtime.

Each block of `block_size` weights along the reduced axis has a scale (and a zero point). Round to nearest takes it from the block's
extremes; HQQ refines the zero points (Badri and Shaji, "Half-Quadratic Quantization", 2023). The oldest ONNX Runtime that runs what is
written (tried): 4 bits 1.18; 8 bits 1.22 with accuracy level 4, 1.23 without; embeddings 1.20.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from edgefarm.model import FailureKind
from optimizer.passes import Changed, Context, PassFailure, PassParameters

if TYPE_CHECKING:
    from optimizer.dataset import Dataset

_QUANTIZER = "onnxruntime.quantization.matmul_nbits_quantizer"  # since 1.22
_EMBEDDINGS_OPSET, _EMBEDDINGS_IR = 21, 10  # where 4-bit tensors begin


class WeightsParameters(PassParameters):
    """Parameters of weight-only quantisation.

    Attributes:
        block_size: weights that share a scale.
        symmetric: no zero points: smaller, for weights around 0.
        algorithm: `rtn` rounds to nearest; `hqq` needs torch and about a minute per ten million weights.
        accuracy_level: what activations may be rounded to for the product: 0 = the runtime's choice, 1 = float32, 4 = int8.
        embeddings: 4-bit lookup tables too; raises the operator set to 21 where there are some.
    """

    bits: Literal[4, 8] = 4
    block_size: Literal[16, 32, 64, 128, 256] = 32
    symmetric: bool = False
    algorithm: Literal["rtn", "hqq"] = "rtn"
    accuracy_level: Literal[0, 1, 4] = 4
    embeddings: bool = False

    @model_validator(mode="after")
    def _fitting(self) -> WeightsParameters:
        if self.algorithm == "hqq" and (self.symmetric or self.bits != 4):
            raise ValueError("algorithm hqq computes zero points that are no integers: symmetric must be false, and bits 4")
        if self.embeddings and self.bits != 4:
            raise ValueError("embeddings have 4 bits only: bits must be 4")
        return self


class QuantizeWeights:
    """ONNX Runtime's weight-only quantiser, for Gemm too."""

    name: ClassVar[str] = "quantize_weights"
    version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    writes: ClassVar[str] = ""
    extra: ClassVar[str] = "optimizer"
    toolchain: ClassVar[str] = ""
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "onnxslim", "onnx-ir", "numpy")
    parameters: ClassVar[type[PassParameters]] = WeightsParameters
    evidence: ClassVar[str] = "integer"
    must_change: ClassVar[bool] = True
    drift: ClassVar[float] = 1.0

    def run(self, source: Path, out_dir: Path, parameters: WeightsParameters, calibration: Dataset | None, context: Context) -> Changed:
        """Rewrites Gemm as MatMul first: the quantiser would leave it alone without a word."""
        from optimizer import gemm_rewrite, onnx_files, weight_nodes

        _require(parameters)
        original = onnx_files.load(source)
        model = onnx_files.load(onnx_files.prepare(source, context.work_dir, opset=11))
        total = weight_nodes.weight_kinds(model)
        narrow = parameters.embeddings and total["Gather"] > 0
        if narrow:
            model = onnx_files.raise_opset(model, _EMBEDDINGS_OPSET)
            model.ir_version = max(model.ir_version, _EMBEDDINGS_IR)
        gemms = set(gemm_rewrite.to_matmul(model))
        taken, left = _choose(model, parameters)
        done = Counter("Gemm" if node.name in gemms else node.op_type for node in taken)
        left["Gemm without stored weights"] = total["Gemm"] - done["Gemm"]
        for kind in ("MatMul", "Gather"):
            _quantize(model, [n.name for n in taken if n.op_type == kind], kind, parameters)
        onnx_files.save(model, out_dir, like=model if narrow else original)
        sizes = (original.ByteSize(), model.ByteSize())
        return Changed(weight_nodes.summary(total, done, f"in int{parameters.bits}", left, sizes))


def _require(parameters: WeightsParameters) -> None:
    """Raises PassFailure with what to install."""
    if importlib.util.find_spec(_QUANTIZER) is None:
        raise PassFailure(
            FailureKind.UNSUPPORTED_OP, "weight-only quantisation needs onnxruntime 1.22 or later: pip install -U onnxruntime"
        )
    if parameters.algorithm == "hqq" and importlib.util.find_spec("torch") is None:
        raise PassFailure(FailureKind.UNSUPPORTED_OP, "algorithm hqq needs torch: pip install 'edgefarm[torch]'")


def _choose(model: Any, parameters: WeightsParameters) -> tuple[list[Any], Counter[str]]:
    """The nodes to quantise, each with a name of its own; and why others are left."""
    from optimizer.onnx_facts import nodes
    from optimizer.weight_nodes import stored_weights, weight_of

    stored = stored_weights(model)
    uses = Counter(name for node in nodes(model) for name in node.input)
    taken, left = [], Counter[str]()
    for node in nodes(model):
        weight = weight_of(node, stored)
        if node.op_type == "Gather" and weight and not parameters.embeddings:
            left["Gather (embeddings: true takes them)"] += 1
        elif node.op_type in ("Conv", "ConvTranspose"):
            left[f"{node.op_type} (no block-wise kernel)"] += 1
        elif node.op_type == "MatMul" and not (weight and _is_matrix(stored[weight])):
            left["MatMul without a stored matrix"] += 1
        elif node.op_type in ("MatMul", "Gather") and weight:
            node.name = f"{node.output[0]}_{node.op_type}" if not node.name.endswith("_gemm") else node.name
            if node.op_type == "Gather" and uses[weight] > 1:
                node.input[0] = _copied(model, stored[weight], f"{node.name}_table")
            taken.append(node)
    return taken, left


def _copied(model: Any, weight: Any, name: str) -> str:
    """Gives a node a weight of its own: the quantiser names what it makes of a shared one alike, for both kinds of nodes."""
    copy = model.graph.initializer.add()
    copy.CopyFrom(weight)
    copy.name = name
    return name


def _is_matrix(weight: Any) -> bool:
    return len(weight.dims) == 2


def _quantize(model: Any, names: list[str], kind: str, parameters: WeightsParameters) -> None:
    """Quantises the named nodes of one kind in place."""
    from onnx import helper
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    from optimizer.onnx_facts import nodes

    if not names:
        return
    common = {"block_size": parameters.block_size, "bits": parameters.bits, "op_types_to_quantize": ("",)}  # none but those named
    logging.getLogger(nbits.__name__).setLevel(logging.WARNING)  # it tells of every node
    level = parameters.accuracy_level or None
    hqq = parameters.algorithm == "hqq" and kind == "MatMul"
    if hqq:
        config = nbits.HQQWeightOnlyQuantConfig(**common)
    else:
        config = nbits.DefaultWeightOnlyQuantConfig(is_symmetric=parameters.symmetric, accuracy_level=level, **common)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # HQQ makes torch tensors of arrays that can't be written, and doesn't write
        nbits.MatMulNBitsQuantizer(model, nodes_to_include=names, algo_config=config).process()
    for node in nodes(model):
        if hqq and level and node.op_type == "MatMulNBits":
            node.attribute.append(helper.make_attribute("accuracy_level", level))
    once = {weight.name: weight for weight in model.graph.initializer}  # a weight that two nodes share is stored with each of them
    kept = list(once.values())
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)

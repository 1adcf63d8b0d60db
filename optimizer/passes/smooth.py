"""SmoothQuant: moves outliers of activations into the weights of the matrix products that follow, where per-tensor scales cope with them.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", ICML 2023, equation 4: channel j
is divided by s_j = max|X_j|^alpha / max|W_j|^(1 - alpha) where a normalisation already scales it, and the rows of the weights are
multiplied. The function stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from edgefarm.model import FailureKind
from optimizer.passes import Changed, Context, PassFailure, PassParameters

if TYPE_CHECKING:
    from edgefarm.tensors import Tensor
    from optimizer.dataset import Dataset
    from optimizer.onnx_wiring import Wiring

_NORMALISATIONS = ("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization")
_STILL = 1e-3  # factors this close to 1 change nothing that 8 bits can show
_LEAST = 1e-5  # ranges below it count as this, so that a dead channel does not get a factor without bounds


class SmoothParameters(PassParameters):
    """Parameters of smoothing.

    Attributes:
        alpha: how much of the difficulty moves from the activations (0) to the weights (1).
        samples: at most so many calibration samples are run, evenly spread over the set.
    """

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    samples: Annotated[int, Field(ge=1)] = 256

    @property
    def needs_calibration(self) -> bool:
        """Outliers are seen on samples."""
        return True


@dataclass(frozen=True)
class _Site:
    """A tensor that can be smoothed: the constants [C] that scale it, and the products that read it."""

    tensor: str
    scales: tuple[str, ...]
    products: tuple[Any, ...]


class Smooth:
    """SmoothQuant's transformation of float models."""

    name: ClassVar[str] = "smooth"
    version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    writes: ClassVar[str] = ""
    extra: ClassVar[str] = "optimizer"
    toolchain: ClassVar[str] = ""
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "numpy")
    parameters: ClassVar[type[PassParameters]] = SmoothParameters
    evidence: ClassVar[str] = "structure"
    must_change: ClassVar[bool] = True
    drift: ClassVar[float] = 1e-3

    def run(self, source: Path, out_dir: Path, parameters: SmoothParameters, calibration: Dataset | None, context: Context) -> Changed:
        """Finds the places, sees the channels' ranges on samples, moves the factors."""
        from optimizer import onnx_files
        from optimizer.onnx_wiring import Wiring

        if calibration is None:
            raise PassFailure(FailureKind.UNSUPPORTED_OP, "smoothing needs calibration samples (data.calibration)")
        model, original = onnx_files.load(source), onnx_files.load(source)
        wiring = Wiring(model)
        sites = [site for node in model.graph.node if (site := _site(wiring, node)) is not None]
        products = 0
        for site, seen in zip(sites, _ranges(wiring, sites, calibration, parameters.samples, context.work_dir)):
            factor = _factor(wiring, site, seen, parameters.alpha)
            if abs(factor - 1).max() > _STILL:
                _move(wiring, site, factor)
                products += len(site.products)
        onnx_files.save(model, out_dir, like=original)
        return Changed(f"inputs of {products} matrix products smoothed" + ("" if sites else ": none follows scales per channel"))


def _site(wiring: Wiring, node: Any) -> _Site | None:
    """The place that a node scales: a normalisation, Mul by a constant, or Add of a constant to such a Mul, read by products alone."""
    scales: Sequence[str] | None = None
    if node.op_type in _NORMALISATIONS:
        used = [name for name in node.output if name in wiring.readers or name in wiring.outputs]
        scales = node.input[1:3] if used == [node.output[0]] else None
    elif node.op_type == "Mul":
        scales = _vector_input(wiring, node)
    elif node.op_type == "Add" and (bias := _vector_input(wiring, node)):
        inner = next(name for name in node.input if name not in bias)
        producer = wiring.producer.get(inner)
        if producer is not None and producer.op_type == "Mul" and wiring.only_reader(inner) is not None:
            gain = _vector_input(wiring, producer)
            scales = [*gain, *bias] if gain else None
    products = _products(wiring, node.output[0]) if scales else []
    if not scales or not products:
        return None
    width = _rows(wiring, products[0]).shape[0]
    vectors = [wiring.own_constant(name) for name in scales if name]
    fits = all(v is not None and v.size == width and v.shape[-1] == width for v in vectors)
    return _Site(node.output[0], tuple(filter(None, scales)), tuple(products)) if fits else None


def _vector_input(wiring: Wiring, node: Any) -> list[str]:
    """The constant among two factors or summands, as a list of one; empty where there is none or both are."""
    found = [name for name in node.input if (value := wiring.own_constant(name)) is not None and value.ndim >= 1]
    return found if len(found) == 1 and len(node.input) == 2 else []


def _products(wiring: Wiring, tensor: str) -> list[Any]:
    """The readers of a tensor if all are products with constant weights of their own on the right; else none."""
    readers = wiring.readers.get(tensor, [])
    usable = tensor not in wiring.outputs and all(_multiplies(wiring, node, tensor) for node in readers)
    return readers if usable else []


def _multiplies(wiring: Wiring, node: Any, tensor: str) -> bool:
    if node.op_type not in ("MatMul", "Gemm") or node.input[0] != tensor or tensor in node.input[1:]:
        return False
    weight = wiring.own_constant(node.input[1])
    return weight is not None and weight.ndim == 2 and not _attribute(node, "transA")


def _attribute(node: Any, name: str) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), 0)


def _rows(wiring: Wiring, node: Any) -> Tensor:
    """A product's weights as float64[in, out]."""
    import numpy as np

    weight = np.array(wiring.constant(node.input[1]), np.float64)
    return weight.T if _attribute(node, "transB") else weight


def _ranges(wiring: Wiring, sites: Sequence[_Site], samples: Dataset, limit: int, work_dir: Path) -> list[Tensor]:
    """Largest magnitude per channel (last axis) of each place, over the samples."""
    import numpy as np

    from optimizer.onnx_wiring import observe, spread

    if not sites:
        return []
    run = observe(wiring.model, [site.tensor for site in sites], work_dir)
    seen = [np.zeros(len(_rows(wiring, site.products[0]))) for site in sites]
    for feeds in spread(samples, limit):
        values = [np.abs(value).reshape(-1, value.shape[-1]) for value in run(feeds)]
        seen = [np.maximum(old, value.max(axis=0, initial=0.0)) for old, value in zip(seen, values)]
    return seen


def _factor(wiring: Wiring, site: _Site, seen: Tensor, alpha: float) -> Tensor:
    """s per channel: float64[C]."""
    import numpy as np

    weights = np.max([np.abs(_rows(wiring, node)).max(axis=1) for node in site.products], axis=0)
    alive = (seen > _LEAST) & (weights > _LEAST)
    factor = np.maximum(seen, _LEAST) ** alpha / np.maximum(weights, _LEAST) ** (1 - alpha)
    return np.where(alive, factor, 1.0)


def _move(wiring: Wiring, site: _Site, factor: Tensor) -> None:
    for name in site.scales:
        value = wiring.constant(name)
        assert value is not None  # a site has constants only
        wiring.store(name, value / factor)
    for node in site.products:
        rows = _rows(wiring, node) * factor[:, None]
        wiring.store(node.input[1], rows.T if _attribute(node, "transB") else rows)

"""ONNX as TFLite: the graph is run node by node in torch (`optimizer.training.network`), and LiteRT's converter takes it from there.

https://github.com/google-ai-edge/litert-torch. Convolutions are laid out for TFLite's kernels on the way; inputs and outputs keep their
axes. TFLite knows no open sizes that are worth having: an input gets those of the first sample.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgefarm.model import FailureKind
from optimizer.passes import Changed, Context, PassFailure, PassParameters

if TYPE_CHECKING:
    from optimizer.dataset import Dataset
    from optimizer.source import Signature

MAIN = "model.tflite"
_OPSET = 13


class ToTflite:
    """ONNX -> TFLite."""

    name: ClassVar[str] = "to_tflite"
    version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    writes: ClassVar[str] = "tflite"
    extra: ClassVar[str] = ""
    toolchain: ClassVar[str] = "litert"
    tools: ClassVar[tuple[str, ...]] = ("litert-torch", "litert-converter", "torch", "onnx", "onnxruntime", "numpy")
    parameters: ClassVar[type[PassParameters]] = PassParameters
    evidence: ClassVar[str] = "format"
    must_change: ClassVar[bool] = True
    drift: ClassVar[float] = 0.05

    def run(self, source: Path, out_dir: Path, parameters: PassParameters, calibration: Dataset | None, context: Context) -> Changed:
        """Converts; tensors that the converter renames are mapped by their order.

        Raises PassFailure: UNSUPPORTED_OP for operators, types or shapes that either library does not know, with its own words.
        """
        import torch

        from optimizer import onnx_files
        from optimizer.io_maps import by_order
        from optimizer.source import inspect_model
        from optimizer.training.network import Network

        torch.set_num_threads(1)
        before = inspect_model(source)
        _refuse_what_is_lost(before)
        network = Network(onnx_files.load(onnx_files.prepare(source, context.work_dir, _OPSET))).eval()
        example = _example(before, network.input_names, calibration, context)
        _convert(network, example, out_dir / MAIN)
        after = inspect_model(out_dir / MAIN)
        nodes = f"{sum(before.op_types.values())} nodes of ONNX as {sum(after.op_types.values())} of TFLite"
        return Changed(nodes, by_order(before, after), plain=True)


def _refuse_what_is_lost(before: Signature) -> None:
    """torch computes in float32 here: half precision would come back as twice the size, and inputs as another type."""
    if other := [str(s) for s in (*before.inputs, *before.outputs) if s.dtype in ("float16", "float64", "bfloat16", "string")]:
        raise PassFailure(FailureKind.UNSUPPORTED_OP, f"inputs and outputs of {other[0]} are not converted")
    if before.weight_dtypes.get("float16", 0) > before.weight_dtypes.get("float32", 0):
        raise PassFailure(
            FailureKind.UNSUPPORTED_OP, "weights in half precision would be stored in twice the size: convert the float32 model"
        )


def _example(before: Signature, names: list[str], calibration: Dataset | None, context: Context) -> list[Any]:
    """Inputs of one sample; of the sizes that the model has where there are no samples, an open one as 1."""
    import numpy as np
    import torch

    samples = context.probe or calibration
    sizes = {s.name: [size or 1 for size in s.shape] for s in before.inputs}
    fed = samples.feeds(0) if samples is not None else {s.name: np.ones(sizes[s.name], s.dtype) for s in before.inputs}
    return [torch.from_numpy(np.ascontiguousarray(fed[name])) for name in names]


def _convert(network: Any, example: list[Any], target: Path) -> None:
    """Raises PassFailure."""
    import torch

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        import litert_torch

        try:
            converted = litert_torch.convert(network, tuple(example))
        except PassFailure:
            raise
        except Exception as error:  # of torch's tracer, of lowerings, of MLIR: there is no common one
            said = " ".join((str(error).strip() or type(error).__name__).split())
            raise PassFailure(FailureKind.UNSUPPORTED_OP, f"litert-torch does not convert it: {said[:500]}") from error
        converted.export(str(target))

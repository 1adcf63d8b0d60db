"""Normalises a graph: folds constants, drops dead and redundant nodes, fuses what is fused on every CPU.

ONNX Runtime's offline level is `basic`: higher ones write nodes that only this CPU's kernels know.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from optimizer.passes import Changed, Context, PassParameters

if TYPE_CHECKING:
    from optimizer.dataset import Dataset


class GraphParameters(PassParameters):
    """`fold`: ONNX Runtime's basic level; `simplify`: onnxslim afterwards."""

    fold: bool = True
    simplify: bool = True


class Graph:
    """Constant folding and simplification."""

    name: ClassVar[str] = "graph"
    version: ClassVar[int] = 1
    formats: ClassVar[tuple[str, ...]] = ("onnx",)
    writes: ClassVar[str] = ""
    extra: ClassVar[str] = "optimizer"
    toolchain: ClassVar[str] = ""
    tools: ClassVar[tuple[str, ...]] = ("onnx", "onnxruntime", "onnxslim")
    parameters: ClassVar[type[PassParameters]] = GraphParameters
    evidence: ClassVar[str] = "structure"
    must_change: ClassVar[bool] = False
    drift: ClassVar[float] = 1e-3

    def run(self, source: Path, out_dir: Path, parameters: GraphParameters, calibration: Dataset | None, context: Context) -> Changed:
        """Writes the normalised model; what changed is told by node counts."""
        from optimizer import onnx_facts, onnx_files

        before = onnx_files.load(source)
        model = onnx_files.fold(source, context.work_dir) if parameters.fold else onnx_files.load(source)
        if parameters.simplify:
            model = onnx_files.simplify(model)
        onnx_files.save(model, out_dir, like=before)
        return Changed(_describe(onnx_facts.op_counts(before), onnx_facts.op_counts(model)))


def _describe(before: dict[str, int], after: dict[str, int]) -> str:
    names = [n for n in {**before, **after} if before.get(n, 0) != after.get(n, 0)]
    parts = [f"{n} {before.get(n, 0)} -> {after.get(n, 0)}" for n in names]
    return f"{sum(before.values())} -> {sum(after.values())} nodes" + (f" ({', '.join(parts)})" if parts else "")

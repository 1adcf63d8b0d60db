"""What training gives back: pruning with and without a teacher, quantisation-aware training against none, small students, codebooks.

The network of the example fashion, trained on with its 55,000 images, judged with all 10,000 images of the test set. Needs Debian's
package dataset-fashion-mnist and the extra `torch`; an hour on two cores, nearly all of it training. What is in the folder given with
--keep is not trained again. Progress on stderr; the last line on stdout is one JSON object, `--picture` draws the curve of pruning.

python -m tests.benchmarks.training [--keep DIR] [--picture FILE.svg] [--only prune,quantize,student,codebook] [--seeds 3]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from edgefarm.statistics import paired_difference
from optimizer.dataset import Dataset
from optimizer.pipeline import Event, Pipeline, Variant
from optimizer.recipe import Plan, Step
from optimizer.source import load_source
from tests import examples

ROOT = Path(__file__).parents[2]
FASHION = ROOT / "deploy/examples/fashion"
TRAIN = ROOT / "deploy/examples/pruned/build/train.npz"
DATA = Path("/usr/share/datasets/fashion-mnist")
RATIOS, EPOCHS = (0.5, 0.7, 0.9), 3.0
STUDENT_WIDTH, STUDENT_EPOCHS = 0.3, 10.0  # a tenth of the weights, about
STATIC = Step("quantize_static", {"per_channel": True})
Correct = NDArray[np.float64]


def plans_of(part: str) -> dict[str, tuple[Step, ...]]:
    """Name -> steps."""
    if part == "prune":
        ways: Mapping[str, Mapping[str, Any]] = {
            "untrained": {"epochs": 0.0},
            "labels": {"epochs": EPOCHS, "hard": 1.0},
            "teacher": {"epochs": EPOCHS},
        }
        return {f"{way} {ratio:g}": (Step("prune_structured", {"ratio": ratio, **how}),) for ratio in RATIOS for way, how in ways.items()}
    if part == "quantize":
        bits = {8: {"weight_bits": 8}, 4: {"weight_bits": 4}}
        ways = {"post-training": {"epochs": 0.0}, "aware": {"epochs": 2.0}}
        return {f"{way} {n}": (Step("quantize_aware", {**given, **how}), STATIC) for n, given in bits.items() for way, how in ways.items()}
    if part == "student":
        student = {"width": STUDENT_WIDTH, "fresh": True, "epochs": STUDENT_EPOCHS}
        return {"labels": (Step("distill", {**student, "hard": 1.0}),), "teacher": (Step("distill", student),)}
    return {f"{kind} {bits}": (Step("codebook", {"bits": bits, "kind": kind}),) for bits in (4, 3) for kind in ("kmeans", "logarithmic")}


class Bed:
    """The model, its samples, and a cache of what was trained."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.source = load_source(FASHION / "model.onnx")
        signature = self.source.signature
        self._calibration = Dataset.load(FASHION / "calibration.npz", signature, with_targets=False)
        self._train = Dataset.load(TRAIN, signature, with_targets=True)
        images = examples.script(examples.FASHION, "images")
        pictures, labels = images.load(DATA, "t10k")
        self._x, self._labels = images.as_input(pictures), labels
        self.before = self.correct(self.source.path)

    def make(self, named: Mapping[str, tuple[Step, ...]], seed: int = 0) -> dict[str, Variant]:
        """Runs the plans; ends the benchmark where one gives nothing."""
        plans = [Plan(name.replace(" ", "-"), steps) for name, steps in named.items()]
        pipeline = Pipeline(self._folder, seed=seed, lock_path=self._folder / "lock")  # nothing is timed, so nobody need wait for it
        made = pipeline.run(self.source, plans, self._calibration, self._calibration.take(range(8)), tell, train=self._train)
        by_plan = {plan.name: outcome for outcome in made if isinstance(outcome, Variant) for plan in outcome.plans}
        if lost := [plan.name for plan in plans if plan.name not in by_plan]:
            raise SystemExit(f"no variant from {', '.join(lost)}: {[o for o in made if not isinstance(o, Variant)]}")
        return {name: by_plan[plan.name] for name, plan in zip(named, plans)}

    def correct(self, model: Path) -> Correct:
        """1 for each image of the test set that is classified right, else 0.

        Node by node as the file says: fused integer kernels saturate on processors without VNNI, which is another question.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        found = [session.run(None, {name: self._x[i : i + 1]})[0] for i in range(len(self._x))]
        return (np.concatenate(found).argmax(1) == self._labels).astype(np.float64)

    def judged(self, variant: Variant) -> dict[str, Any]:
        """Size and accuracy; `points`: the difference to the model before, in points, with its interval (95 %, paired)."""
        correct = self.correct(variant.main_file)
        gap = paired_difference(self.before.tolist(), correct.tolist())
        weights = parameters(variant.main_file)
        points = [round(100 * value, 2) for value in (gap.value, gap.low, gap.high)]
        return {"accuracy": round(float(correct.mean()), 4), "points": points, "bytes": variant.artifact.bytes, "weights": weights}


def tell(event: Event) -> None:
    print(f"{event.plan}: {event.pass_name} {event.kind} {event.detail}".rstrip(), file=sys.stderr, flush=True)


def parameters(model: Path) -> int:
    """Numbers stored as floats in a model."""
    import onnx

    loaded = onnx.load(str(model))
    return sum(math.prod(tensor.dims) for tensor in loaded.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT)


def students(bed: Bed, seeds: int) -> dict[str, Any]:
    """Each way's students, one per seed, and the mean of what the teacher is worth."""
    named = plans_of("student")
    runs = [{name: bed.judged(variant) for name, variant in bed.make(named, seed).items()} for seed in range(seeds)]
    gains = [100 * (run["teacher"]["accuracy"] - run["labels"]["accuracy"]) for run in runs]
    return {"seeds": runs, "teacher_minus_labels_points": {"mean": round(float(np.mean(gains)), 2), "each": [round(g, 2) for g in gains]}}


def picture(found: Mapping[str, Mapping[str, Any]], before: float) -> str:
    """Accuracy over the share of channels taken out."""
    wide, high, left, top = 620, 320, 60, 40
    ways = {"teacher": "#1a7f37", "labels": "#0969da", "untrained": "#bc4c00"}
    values = [one["accuracy"] for one in found.values()]
    low, most = min(values) - 0.02, max(*values, before) + 0.01

    def at(ratio: float, accuracy: float) -> tuple[float, float]:
        return left + (wide - left - 130) * ratio / 0.9, top + (high - top - 40) * (most - accuracy) / (most - low)

    parts = [f'<text x="{left}" y="20" font-size="14">Fashion-MNIST: accuracy after taking channels out, n = 10,000</text>']
    for ratio in (0.0, *RATIOS):
        x, y = at(ratio, low)
        parts.append(f'<text x="{x:.0f}" y="{y + 18:.0f}" text-anchor="middle">{ratio:.0%}</text>')
    for step in np.linspace(low, most, 5):
        x, y = at(0.0, float(step))
        parts.append(f'<line x1="{x}" y1="{y:.1f}" x2="{wide - 130}" y2="{y:.1f}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{x - 8}" y="{y + 4:.1f}" text-anchor="end">{step:.3f}</text>')
    for way, colour in ways.items():
        points = [at(0.0, before), *(at(ratio, found[f"{way} {ratio:g}"]["accuracy"]) for ratio in RATIOS)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        parts.append(f'<text x="{points[-1][0] + 8:.0f}" y="{points[-1][1] + 4:.0f}" fill="{colour}">{_NAMES[way]}</text>')
    style = "font: 12px sans-serif; fill: #1b1f24"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" style="{style}">\n' + "\n".join(parts) + "\n</svg>\n"


_NAMES = {"teacher": "3 epochs, teacher", "labels": "3 epochs, labels", "untrained": "not trained"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="folder of what was trained, made if absent")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--only", default="prune,quantize,student,codebook")
    parser.add_argument("--seeds", type=int, default=3, help="students of each kind")
    given = parser.parse_args()
    if not TRAIN.is_file():
        subprocess.run([sys.executable, str(ROOT / "deploy/examples/pruned/prepare.py")], check=True)
    with tempfile.TemporaryDirectory() as folder:
        bed = Bed(given.keep or Path(folder))
        before = round(float(bed.before.mean()), 4)
        weights = parameters(bed.source.path)
        result: dict[str, Any] = {"before": {"accuracy": before, "bytes": bed.source.artifact.bytes, "weights": weights}}
        for part in given.only.split(","):
            if part == "student":
                result[part] = students(bed, given.seeds)
            else:
                result[part] = {name: bed.judged(variant) for name, variant in bed.make(plans_of(part)).items()}
    if given.picture and "prune" in result:
        given.picture.write_text(picture(result["prune"], before), encoding="utf-8")
    machine = f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}"
    print(json.dumps({**result, "n": len(bed.before), "machine": machine, "command": "make bench-training"}))


if __name__ == "__main__":
    main()

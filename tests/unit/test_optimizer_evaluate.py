"""Metrics, targets, and user metrics in their own process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgefarm.errors import UserError
from edgefarm.model import Reduction
from optimizer.evaluate import METRICS, find_metric, pick_target
from optimizer.source import TensorSpec
from optimizer.user_metric import UserScore, locate, score

LOGITS = TensorSpec("logits", "float32", (None, 5))
BOXES = TensorSpec("boxes", "float32", (None, 4))


def top(scores: Any, k: int) -> Any:
    return np.argsort(-scores, axis=-1, kind="stable")[..., :k]


def test_top1_and_top5() -> None:
    scores = np.random.default_rng(0).normal(size=(30, 1, 9))
    labels = np.arange(30) % 9
    for name, k in (("top1", 1), ("top5", 5)):
        expected = [labels[i] in np.argsort(-scores[i, 0])[:k] for i in range(30)]
        got = METRICS[name].per_sample({"logits": top(scores, k)}, {"label": labels})
        assert got.tolist() == expected
        assert METRICS[name].reduction([LOGITS], {"label": labels}) == Reduction("topk", "logits", k)


def test_several_rows_in_a_sample() -> None:
    indices = np.array([[[0], [1], [2], [3]]])
    assert METRICS["top1"].per_sample({"y": indices}, {"t": np.array([[0, 1, 0, 0]])}).tolist() == [0.5]


def test_distances() -> None:
    outputs, targets = {"y": np.array([[[1.0, 3.0]], [[2.0, 2.0]]])}, {"t": np.array([[1.0, 1.0], [2.0, 2.0]])}
    assert METRICS["mae"].per_sample(outputs, targets).tolist() == [1.0, 0.0]
    assert METRICS["mse"].per_sample(outputs, targets).tolist() == [2.0, 0.0]
    assert METRICS["cosine"].per_sample(outputs, targets) == pytest.approx([4 / np.sqrt(20), 1.0])
    assert METRICS["mae"].reduction([LOGITS], targets) == Reduction("raw", "logits")
    assert not METRICS["mae"].higher_is_better
    assert METRICS["cosine"].higher_is_better


def test_agreement_needs_no_targets() -> None:
    metric = METRICS["agreement"]
    assert metric.reduction([TensorSpec("n", "int64", ()), LOGITS], {}) == Reduction("topk", "logits", 1)
    baseline = {"logits": np.array([[[1]], [[2]], [[3]]])}
    assert metric.per_sample({"logits": np.array([[[1]], [[0]], [[3]]])}, baseline).tolist() == [1.0, 0.0, 1.0]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_top1_is_the_share_of_hits(pairs: list[tuple[int, int]]) -> None:
    indices = np.array([[[p]] for p, _ in pairs])
    got = METRICS["top1"].per_sample({"y": indices}, {"t": np.array([t for _, t in pairs])})
    assert got.mean() == pytest.approx(sum(p == t for p, t in pairs) / len(pairs))


def test_values_of_the_right_output_are_compared() -> None:
    outputs = {"logits": np.zeros((2, 1, 5)), "boxes": np.ones((2, 1, 4))}
    got = METRICS["mae"].per_sample(outputs, {"boxes": np.zeros((2, 4)), "extra": np.zeros(2)}, [LOGITS, BOXES])
    assert got.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("outputs", "targets", "found"),
    [
        ([LOGITS], ["label"], ("logits", "label")),
        ([LOGITS, BOXES], ["boxes"], ("boxes", "boxes")),
        ([LOGITS, BOXES], ["boxes", "label"], ("boxes", "boxes")),
        ([LOGITS], ["logits", "weights"], ("logits", "logits")),
    ],
)
def test_pick_target(outputs: list[TensorSpec], targets: list[str], found: tuple[str, str]) -> None:
    assert pick_target(outputs, dict.fromkeys(targets, 0)) == found


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        ([LOGITS], [], "no targets"),
        ([LOGITS, BOXES], ["label"], "name the target array like the output"),
        ([LOGITS, BOXES], ["boxs"], r"is 'boxes' meant\?"),
        ([LOGITS], ["a", "b"], r"one of them must be named like an output of the model \(logits\)"),
        ([LOGITS, BOXES], ["logits", "boxes"], "one of them"),
    ],
)
def test_targets_that_cannot_be_paired(outputs: list[TensorSpec], targets: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pick_target(outputs, dict.fromkeys(targets, 0))


@pytest.mark.parametrize(
    ("metric", "output", "target", "message"),
    [
        ("top1", np.zeros((2, 1, 1), int), np.zeros((2, 5)), "class labels must be integers, these are float64"),
        ("top1", np.zeros((2, 1, 1), int), np.zeros((2, 3), int), "3 labels for 1 predictions"),
        ("mae", np.zeros((2, 1, 4)), np.zeros((2, 3)), "3 values for 4 outputs"),
        ("mae", np.zeros((2, 1, 4)), np.zeros((3, 4)), "2 samples of output 'y', but 3 of target 't'"),
    ],
)
def test_targets_that_do_not_fit(metric: str, output: Any, target: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        METRICS[metric].per_sample({"y": output}, {"t": target})


def test_unknown_metric() -> None:
    assert find_metric("top1").name == "top1"
    with pytest.raises(UserError, match=r"unknown metric 'top2'; is 'top\d' meant\?"):
        find_metric("top2")
    with pytest.raises(UserError, match="there are top1"):
        find_metric("bleu")


OUTPUTS = {"y": np.array([[[0.9, 0.1]], [[0.2, 0.8]], [[0.6, 0.4]], [[0.3, 0.7]]] * 5)}
REFERENCE = {"y": np.array([[[0.9, 0.1]], [[0.8, 0.2]], [[0.6, 0.4]], [[0.3, 0.7]]] * 5)}
TARGETS = {"t": np.array([0, 1, 0, 1] * 5)}
ACCURACY = """
import numpy as np
def score(outputs, targets):
    assert outputs["y"].shape == (len(targets["t"]), 2), outputs["y"].shape
    return np.mean(outputs["y"].argmax(-1) == targets["t"])
"""


def scored(folder: Path, code: str, timeout_s: float = 60) -> UserScore:
    (folder / "metric.py").write_text(code)
    return score("metric.py:score", folder, OUTPUTS, REFERENCE, TARGETS, resamples=50, timeout_s=timeout_s)


def test_user_metric(tmp_path: Path) -> None:
    found = scored(tmp_path, ACCURACY)
    assert (found.value, found.reference) == (1.0, 0.75)
    assert found.difference.value == 0.25
    assert 0 <= found.difference.low < 0.25 < found.difference.high <= 0.6
    assert found == scored(tmp_path, ACCURACY)


def test_user_metric_sees_its_own_modules_and_not_ours(tmp_path: Path) -> None:
    (tmp_path / "optimizer.py").write_text("MINE = 0.5")
    assert scored(tmp_path, "import optimizer\ndef score(outputs, targets):\n    print('noise')\n    return optimizer.MINE").value == 0.5


def test_user_metric_with_a_fixed_batch(tmp_path: Path) -> None:
    (tmp_path / "metric.py").write_text("def score(outputs, targets):\n    return outputs['y'].shape[0] * 100 + targets['t'].shape[0]")
    outputs, targets = {"y": np.zeros((3, 4, 2))}, {"t": np.zeros((3, 4))}
    assert score("metric.py:score", tmp_path, outputs, outputs, targets, batch=4, resamples=0).value == 1212.0
    assert score("metric.py:score", tmp_path, outputs, outputs, targets, batch=0, resamples=0).value == 303.0


def test_user_metric_with_shapes_that_differ(tmp_path: Path) -> None:
    (tmp_path / "metric.py").write_text("def score(outputs, targets):\n    return sum(len(b) for b in outputs['y'])")
    outputs = {"y": [np.zeros((k, 4)) for k in (1, 2, 3)]}
    assert score("metric.py:score", tmp_path, outputs, outputs, {"t": np.zeros(3)}, resamples=3).value == 6.0


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def score(outputs, targets):\n    return targets['label']", r"raised an error\n(.*\n)*KeyError: 'label'"),
        ("def skore(outputs, targets):\n    return 1", "the file defines no function 'score'"),
        ("def score(outputs, targets):\n    return 'good'", "must return one number, returned str"),
        ("def score(outputs, targets):\n    return float('nan')", "returned nan"),
        ("import nothing_of_that_name\n", r"raised an error\n(.*\n)*ModuleNotFoundError"),
        ("import os\nos._exit(9)\n", "ended with code 9 and no score"),
        ("def score(:\n", r"raised an error\n(.*\n)*SyntaxError"),
    ],
)
def test_user_metric_that_fails(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(UserError, match=r"metric .*metric\.py:score: " + message):
        scored(tmp_path, code)


def test_user_metric_that_hangs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gave no score within 0\.5 s"):
        scored(tmp_path, "import threading\nthreading.Event().wait()", timeout_s=0.5)


@pytest.mark.parametrize(
    ("function", "message"), [("metric", r"write FILE\.py:FUNCTION"), ("gone.py:score", "no such file"), ("a.py:1x", "write")]
)
def test_user_metric_that_is_not_there(tmp_path: Path, function: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        locate(function, tmp_path)

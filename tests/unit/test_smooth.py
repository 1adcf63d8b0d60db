"""SmoothQuant's transformation: outliers move into weights by the paper's formula, the function stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgefarm.model import FailureKind
from optimizer import checks
from optimizer.dataset import Dataset
from optimizer.drift import drift
from optimizer.engines import open_model
from optimizer.onnx_wiring import observe
from optimizer.passes import Changed, Context, PassFailure, load_pass
from tests import models_layers
from tests import models_optimizer as zoo

SMOOTH = load_pass("smooth")
SAMPLES = Dataset({"x": models_layers.vectors(40)[:, None]})
FORMS = [("fused", False), ("fused", True), ("decomposed", True), ("mul", False)]


def smooth(model: Any, folder: Path, calibration: Dataset | None = SAMPLES, **parameters: Any) -> tuple[Changed, Path, Path]:
    source = zoo.save(model, folder / "m.onnx")
    out, scratch = folder / "out", folder / "scratch"
    out.mkdir()
    scratch.mkdir()
    changed = SMOOTH.run(source, out, SMOOTH.parameters.model_validate(parameters), calibration, Context(scratch))
    return changed, source, out / "model.onnx"


def weights(path: Path) -> dict[str, Any]:
    return {w.name: numpy_helper.to_array(w) for w in onnx.load(str(path)).graph.initializer}


def magnitudes(path: Path, folder: Path) -> Any:
    """Largest magnitude per channel of the smoothed tensor, over the samples."""
    run = observe(onnx.load(str(path)), ["n"], folder)
    return np.max([np.abs(run(SAMPLES.feeds(i))[0]).reshape(-1, models_layers.WIDTH).max(axis=0) for i in range(SAMPLES.n)], axis=0)


@pytest.mark.parametrize(("kind", "trans_b"), FORMS)
def test_outliers_move_and_the_function_stays(tmp_path: Path, kind: str, trans_b: bool) -> None:
    changed, source, output = smooth(models_layers.normalised(kind, trans_b), tmp_path)
    assert changed.detail == "inputs of 2 matrix products smoothed"
    before, after = magnitudes(source, tmp_path), magnitudes(output, tmp_path)
    assert after.max() / np.median(after) < 0.2 * before.max() / np.median(before)
    runs = open_model(source), open_model(output)
    for name in ("q", "logits"):
        values = [[run(SAMPLES.feeds(i))[name] for i in range(SAMPLES.n)] for run in runs]
        assert drift(*values) < 1e-5
    checks.check(source, output, SMOOTH, SAMPLES)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
def test_factors_are_those_of_the_paper(tmp_path: Path, alpha: float) -> None:
    _, source, output = smooth(models_layers.normalised("fused", trans_b=True), tmp_path, alpha=alpha)
    before, after = weights(source), weights(output)
    rows = np.maximum(np.abs(before["wq"]).max(axis=1), np.abs(before["wl"]).max(axis=0))
    s = magnitudes(source, tmp_path) ** alpha / rows ** (1 - alpha)
    np.testing.assert_allclose(after["gain"], before["gain"] / s, rtol=1e-4)
    np.testing.assert_allclose(after["shift"], before["shift"] / s, rtol=1e-4)
    np.testing.assert_allclose(after["wq"], before["wq"] * s[:, None], rtol=1e-4)
    np.testing.assert_allclose(after["wl"], before["wl"] * s, rtol=1e-4)
    np.testing.assert_array_equal(after["bl"], before["bl"])


def test_a_tensor_that_others_read_is_left_alone(tmp_path: Path) -> None:
    changed, source, output = smooth(models_layers.normalised("decomposed", residual=True), tmp_path)
    assert changed.detail == "inputs of 0 matrix products smoothed: none follows scales per channel"
    with pytest.raises(checks.Unchanged):
        checks.check(source, output, SMOOTH, None)


@pytest.mark.parametrize("model", [zoo.text_net, zoo.conv_net, zoo.contrib_net])
def test_nothing_to_smooth(tmp_path: Path, model: Any) -> None:
    _, source, output = smooth(model(), tmp_path)
    assert source.read_bytes() == output.read_bytes()


def test_it_helps_a_quantiser(tmp_path: Path) -> None:
    """One scale per tensor has to hold the outlier; the other channels get its steps."""
    _, source, output = smooth(models_layers.normalised("fused"), tmp_path)
    quantize = load_pass("quantize_static")
    exact, errors = open_model(source), []
    for index, path in enumerate((source, output)):
        out, scratch = tmp_path / f"q{index}", tmp_path / f"s{index}"
        out.mkdir()
        scratch.mkdir()
        parameters = quantize.parameters.model_validate({"op_types": "MatMul,Gemm", "reduce_range": True})
        quantize.run(path, out, parameters, SAMPLES, Context(scratch))
        run = open_model(out / "model.onnx")
        feeds = [SAMPLES.feeds(i) for i in range(SAMPLES.n)]
        errors.append(drift([exact(f)["logits"] for f in feeds], [run(f)["logits"] for f in feeds]))
    assert errors[1] < errors[0]


def test_it_needs_samples(tmp_path: Path) -> None:
    with pytest.raises(PassFailure) as caught:
        smooth(models_layers.normalised(), tmp_path, calibration=None)
    assert caught.value.kind is FailureKind.UNSUPPORTED_OP

"""The folders made for the loop's tests are ones that the product takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from controller.config.fleet import load_fleet
from optimizer.dataset import Dataset, inspect_model
from optimizer.evaluate import pick_target
from tests import zoo
from tests.e2e.zoo_fleets import CALIBRATION, EVALUATION, write_fleet


@pytest.mark.parametrize("name", zoo.MODELS)
def test_a_zoo_model_becomes_a_folder_that_deploy_takes(tmp_path: Path, name: str) -> None:
    fleet = load_fleet(write_fleet(tmp_path, zoo.MODELS[name](tmp_path), name=name))
    assert (fleet.name, [t.name for t in fleet.targets]) == (name, ["bench-1"])
    signature = inspect_model(fleet.model)
    calibration = Dataset.load(fleet.data["calibration"], signature, with_targets=False)
    evaluation = Dataset.load(fleet.data["evaluation"], signature, with_targets=True)
    assert (calibration.n, evaluation.n) == (CALIBRATION, EVALUATION)
    expected = zoo.samples(fleet.model, EVALUATION, seed=2)
    assert set(evaluation.inputs) == set(expected)
    for tensor, arrays in expected.items():
        assert np.array_equal(evaluation.inputs[tensor], np.stack(arrays)), "each sample is exactly what is fed"
    output, target = pick_target(signature.outputs, evaluation.targets)
    assert output == target == signature.outputs[0].name
    assert len(evaluation.targets[target]) == EVALUATION
    assert calibration.digest != evaluation.digest


def test_equal_calls_give_equal_folders(tmp_path: Path) -> None:
    found = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        write_fleet(folder, zoo.stateful(folder))
        found.append({path.name: path.read_bytes() for path in folder.iterdir()})
    first, second = found
    assert first == second
    assert set(first) == {"model.onnx", "calibration.npz", "evaluation.npz", "edge.yaml"}

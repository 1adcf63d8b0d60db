"""Odd networks in two formats: the mapping that is found, and what a device's runtime gives through it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agent.runner.mapping import Bound
from agent.runtimes import RuntimeFailure, load_runtime
from edgefarm.model import FailureKind, Io
from optimizer import checks
from optimizer.dataset import Dataset
from optimizer.engines import open_model
from optimizer.passes import Changed, Context, PassFailure, load_pass
from optimizer.pipeline import Event, Pipeline, Variant
from optimizer.recipe import Plan, Step
from optimizer.source import load_source
from tests import zoo_twins
from tests.zoo_tflite import STEP, ZERO
from tests.zoo_twins import TWINS, Twins

RUNTIMES = ("tflite", "openvino")


def taken(twins: Twins, folder: Path) -> tuple[Path, Path, Changed]:
    """Source, alternative as it was taken, and what the pass says."""
    paths = []
    for name, write in (("source", twins.source), ("given", twins.other)):
        (folder / name).mkdir()
        paths.append(write(folder / name))
    (folder / "out").mkdir()
    given = load_source(paths[1])
    used, context = load_pass("alternative"), Context(folder, 0, Dataset(twins.samples), {given.artifact.digest: given.path})
    parameters = used.parameters.model_validate({"file": given.path.name, "digest": given.artifact.digest})
    changed = used.run(paths[0], folder / "out", parameters, None, context)
    return paths[0], folder / "out" / given.path.name, changed


def on_device(path: Path, runtime: str, io: Io | None, samples: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """What an agent's runner gives for each sample, under the source's names."""
    model = load_runtime(runtime).load(path, {"threads": 1, **({"inference_precision": "f32"} if runtime == "openvino" else {})})
    bound = Bound(model, io)
    results = []
    for feeds in bound.feeds({name: list(array) for name, array in samples.items()}):
        model.reset()
        results.append(dict(zip(bound.outputs, bound.run(feeds))))
    return results


@pytest.mark.parametrize("name", TWINS)
def test_an_odd_network_is_recognised_and_runs_as_the_source_does(tmp_path: Path, name: str) -> None:
    twins = TWINS[name]
    source, path, changed = taken(twins, tmp_path)
    samples = Dataset(twins.samples)
    checks.check(source, path, load_pass("alternative"), samples, changed.io)
    assert changed.plain
    run = open_model(source)
    for runtime in RUNTIMES:
        if runtime == "openvino" and name == "state in a resource":
            continue  # OpenVINO's reader of TFLite files knows no resources
        for index, got in enumerate(on_device(path, runtime, changed.io, twins.samples)):
            for output, want in run(samples.feeds(index)).items():
                assert (got[output].dtype, got[output].shape) == (want.dtype, want.shape)
                np.testing.assert_allclose(got[output], want, rtol=2e-3, atol=2e-3 * max(1.0, float(np.abs(want).max())))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_integers_on_both_ends_are_scaled(tmp_path: Path, runtime: str) -> None:
    twins = zoo_twins.QUANTISED_ENDS
    source, path, changed = taken(twins, tmp_path)
    assert changed.detail == "model.tflite, the same network in tflite, quantised"
    assert not changed.plain
    assert changed.io is not None
    for mapping in (*changed.io.inputs, *changed.io.outputs):
        assert (mapping.scale, mapping.zero_point, mapping.dtype) == (pytest.approx(STEP), ZERO, "")
    run, samples = open_model(source), Dataset(twins.samples)
    for index, got in enumerate(on_device(path, runtime, changed.io, twins.samples)):
        assert got["y"].dtype == np.float32
        np.testing.assert_allclose(got["y"], run(samples.feeds(index))["y"], atol=3 * STEP)


def test_a_number_that_the_other_type_does_not_hold(tmp_path: Path) -> None:
    with pytest.raises(PassFailure, match=r"fits none of .* int32\[1, 6\]; .* does not hold 1099511627776") as caught:
        taken(zoo_twins.TOO_LARGE_TOKEN, tmp_path)
    assert caught.value.kind is FailureKind.IO_CHANGED


def test_such_a_number_among_a_devices_inputs(tmp_path: Path) -> None:
    _, path, changed = taken(TWINS["tokens"], tmp_path)
    with pytest.raises(RuntimeFailure, match="'tokens' holds 1099511627776, but the variant takes int32") as caught:
        on_device(path, "tflite", changed.io, zoo_twins.TOO_LARGE_TOKEN.samples)
    assert caught.value.kind is FailureKind.IO_CHANGED


def test_classes_that_are_one_off(tmp_path: Path) -> None:
    """As numbers they are near, as classes they are others."""
    with pytest.raises(PassFailure, match=r"not the same network: .* its output 'best' is off by 1 ") as caught:
        taken(zoo_twins.ONE_CLASS_OFF, tmp_path)
    assert caught.value.kind is FailureKind.NUMERIC


def test_where_the_file_lies_makes_no_difference(tmp_path: Path) -> None:
    """A checkout that was moved finds what it made."""
    twins, kept = TWINS["image"], []
    for place in ("here", "there"):
        folder = tmp_path / place
        for name in ("source", "given"):
            (folder / name).mkdir(parents=True)
        source, given = load_source(twins.source(folder / "source")), load_source(twins.other(folder / "given"))
        plan = Plan("tflite", (Step("alternative", {"file": given.path.name, "digest": given.artifact.digest}),))
        events: list[Event] = []
        lines = Pipeline(tmp_path / "cache", lock_path=tmp_path / "lock", timeout_s=60)
        kept.append(lines.run(source, [plan], probe=Dataset(twins.samples), on_event=events.append, others=[given]))
    assert [e.kind for e in events] == ["changed"]
    assert all(e.cached for e in events)
    assert isinstance(kept[1][0], Variant)
    assert kept[1] == kept[0]
    assert str(tmp_path) not in str(kept[1][0].lineage)

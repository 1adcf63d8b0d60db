"""Samples become batches only where the model computes one."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.runner.batches import NoBatch, batched
from agent.runner.lanes import Feeds, Lane
from agent.runner.mapping import Bound
from agent.runtimes import TensorSpec
from edgefarm.model import Io, TensorMap


def _lane(shapes: dict[str, tuple[int, ...]], axes: dict[str, int | None], run: Any = None, samples: int = 6) -> Lane:
    feeds: list[Feeds] = [{name: np.full(shape, i) for name, shape in shapes.items()} for i in range(samples)]
    return Lane(run or (lambda given: [given["x"]]), feeds, axes)


@given(rows=st.integers(1, 3), times=st.integers(1, 9), samples=st.integers(1, 12))
def test_a_batch_holds_samples_in_turn_and_no_sample_twice_before_all_had_their_turn(rows: int, times: int, samples: int) -> None:
    made = batched(_lane({"x": (rows, 2), "z": (rows,)}, {"x": None, "z": None}, samples=samples), rows * times)
    seen: list[int] = []
    for feeds in made.feeds:
        assert (feeds["x"].shape, feeds["z"].shape) == ((rows * times, 2), (rows * times,))
        assert feeds["x"][:, 0].tolist() == feeds["z"].tolist()
        seen += feeds["z"][::rows].tolist()
    assert seen == [i % samples for i in range(len(seen))]


def test_a_fixed_batch_that_fits_is_fed_as_it_is() -> None:
    lane = _lane({"x": (4, 2)}, {"x": 4})
    assert all(feeds["x"] is given["x"] for feeds, given in zip(batched(lane, 4).feeds, lane.feeds))


@pytest.mark.parametrize("shapes", [{"x": (1, 128), "state": (2, 1, 128)}, {"x": (1, 2), "scale": ()}, {"scale": ()}])
def test_one_sample_can_always_be_run(shapes: dict[str, tuple[int, ...]]) -> None:
    lane = _lane(shapes, {name: (*shape, 1)[0] for name, shape in shapes.items()})
    assert all(feeds is given for feeds, given in zip(batched(lane, 1).feeds, lane.feeds))


@pytest.mark.parametrize(
    ("shapes", "axes", "size", "reason"),
    [
        ({"x": (1, 2)}, {"x": 1}, 4, "input 'x' takes batches of 1, no others"),
        ({"x": (1, 2), "state": (2, 1, 8)}, {"x": None, "state": 2}, 4, "input 'state' takes batches of 2, no others"),
        ({"x": (1, 2), "scale": ()}, {"x": None, "scale": 1}, 4, "input 'scale' is a single value"),
        ({"x": (3, 2)}, {"x": None}, 4, "a sample of input 'x' has 3 rows, of which 4 is no multiple"),
        ({"x": (1, 2), "z": (2, 2)}, {"x": None, "z": None}, 4, "different numbers of rows: x 1, z 2"),
    ],
)
def test_what_does_not_make_a_batch(shapes: dict[str, tuple[int, ...]], axes: dict[str, int | None], size: int, reason: str) -> None:
    with pytest.raises(NoBatch, match=reason):
        batched(_lane(shapes, axes), size)


def test_samples_of_different_shapes_make_no_batch() -> None:
    feeds: list[Feeds] = [{"x": np.zeros((1, n))} for n in (3, 4)]
    with pytest.raises(NoBatch, match="the samples differ in shape"):
        batched(Lane(lambda given: [given["x"]], feeds, {"x": None}), 2)


def test_a_first_axis_that_is_time_is_no_batch() -> None:
    def summed(feeds: Feeds) -> list[Any]:
        return [feeds["x"].sum(axis=0, keepdims=True)]

    with pytest.raises(NoBatch, match=r"output 0 has shape .* for 4 samples and .* for one: its first axis is not a batch"):
        batched(_lane({"x": (1, 2)}, {"x": None}, summed), 4)


def test_a_model_that_fails_with_a_size_says_so_and_want_of_memory_is_another_matter() -> None:
    def failing(error: Exception) -> Any:
        def run(feeds: Feeds) -> list[Any]:
            if len(feeds["x"]) > 1:
                raise error
            return [feeds["x"]]

        return run

    with pytest.raises(NoBatch, match="does not run with 4 rows: cannot reshape"):
        batched(_lane({"x": (1, 2)}, {"x": None}, failing(RuntimeError("cannot reshape"))), 4)
    with pytest.raises(MemoryError):
        batched(_lane({"x": (1, 2)}, {"x": None}, failing(MemoryError())), 4)


class _Model:
    inputs = (TensorSpec("x:0", "float32", (None, 4, 4, 3)), TensorSpec("n", "int64", ()))
    outputs = (TensorSpec("y", "float32", (None, 10)),)
    chosen: ClassVar[dict[str, str]] = {}

    def run(self, feeds: Feeds) -> list[Any]:
        return []


def test_the_batch_axis_is_found_through_the_mapping() -> None:
    model: Any = _Model()
    assert Bound(model, None).batch_axes() == {"x:0": None, "n": 1}
    moved = Io((TensorMap("x", "x:0", (1, 0, 2, 3)), TensorMap("n", "n")), (TensorMap("y", "y"),))
    assert Bound(model, moved).batch_axes() == {"x": 4, "n": 1}

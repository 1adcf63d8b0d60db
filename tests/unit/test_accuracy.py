"""Reduced outputs and golden samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from agent.runner.accuracy import Collector, compare, count_not_finite, read_golden, top
from agent.runtimes import RuntimeFailure
from edgefarm.model import FailureKind
from edgefarm.tensors import pack, unpack


@given(st.lists(st.integers(-3, 3) | st.sampled_from([np.inf, -np.inf]), min_size=1, max_size=12), st.data())
def test_top_is_largest_first_and_lowest_index_among_equals(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    found = top(np.array([values], dtype=np.float32), k)
    assert found.tolist() == [expected]
    assert found.dtype == np.int64


def test_top_of_unsigned_integers() -> None:
    assert top(np.array([[3, 255, 0, 255]], dtype=np.uint8), 3).tolist() == [[1, 3, 0]]


@pytest.mark.parametrize(("values", "k"), [(np.zeros((1, 3)), 4), (np.zeros((1, 3)), 0), (np.float64(1.0), 1)])
def test_top_needs_enough_values(values: Any, k: int) -> None:
    with pytest.raises(RuntimeFailure, match="along its last axis"):
        top(np.asarray(values), k)


def test_nan_is_never_ranked() -> None:
    with pytest.raises(RuntimeFailure, match="NaN") as caught:
        top(np.array([[1.0, np.nan]]), 1)
    assert caught.value.kind is FailureKind.NUMERIC


def _collector(kind: str = "raw", output: str = "", k: int = 0, golden: int = 2, limit: int = 10**6) -> Collector:
    return Collector(("y", "z"), kind=kind, output=output, k=k, golden_samples=golden, output_bytes_limit=limit)


def _feed(collector: Collector, n: int) -> None:
    for i in range(n):
        y, z = np.full((1, 4), i, np.float32), np.arange(i + 1)
        collector.add({"x": np.array([i], np.float32)}, [y, z])
        y[:] = -1  # a runtime may reuse its buffers


def test_raw_keeps_all_outputs_and_golden_the_first(tmp_path: Path) -> None:
    collector = _collector()
    _feed(collector, 3)
    assert collector.write(tmp_path / "o", tmp_path / "g") == 3
    outputs = unpack(tmp_path / "o")
    assert list(outputs) == ["y", "z"]
    assert [a.tolist() for a in outputs["y"]] == [[[i] * 4] for i in range(3)]
    assert [len(a) for a in outputs["z"]] == [1, 2, 3]  # shapes may differ
    inputs, wanted = read_golden(tmp_path / "g")
    assert (list(inputs), list(wanted)) == (["x"], ["y", "z"])
    assert len(inputs["x"]) == 2


def test_raw_of_one_output_leaves_the_others(tmp_path: Path) -> None:
    collector = _collector(output="z")
    _feed(collector, 3)
    collector.write(tmp_path / "o", tmp_path / "g")
    assert {name: [len(a) for a in arrays] for name, arrays in unpack(tmp_path / "o").items()} == {"z": [1, 2, 3]}
    assert set(unpack(tmp_path / "g")) == {"input:x", "output:y", "output:z"}


def test_topk_keeps_indices_and_golden_stays_raw(tmp_path: Path) -> None:
    collector = _collector("topk", "y", 2)
    _feed(collector, 3)
    collector.write(tmp_path / "o", tmp_path / "g")
    assert {name: np.asarray(v).tolist() for name, v in unpack(tmp_path / "o").items()} == {"y": [[[0, 1]]] * 3}
    assert set(unpack(tmp_path / "g")) == {"input:x", "output:y", "output:z"}


def test_the_budget_is_kept() -> None:
    with pytest.raises(RuntimeFailure, match="MiB that a device gives back: end the graph with") as caught:
        _feed(_collector(limit=40), 3)
    assert caught.value.kind is FailureKind.OOM


@pytest.mark.parametrize(
    ("kind", "output", "said"), [("topk", "", "needs one output"), ("topk", "w", "'w' is none of y, z"), ("mean", "", "'mean' is unknown")]
)
def test_a_reduction_that_cannot_be_is_refused(kind: str, output: str, said: str) -> None:
    with pytest.raises(RuntimeFailure, match=said):
        _collector(kind, output, 1)


def test_no_samples_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match="no samples"):
        _collector().write(tmp_path / "o", tmp_path / "g")


def test_not_finite_values_are_counted_in_floats_only() -> None:
    assert count_not_finite([np.array([1, np.nan, np.inf]), np.array([1, 2]), np.array([-np.inf], np.float16)]) == 3


_WANT: NDArray[Any] = np.array([[0.0, -10.0, 5.0]], np.float32)


def _check(got: NDArray[Any], want: NDArray[Any] = _WANT, relative: float = 0.01, absolute: float = 0.0) -> None:
    compare(0, {"y": got}, {"y": want}, relative, absolute)


def test_the_tolerance_is_relative_to_the_largest_value() -> None:
    _check(_WANT + np.float32(0.0999))
    with pytest.raises(RuntimeFailure, match=r"output 'y', sample 0: differs by 0\.11") as caught:
        _check(_WANT + np.float32(0.11))
    assert caught.value.kind is FailureKind.NUMERIC
    _check(_WANT + np.float32(0.11), absolute=0.02)


def test_nan_and_infinity_must_be_where_they_were() -> None:
    odd = np.array([[np.nan, np.inf, 1.0]], np.float32)
    _check(odd.copy(), odd)
    for wrong in ([[1.0, np.inf, 1.0]], [[np.nan, -np.inf, 1.0]], [[np.nan, np.inf, np.nan]], [[np.nan, np.inf, np.inf]]):
        with pytest.raises(RuntimeFailure, match="NaN or infinite"):
            _check(np.array(wrong, np.float32), odd)


@pytest.mark.parametrize("got", [_WANT.astype(np.float64), _WANT[0], np.zeros((1, 4), np.float32)])
def test_dtype_and_shape_must_be_equal(got: NDArray[Any]) -> None:
    with pytest.raises(RuntimeFailure, match="golden output 'y' is float32") as caught:
        _check(got)
    assert caught.value.kind is FailureKind.IO_CHANGED


def test_a_missing_output_is_named() -> None:
    with pytest.raises(RuntimeFailure, match="'y' is missing; the model gives q"):
        compare(0, {"q": _WANT}, {"y": _WANT}, 0.0, 0.0)


def test_integers_are_compared_too() -> None:
    _check(np.array([3]), np.array([3]), relative=0.0)
    with pytest.raises(RuntimeFailure, match="differs by 1"):
        _check(np.array([4]), np.array([3]), relative=0.0)


def test_strings_are_compared_exactly() -> None:
    _check(np.array(["a"]), np.array(["a"]))
    with pytest.raises(RuntimeFailure, match="differs from the golden output"):
        _check(np.array(["b"]), np.array(["a"]))


@pytest.mark.parametrize("content", [b"not a pack", pack({"input:x": np.zeros((2, 3))})])
def test_a_pack_without_golden_outputs_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "g"
    path.write_bytes(content)
    with pytest.raises(RuntimeFailure, match=r"golden samples(: the pack holds no outputs| are not a tensor pack)"):
        read_golden(path)

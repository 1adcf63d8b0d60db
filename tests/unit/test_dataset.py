"""Samples in the user's file against what the model takes."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgefarm.errors import UserError
from optimizer.dataset import Dataset, Signature, TensorSpec, load_npz

IMAGE = TensorSpec("x", "float32", (None, 3, 4, 4))


def signature(*inputs: TensorSpec) -> Signature:
    return Signature(inputs, (TensorSpec("y", "float32", (None, 2)),), 17, "onnx")


def write(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def floats(*shape: int) -> Any:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def load(path: Path, *inputs: TensorSpec, targets: bool = True, **arrays: Any) -> Dataset:
    return Dataset.load(write(path / "d.npz", **arrays), signature(*inputs), targets)


def test_dynamic_batch_is_fed_one_by_one(tmp_path: Path) -> None:
    x = floats(6, 3, 4, 4)
    data = load(tmp_path, IMAGE, x=x, label=np.arange(6))
    assert (data.n, data.batch, data.inputs["x"].shape) == (6, 1, (6, 1, 3, 4, 4))
    assert np.array_equal(data.feeds(4)["x"], x[4:5])
    assert list(data.targets) == ["label"]


def test_fixed_batch_is_fed_in_groups(tmp_path: Path) -> None:
    x = floats(6, 2)
    data = load(tmp_path, TensorSpec("x", "float32", (3, 2)), x=x, label=np.arange(6))
    assert (data.n, data.batch) == (2, 3)
    assert np.array_equal(data.feeds(1)["x"], x[3:])
    assert data.targets["label"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_whole_inputs_beside_batched_ones(tmp_path: Path) -> None:
    state = floats(5, 2, 1, 8)
    data = load(tmp_path, TensorSpec("x", "float32", (1, 4)), TensorSpec("s", "float32", (2, 1, 8)), x=floats(5, 4), s=state)
    assert (data.n, data.batch) == (5, 1)
    assert np.array_equal(data.feeds(3)["s"], state[3])
    assert data.feeds(3)["x"].shape == (1, 4)


def test_only_whole_inputs(tmp_path: Path) -> None:
    data = load(tmp_path, TensorSpec("s", "float32", (2, 8)), s=floats(5, 2, 8), t=floats(5, 3))
    assert (data.n, data.batch, data.targets["t"].shape) == (5, 0, (5, 3))


def test_scalars_and_dynamic_axes(tmp_path: Path) -> None:
    tokens = TensorSpec("t", "int64", (None, None))
    data = load(tmp_path, tokens, TensorSpec("k", "int64", ()), t=np.ones((4, 7), np.int64), k=np.arange(4))
    assert data.inputs["t"].shape == (4, 1, 7)
    assert data.feeds(2)["k"].shape == ()


def test_dynamic_input_goes_along_with_a_fixed_batch(tmp_path: Path) -> None:
    pair = (TensorSpec("a", "float32", (2, 3)), TensorSpec("b", "float32", (None, 1)))
    assert load(tmp_path, *pair, a=floats(8, 3), b=floats(8, 1)).inputs["b"].shape == (4, 2, 1)
    assert load(tmp_path, *pair, a=floats(8, 3), b=floats(4, 1)).inputs["b"].shape == (4, 1, 1)


def test_other_byte_order_is_read(tmp_path: Path) -> None:
    data = load(tmp_path, TensorSpec("x", "float32", (None, 2)), x=floats(3, 2).astype(">f4"))
    assert data.inputs["x"].dtype == np.dtype("float32")
    assert data.inputs["x"].dtype.isnative
    assert data.inputs["x"][2].tolist() == [[4.0, 5.0]]


def test_calibration_takes_inputs_only(tmp_path: Path) -> None:
    assert load(tmp_path, IMAGE, targets=False, x=floats(2, 3, 4, 4), label=np.arange(99)).targets == {}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": floats(2, 3, 4, 4)}, r"no array for the model's input 'x' \(float32\[N, 3, 4, 4\]\); it holds 'z'"),
        ({"X1": floats(1), "x_": floats(2, 3, 4, 4)}, r"is 'x_' meant\?"),
        ({"x": floats(2, 3, 4, 5)}, r"'x' has shape \[2, 3, 4, 5\], expected \[N, 3, 4, 4\]"),
        ({"x": floats(2, 3, 4)}, r"expected \[N, 3, 4, 4\] \(or \[N, any, 3, 4, 4\], whole inputs\)"),
        ({"x": floats(2, 3, 4, 4).astype(np.float64)}, r"'x' is float64, the model takes float32; save it with \.astype\('float32'\)"),
        ({"x": (floats(2, 3, 4, 4) % 255).astype(np.uint8)}, r"'x' is uint8, the model takes float32"),
        ({"x": floats(0, 3, 4, 4)}, "holds no samples"),
        ({"x": np.full((2, 3, 4, 4), np.nan, np.float32)}, "holds NaN"),
        ({"x": floats(4, 3, 4, 4), "label": np.arange(3)}, r"target 'label' has 3 rows, the inputs have 4"),
        ({"x": floats(4, 3, 4, 4), "label": np.array(3)}, r"target 'label' has no axis, the inputs have 4"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=r"d\.npz: .*" + message):
        load(tmp_path, IMAGE, **arrays)


def test_unequal_counts(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unequal numbers of samples: 'a' 4, 'b' 3"):
        load(tmp_path, TensorSpec("a", "float32", (None, 2)), TensorSpec("b", "float32", (None, 2)), a=floats(4, 2), b=floats(3, 2))


def test_fixed_batch_needs_a_multiple(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'x' has 7 rows, but the model's batch is 3"):
        load(tmp_path, TensorSpec("x", "float32", (3, 2)), x=floats(7, 2))


def test_first_axes_that_are_no_batch(tmp_path: Path) -> None:
    pair = (TensorSpec("a", "float32", (2, 3)), TensorSpec("b", "float32", (4, 3)))
    with pytest.raises(UserError, match=r"first axes .* differ \('a' 2, 'b' 4\)"):
        load(tmp_path, *pair, a=floats(8, 3), b=floats(8, 3))


def test_a_model_without_inputs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="takes no inputs"):
        load(tmp_path, x=floats(1))


def test_pickles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"d\.npz: holds pickled objects"):
        load_npz(write(tmp_path / "d.npz", x=np.array([{}, []], dtype=object)))


def test_a_bare_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_bytes(b"\x80\x04N.")
    with pytest.raises(UserError, match="holds pickled objects"):
        load_npz(tmp_path / "d.npz")


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", floats(3))
    with pytest.raises(UserError, match=r"one array without a name"):
        load_npz(tmp_path / "d.npy")


@pytest.mark.parametrize("keep", [0, 10, 200, -30])
def test_broken_files(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "d.npz", x=floats(100))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"d\.npz: not a"):
        load_npz(path)


def test_a_damaged_member(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4'}")
    with pytest.raises(UserError, match=r"d\.npz: not a readable"):
        load_npz(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load_npz(tmp_path / "d.npz")
    with pytest.raises(UserError, match="is a folder"):
        load_npz(tmp_path)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 60), fraction=st.floats(0, 1), seed=st.integers(0, 99))
def test_split_is_a_partition(n: int, fraction: float, seed: int) -> None:
    data = Dataset({"x": np.arange(n)[:, None]}, {"t": np.arange(n)})
    first, second = data.split(seed, fraction)
    assert first.n == round(fraction * n)
    assert sorted([*first.targets["t"], *second.targets["t"]]) == list(range(n))
    assert np.array_equal(first.inputs["x"][:, 0], first.targets["t"])
    assert first.digest == data.split(seed, fraction)[0].digest


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(1, 8), batch=st.integers(1, 4), rest=st.lists(st.integers(1, 3), max_size=3), whole=st.booleans())
def test_samples_concatenate_to_the_users_array(tmp_path: Path, n: int, batch: int, rest: list[int], whole: bool) -> None:
    spec = TensorSpec("x", "float32", (batch, *rest))
    x = floats(n, batch, *rest) if whole else floats(n * batch, *rest)
    data = load(tmp_path, spec, x=x)
    fed = [data.feeds(i)["x"] for i in range(data.n)]
    assert all(f.shape == spec.shape for f in fed)
    assert np.array_equal(np.stack(fed) if whole else np.concatenate(fed), x)


def test_digest_tells_everything_apart() -> None:
    x = floats(4, 2)
    sets = [
        Dataset({"x": x}),
        Dataset({"y": x}),
        Dataset({"x": x + 1}),
        Dataset({"x": x.reshape(4, 1, 2)}),
        Dataset({"x": x.astype(np.float64)}),
        Dataset({"x": x}, {"t": np.array(["a", "b", "c", "é"])}),
        Dataset({"x": x}, {"t": np.array(["a", "b", "c", "d"])}),
        Dataset({"x": x}, batch=2),
    ]
    assert len({d.digest for d in sets}) == len(sets)
    assert Dataset({"x": x.copy()}).digest == sets[0].digest


def test_handing_to_another_process(tmp_path: Path) -> None:
    data = Dataset({"a:0": floats(3, 1, 2), "b/c": np.array([[True], [False], [True]])}, {"t": np.arange(3)})
    data.save_inputs(tmp_path / "pack.npz")
    back = Dataset.open_inputs(tmp_path / "pack.npz")
    assert back.digest == Dataset(data.inputs).digest

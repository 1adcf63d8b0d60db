import io
import json
from pathlib import Path

import numpy as np
import pytest

from agent.synthetic import main, random_samples
from edgefarm.tensors import unpack


def test_a_pack_of_the_models_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [["x", "float32", [1, None, 3]], ["ids", "int64", [2]], ["mask", "bool", []]]
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(specs)))
    main(str(tmp_path / "pack.npz"), "3")
    made = unpack(tmp_path / "pack.npz")
    assert {name: (len(s), s[0].dtype.name, s[0].shape) for name, s in made.items()} == {
        "x": (3, "float32", (1, 1, 3)), "ids": (3, "int64", (2,)), "mask": (3, "bool", ()),
    }  # fmt: skip
    assert set(np.unique(np.stack(list(made["ids"])))) <= {0, 1}


def test_a_type_without_random_values() -> None:
    with pytest.raises(ValueError, match="no random values of type str"):
        random_samples("str", [1], 1, np.random.default_rng(0))


def test_a_shape_too_large_to_make_up() -> None:
    with pytest.raises(ValueError, match=r"shape \[1073741824, 1\] is too large"):
        random_samples("float32", [2**30, None], 1, np.random.default_rng(0))

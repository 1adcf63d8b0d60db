import json
from pathlib import Path

import numpy as np
import pytest

from agent.synthetic import main, random_samples
from edgefarm.tensors import unpack


def test_a_pack_of_the_models_shapes(tmp_path: Path) -> None:
    specs = [["x", "float32", [1, None, 3]], ["ids", "int64", [2]], ["mask", "bool", []]]
    main(str(tmp_path / "pack.npz"), "3", json.dumps(specs))
    made = unpack(tmp_path / "pack.npz")
    assert {name: (len(s), s[0].dtype.name, s[0].shape) for name, s in made.items()} == {
        "x": (3, "float32", (1, 1, 3)), "ids": (3, "int64", (2,)), "mask": (3, "bool", ()),
    }  # fmt: skip
    assert set(np.unique(np.stack(list(made["ids"])))) <= {0, 1}


def test_a_type_without_random_values() -> None:
    with pytest.raises(ValueError, match="no random values of type str"):
        random_samples("str", [1], 1, np.random.default_rng(0))

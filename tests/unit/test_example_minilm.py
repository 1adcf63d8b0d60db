"""The minilm example's own parts: the texts it takes, its metric, its network, its reader of weights."""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from tests.examples import MINILM, script

metric, pairs, encoder = (script(MINILM, name) for name in ("metric", "pairs", "encoder"))

# --- minilm: the texts

MODULE = '''
def taken():
    """Returns the shortest path from one node to another.

    Edges weigh one where nothing else is said, so that the
    path with the fewest edges is the shortest of them all.

    Examples
    --------
    """

def terse():
    """Too short."""

def unexplained():
    """Returns the longest path from one node to another.

    Parameters
    ----------
    source, target, weight, and so on and on and on and on and on
    """

class Same:
    """Returns the shortest path from one node to another.

    This one says the same of itself, and is therefore left out; there would be two answers.
    """
'''


def wheel(path: Path, **modules: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in modules.items():
            archive.writestr(name.replace("_", "/") + ".py", text)
    return path


def test_a_pair_is_a_summary_and_the_paragraph_below_it(tmp_path: Path) -> None:
    (pair,) = pairs.read(wheel(tmp_path / "a.whl", pkg_a=MODULE, pkg_tests_b=MODULE.replace("shortest", "best")), 1)
    assert pair.summary == "Returns the shortest path from one node to another."
    assert pair.explanation.startswith("Edges weigh one where nothing else is said, so that the path with")
    assert pair.explanation.endswith("the shortest of them all.")


def test_the_seed_draws_the_order_only(tmp_path: Path) -> None:
    path = wheel(tmp_path / "a.whl", **{f"pkg_{n}": MODULE.replace("shortest", n) for n in ("a", "b", "c", "d", "e")})
    orders = [tuple(p.summary for p in pairs.read(path, seed)) for seed in (1, 1, 2, 3)]
    assert orders[0] == orders[1]
    assert len(set(orders)) > 1
    assert len({frozenset(order) for order in orders}) == 1


# --- minilm: the metric


def score(vectors: list[list[float]], pair: list[int], explains: list[int]) -> float:
    return float(metric.score({"embedding": np.array(vectors, np.float32)}, {"pair": np.array(pair), "explains": np.array(explains)}))


def test_the_score_is_the_share_of_summaries_that_find_their_own_explanation() -> None:
    vectors = [[1, 0], [0.8, 0.6], [0, 1], [-0.6, 0.8]]
    assert score(vectors, [7, 7, 9, 9], [0, 1, 0, 1]) == 1.0
    assert score(vectors, [7, 9, 9, 7], [0, 1, 0, 1]) == 0.0
    assert score([*vectors, [0, -1], [0.1, 0.99]], [7, 7, 9, 9, 5, 5], [0, 1, 0, 1, 0, 1]) == pytest.approx(1 / 3)


# --- minilm: the network


class RandomWeights(dict[str, NDArray[np.float32]]):
    """A checkpoint's names and shapes; every part of the network shows in what comes out."""

    def __init__(self, vocabulary: int = 50, positions: int = 16) -> None:
        super().__init__()
        random = np.random.default_rng(0)
        width = encoder.WIDTH
        shapes = {f"embeddings.{n}_embeddings.weight": (k, width) for n, k in (("word", vocabulary), ("position", positions))}
        shapes["embeddings.token_type_embeddings.weight"] = (2, width)
        shapes |= {f"embeddings.LayerNorm.{part}": (width,) for part in ("weight", "bias")}
        for layer in (f"encoder.layer.{i}" for i in range(encoder.LAYERS)):
            linear = {f"attention.self.{n}": (width, width) for n in ("query", "key", "value")}
            linear |= {
                "attention.output.dense": (width, width),
                "intermediate.dense": (4 * width, width),
                "output.dense": (width, 4 * width),
            }
            for name, shape in linear.items():
                shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
            for name in ("attention.output.LayerNorm", "output.LayerNorm"):
                shapes |= {f"{layer}.{name}.weight": (width,), f"{layer}.{name}.bias": (width,)}
        for name, shape in shapes.items():
            spread = 1.0 if "embeddings" in name else 2 / shape[-1] ** 0.5 if len(shape) == 2 else 0.1
            middle = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            self[name] = random.normal(middle, spread, shape).astype(np.float32)


def linear(x: NDArray[np.float64], weights: RandomWeights, name: str) -> NDArray[np.float64]:
    result: NDArray[np.float64] = x @ weights[f"{name}.weight"].T.astype(np.float64) + weights[f"{name}.bias"]
    return result


def norm(x: NDArray[np.float64], weights: RandomWeights, name: str) -> NDArray[np.float64]:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + encoder.EPSILON)
    result: NDArray[np.float64] = scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]
    return result


def sentence_vector(ids: list[int], weights: RandomWeights) -> NDArray[np.float64]:
    """The papers' formulas for one sentence that fills its row, in float64."""
    tables = [weights[f"embeddings.{n}_embeddings.weight"].astype(np.float64) for n in ("word", "position", "token_type")]
    x = norm(tables[0][ids] + tables[1][: len(ids)] + tables[2][0], weights, "embeddings.LayerNorm")
    wide = encoder.WIDTH // encoder.HEADS
    for layer in (f"encoder.layer.{i}" for i in range(encoder.LAYERS)):
        query, key, value = (linear(x, weights, f"{layer}.attention.self.{n}") for n in ("query", "key", "value"))
        heads = []
        for part in (slice(h * wide, (h + 1) * wide) for h in range(encoder.HEADS)):
            scores = query[:, part] @ key[:, part].T / math.sqrt(wide)
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(shares / shares.sum(-1, keepdims=True) @ value[:, part])
        attended = linear(np.concatenate(heads, -1), weights, f"{layer}.attention.output.dense")
        x = norm(attended + x, weights, f"{layer}.attention.output.LayerNorm")
        inner = linear(x, weights, f"{layer}.intermediate.dense")
        inner = inner * (1 + np.vectorize(math.erf)(inner / math.sqrt(2))) / 2
        x = norm(linear(inner, weights, f"{layer}.output.dense") + x, weights, f"{layer}.output.LayerNorm")
    mean: NDArray[np.float64] = x.mean(0)
    return mean / np.linalg.norm(mean)


@pytest.fixture(scope="module")
def weights() -> RandomWeights:
    return RandomWeights()


@pytest.fixture(scope="module")
def session(weights: RandomWeights) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(encoder.build(weights).SerializeToString(), providers=["CPUExecutionProvider"])


def embed(session: onnxruntime.InferenceSession, ids: list[list[int]], mask: list[list[int]]) -> NDArray[np.float32]:
    fed = {"input_ids": np.array(ids, np.int64), "attention_mask": np.array(mask, np.int64)}
    result: NDArray[np.float32] = session.run(["embedding"], fed)[0]
    return result


def test_the_network_is_the_papers_formulas(session: onnxruntime.InferenceSession, weights: RandomWeights) -> None:
    ids = [3, 41, 5, 5, 0, 17]
    np.testing.assert_allclose(embed(session, [ids], [[1] * 6])[0], sentence_vector(ids, weights), atol=2e-5)


def test_what_fills_a_sentence_up_changes_nothing(session: onnxruntime.InferenceSession) -> None:
    alone = embed(session, [[3, 41, 5]], [[1, 1, 1]])
    filled = embed(session, [[3, 41, 5, 9, 9], [1, 2, 3, 4, 5]], [[1, 1, 1, 0, 0], [1] * 5])
    np.testing.assert_allclose(filled[0], alone[0], atol=1e-5)
    assert not np.allclose(filled[1], alone[0], atol=1e-2)


def test_the_graph_has_the_operators_that_passes_look_for(weights: RandomWeights) -> None:
    found = Counter(n.op_type for n in encoder.build(weights).graph.node)
    assert (found["MatMul"], found["LayerNormalization"], found["Softmax"]) == (6 * 8, 13, 6)


# --- minilm: the weights


def test_weights_are_read_from_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(MINILM))  # prepare.py imports its neighbours, as a script does
    prepare = script(MINILM, "prepare")
    header = {
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [16, 24]},
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "ids": {"dtype": "I64", "shape": [1], "data_offsets": [24, 32]},
    }
    text = json.dumps(header).encode()
    content = struct.pack("<Q", len(text)) + text + struct.pack("<6fq", 1, 2, 3, 4, 5, 6, 7)
    assert {k: v.tolist() for k, v in prepare.read_tensors(content).items()} == {"a": [[1, 2], [3, 4]], "b": [5, 6]}

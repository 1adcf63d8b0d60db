"""The ocr example's own metric and lines are what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import OCR, script

metric = script(OCR, "metric")
lines = script(OCR, "lines")

# --- ocr: the metric


@pytest.fixture
def alphabet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Class 0 is the blank, 1 to 26 are a to z, 27 is the space."""
    monkeypatch.setattr(metric, "characters", lambda: ["", *map(chr, range(ord("a"), ord("z") + 1)), " "])
    metric.decode.cache_clear()


def steps(text: str) -> list[int]:
    """`text` in the fixture's classes; `_` is the blank."""
    return [0 if c == "_" else 27 if c == " " else ord(c) - ord("a") + 1 for c in text]


@pytest.mark.parametrize(
    ("seen", "read"), [("____", ""), ("aa_ab", "aab"), ("_h_e_l_l_o_", "hello"), ("hello", "helo"), ("a  b", "a b"), ("a_ _b", "a b")]
)
def test_greedy_decoding_joins_repeats_then_drops_blanks(alphabet: None, seen: str, read: str) -> None:
    assert metric.decode(np.array(steps(seen), np.int64).tobytes()) == read


def test_characters_are_the_blank_the_listed_ones_and_the_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "characters.txt").write_text("疗\n'\n\u3000", encoding="utf-8")
    monkeypatch.setattr(metric, "__file__", str(tmp_path / "metric.py"))
    assert metric.characters.__wrapped__() == ["", "疗", "'", "\u3000", " "]


def slow_distance(a: str, b: str) -> int:
    """The definition, straight."""
    if not a or not b:
        return len(a) + len(b)
    return min(slow_distance(a[1:], b) + 1, slow_distance(a, b[1:]) + 1, slow_distance(a[1:], b[1:]) + (a[0] != b[0]))


@given(st.text("abc", max_size=5), st.text("abc", max_size=5))
def test_edit_distance_is_its_definition(a: str, b: str) -> None:
    assert metric.edit_distance(a, b) == slow_distance(a, b)


def test_the_score_weighs_characters_not_lines(alphabet: None) -> None:
    outputs = {"classes": np.array([steps("a_b_c_d_e_f_g_h_"), steps("z_______________")], np.int64)}
    assert metric.score(outputs, {"text": np.array(["abcdefgh", "yz"])}) == pytest.approx(0.9)


# --- ocr: the lines


def test_sentences_are_of_the_stated_length_and_the_networks_characters() -> None:
    random = np.random.default_rng(0)
    texts = [lines.sentence(random) for _ in range(300)]
    assert all(lines.LETTERS[0] <= len(t) <= lines.LETTERS[1] for t in texts)
    assert set("".join(texts)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 .-:/")
    assert texts[:20] == [lines.sentence(r) for r in [np.random.default_rng(0)] for _ in range(20)]


def test_a_picture_becomes_what_the_network_takes() -> None:
    picture = np.array([[0, 255]] * lines.HEIGHT, np.uint8)
    x = lines.as_input(picture)
    assert (x.shape, x.dtype) == ((3, lines.HEIGHT, lines.WIDTH), np.float32)
    assert np.array_equal(np.unique(x[:, :, 0]), [-1])
    assert np.array_equal(np.unique(x[:, :, 1]), [1])
    assert not x[:, :, 2:].any()

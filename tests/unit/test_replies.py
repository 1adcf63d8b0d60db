"""What a runner answers is believed in its form only after a look."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.runner import replies
from agent.runner.frames import Frame, encode
from agent.runner.process import Reply
from agent.runner.requests import Bench
from edgefarm.errors import ProtocolError
from edgefarm.model import Failure, FailureKind, Stage

_SUMMARY: dict[str, Any] = {
    "n": 3, "mean_ns": 2.5, "p50_ns": 2, "p90_ns": 3, "p99_ns": 3, "warmup_inferences": 4, "burst_p50_ns": [2, 3],
    "burst_min_ns": [1, 2], "disturbed": 0, "left_out": 0, "samples_per_s": 0.0, "regime": "flat", "unsettled": 0,
    "batches": [{"batch_size": 4, "n": 3, "mean_ns": 2.5, "p50_ns": 2, "unavailable": ""}],
}  # fmt: skip
_LAUNCH = {"do": "launch", "keys": ["a"], "plan": {"kind": "paced"}}
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def _samples(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


_ARCHIVE = _samples(**{"a": np.ones(3, np.uint64), "a.disturbed": np.zeros(3, np.bool_)})


def _checked(request: dict[str, Any], header: dict[str, Any], payload: bytes = b"") -> Any:
    return replies.checked(request, Frame(header, payload), Stage.RUN)


def test_every_request_has_a_shape() -> None:
    assert set(replies.SHAPES) == set(Bench().answers)


def test_a_launch_is_taken_as_it_is_and_what_was_not_asked_for_is_dropped() -> None:
    body = {"contenders": {"a": {**_SUMMARY, "failure": "none"}}, "more": 1}
    assert _checked(_LAUNCH, {"ok": body}, _ARCHIVE) == {"contenders": {"a": _SUMMARY}}


@pytest.mark.parametrize("key", _SUMMARY)
@pytest.mark.parametrize("value", [None, -1, 2**70, 10**400, "1", [], [0], float("inf"), float("nan"), True])
def test_no_number_of_a_launch_is_believed_unseen(key: str, value: Any) -> None:
    if key in ("burst_p50_ns", "burst_min_ns", "batches") and value == []:
        value = [1, None]
    body = {"contenders": {"a": {**_SUMMARY, key: value}}}
    with pytest.raises(ProtocolError, match=key):
        _checked(_LAUNCH, {"ok": body}, _ARCHIVE)


def test_no_contender_may_be_absent() -> None:
    with pytest.raises(ProtocolError, match="lacks a"):
        _checked(_LAUNCH, {"ok": {"contenders": {"b": _SUMMARY}}}, _ARCHIVE)
    with pytest.raises(ProtocolError, match="lacks p50_ns"):
        _checked(_LAUNCH, {"ok": {"contenders": {"a": {k: v for k, v in _SUMMARY.items() if k != "p50_ns"}}}}, _ARCHIVE)


@pytest.mark.parametrize(
    "archive",
    [
        b"", b"PK", _ARCHIVE[:-30], _ARCHIVE[:60] + b"\xff" * 20 + _ARCHIVE[80:],
        _samples(a=np.ones(3)), _samples(**{"a": np.ones(3), "a.disturbed": np.ones(3), "b": np.ones(3)}),
        _samples(**{"a": np.zeros(10 * 2**20), "a.disturbed": np.ones(3)}),
    ],
)  # fmt: skip
def test_samples_are_whole_and_do_not_swell(archive: bytes) -> None:
    with pytest.raises(ProtocolError, match="no archive of samples"):
        _checked(_LAUNCH, {"ok": {"contenders": {"a": _SUMMARY}}}, archive)


_ROWS = (
    None, [], ["a", "Conv", "cpu", -1, 1, ""], ["a", "Conv", "cpu", 1, 1], ["a", 1, "cpu", 1, 1, ""], ["a", "Conv", "cpu", True, 1, ""],
    ["a", "Conv", "cpu", float("inf"), 1, ""], ["a", "Conv", "cpu", 1, 1.5, ""],
)  # fmt: skip


@pytest.mark.parametrize("row", _ROWS)
def test_no_operator_of_a_profile_is_believed_unseen(row: Any) -> None:
    good = ["a", "Conv", "cpu", 1, 1, "f32"]
    body = {"operators": [good, ["b", "Relu", "cpu", 0, 1, ""]], "whole_ns": 2.5, "source": "s", "unavailable": ""}
    assert _checked({"do": "profile"}, {"ok": body}) == body
    with pytest.raises(ProtocolError, match="operators"):
        _checked({"do": "profile"}, {"ok": {**body, "operators": [good, row]}})


def test_a_failure_is_told() -> None:
    told = {"failure": {"kind": "oom", "detail": "no room\x1b[2J \ud800"}}
    assert _checked({"do": "load"}, told) == Failure(FailureKind.OOM, "no room\ufffd[2J ?", Stage.RUN)


@pytest.mark.parametrize("detail", ["", " \n"])
def test_a_failure_says_something(detail: str) -> None:
    told = {"failure": {"kind": "crash", "detail": detail}}
    assert _checked({"do": "placement"}, told) == Failure(FailureKind.CRASH, "the runner gave no reason", Stage.RUN)


@pytest.mark.parametrize(
    "told", ["oom", [], {}, {"kind": "oom"}, {"kind": "dance", "detail": ""}, {"kind": "oom", "detail": 1}, {"kind": ["oom"], "detail": ""}]
)
def test_a_failure_that_is_none(told: Any) -> None:
    with pytest.raises(ProtocolError, match="not a failure"):
        _checked({"do": "load"}, {"failure": told})


@pytest.mark.parametrize("kind", ["device_lost", "timeout", "unchanged"])
def test_what_a_runner_cannot_know_it_does_not_tell(kind: str) -> None:
    assert FailureKind(kind)
    with pytest.raises(ProtocolError, match=f"does not tell {kind}"):
        _checked({"do": "load"}, {"failure": {"kind": kind, "detail": ""}})


def test_shapes_may_have_open_axes_and_options_plain_values() -> None:
    load = {
        "load_ns": 1, "chosen": {"inference_precision": "f32"}, "provider": "", "resting": {"spin": 5, "fast": True},
        "inputs": [["x", "float32", [None, 3]]], "outputs": [],
    }  # fmt: skip
    assert _checked({"do": "load"}, {"ok": load}) == load
    probe = {"version": "1", "providers": {"cpu": {"delegate": "none", "fast": True, "threads": 2}}}
    assert _checked({"do": "probe"}, {"ok": probe}) == probe


@given(st.sampled_from(sorted(replies.SHAPES)), st.dictionaries(st.sampled_from(["ok", "failure"]), _JSON), st.binary(max_size=30))
def test_whatever_it_says_is_an_answer_that_can_travel_or_nonsense(verb: str, header: dict[str, Any], payload: bytes) -> None:
    try:
        found = _checked({"do": verb, "keys": ["a"]}, header, payload)
    except ProtocolError:
        return
    text = found.detail if isinstance(found, Failure) else json.dumps(Reply(found).body, allow_nan=False, ensure_ascii=False)
    assert encode({"text": text})
    assert text.encode()


@given(st.text())
def test_clean_text_is_fit_for_a_terminal_and_a_database(text: str) -> None:
    shown = replies.clean(text + "\ud800\x00\x1b\x9b")
    assert shown.encode().decode() == shown
    assert all(c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160) for c in shown)

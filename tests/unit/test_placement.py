"""Nodes that a library took back without a word."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.bench.placement import fallback_failure
from edgefarm.model import FailureKind, OperatorTime, ProfileResult, Stage, fallen_back

_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.mark.parametrize(
    ("provider", "placement", "nodes"),
    [
        (_CUDA, {_CUDA: 12}, 0),
        (_CUDA, {_CUDA: 12, _CPU: 3}, 3),
        (_CUDA, {_CPU: 15}, 15),
        (_CUDA, {}, 0),  # nothing is known
        ("", {_CPU: 15}, 0),  # nothing was asked
        ("none", {"none": 4}, 0),
    ],
)
def test_nodes_elsewhere_are_counted(provider: str, placement: Mapping[str, int], nodes: int) -> None:
    assert fallen_back(provider, placement) == nodes
    assert (fallback_failure(provider, placement) is None) == (nodes == 0)


def test_the_failure_says_what_was_asked_and_what_came() -> None:
    failure = fallback_failure(_CUDA, {_CUDA: 9, _CPU: 2, "TensorrtExecutionProvider": 1})
    assert failure is not None
    assert (failure.kind, failure.stage) == (FailureKind.UNSUPPORTED_OP, Stage.RUN)
    for part in (_CUDA, "2 on CPUExecutionProvider", "1 on TensorrtExecutionProvider", "of 12 nodes", "on_fallback"):
        assert part in failure.detail


@given(st.dictionaries(st.sampled_from([_CUDA, _CPU, "none"]), st.integers(1, 1000)), st.sampled_from(["", _CUDA, _CPU]))
def test_no_more_nodes_fall_back_than_there_are(placement: dict[str, int], provider: str) -> None:
    nodes = fallen_back(provider, placement)
    assert 0 <= nodes <= sum(placement.values())
    if provider:
        assert nodes + placement.get(provider, 0) == sum(placement.values())


def test_the_share_is_one_of_time() -> None:
    operators = (OperatorTime("a", "Conv", _CUDA, 30.0), OperatorTime("b", "NonZero", _CPU, 90.0))
    assert ProfileResult("k", operators, provider=_CUDA).fallback_share == 0.75
    assert ProfileResult("k", operators, provider="").fallback_share is None
    assert ProfileResult("k", (), {_CPU: 3}, provider=_CUDA).fallback_share is None

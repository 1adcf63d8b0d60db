"""What ONNX Runtime's trace says about its nodes."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.runtimes import CUT_OFF_NS, WARM_UP, RuntimeFailure

if importlib.util.find_spec("onnxruntime") is None:
    pytest.skip("needs onnxruntime: pip install 'edgefarm[onnxruntime]'", allow_module_level=True)

from agent.runtimes.onnxruntime import operator_times

_CPU = "CPUExecutionProvider"


def _node(name: str, kind: str, ts: int, dur: int, provider: str = _CPU, index: str = "0") -> dict[str, Any]:
    arguments = {"op_name": kind, "provider": provider, "node_index": index}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": arguments}


def _trace(*runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = [{"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 9, "args": {}}]
    for run in runs:
        events += [*run, {"cat": "Session", "name": "model_run", "ts": 0, "dur": 999, "args": {}}]
    return events


def test_runs_of_the_warm_up_do_not_count() -> None:
    slow, fast = [_node("a", "Conv", 10, 900)], [_node("a", "Conv", 10, 20)]
    (found,) = operator_times(_trace(*[slow] * WARM_UP, fast, fast, fast))
    assert (found.name, found.kind, found.provider, found.calls) == ("a", "Conv", _CPU, 1)
    assert found.mean_ns == 20_000 + CUT_OFF_NS


def test_fences_and_other_events_are_no_nodes() -> None:
    fence = {"cat": "Node", "name": "a_fence_before", "ts": 9, "dur": 700, "args": {"op_name": "Conv"}}
    run = [fence, _node("a", "Conv", 10, 20), {"cat": "Session", "name": "SequentialExecutor::Execute", "ts": 9, "dur": 30, "args": {}}]
    assert [o.name for o in operator_times(_trace(*[run] * 3))] == ["a"]


def test_a_loop_keeps_what_it_took_itself() -> None:
    body = [_node("add", "Add", 20, 10), _node("mul", "Mul", 31, 5), _node("add", "Add", 50, 10)]
    run = [*body, _node("loop", "Loop", 10, 80), _node("after", "Relu", 90, 3)]
    found = {o.name: o for o in operator_times(_trace(*[run] * 4))}
    assert found["add"].calls == 2
    assert found["add"].mean_ns == 20_000 + 2 * CUT_OFF_NS
    assert found["loop"].mean_ns == 80_000 - 25_000 + CUT_OFF_NS - 3 * CUT_OFF_NS
    assert found["after"].mean_ns == 3_000 + CUT_OFF_NS


def test_a_node_without_a_name_is_told_by_its_place() -> None:
    run = [_node("", "Conv", 10, 20, index="3"), _node("", "Conv", 40, 20, index="4")]
    assert [o.name for o in operator_times(_trace(*[run] * 3))] == ["Conv 3", "Conv 4"]


def test_the_same_node_may_be_elsewhere() -> None:
    run = [_node("a", "Conv", 10, 20), _node("copy", "MemcpyToHost", 40, 5, "CUDAExecutionProvider")]
    assert {o.provider for o in operator_times(_trace(*[run] * 3))} == {_CPU, "CUDAExecutionProvider"}


def test_a_trace_that_ends_too_early_is_no_profile() -> None:
    with pytest.raises(RuntimeFailure, match="no whole inference"):
        operator_times(_trace(*[[_node("a", "Conv", 10, 20)]] * WARM_UP))


@given(st.lists(st.integers(0, 500), min_size=1, max_size=30), st.integers(1, 5))
def test_of_nodes_one_after_the_other_no_time_is_lost(durations: list[int], count: int) -> None:
    run, at = [], 0
    for index, duration in enumerate(durations):
        run.append(_node(f"n{index}", "Op", at, duration))
        at += duration
    found = operator_times(_trace(*[run] * (WARM_UP + count)))
    assert len(found) == len(durations)
    assert sum(o.mean_ns for o in found) == pytest.approx(1e3 * sum(durations) + CUT_OFF_NS * len(durations))


@given(st.recursive(st.integers(1, 50), lambda inner: st.lists(inner, min_size=1, max_size=4), max_leaves=12))
def test_of_nodes_within_nodes_no_time_counts_twice(tree: Any) -> None:
    run: list[dict[str, Any]] = []

    def lay(node: Any, at: int) -> int:
        """Its events from `at` on; returns when it ends. A list is a node that runs others, with 1 us before each and after them."""
        if isinstance(node, int):
            run.append(_node(f"n{len(run)}", "Op", at, node))
            return at + node
        end = at
        for inner in node:
            end = lay(inner, end + 1)
        run.append(_node(f"n{len(run)}", "Loop", at, end + 1 - at))
        return end + 1

    whole = lay(tree, 0)
    found = operator_times(_trace(*[run] * 3))
    assert len(found) == len(run)
    assert sum(o.mean_ns for o in found) <= 1e3 * whole + CUT_OFF_NS * len(run)
    assert sum(o.mean_ns for o in found) >= 1e3 * whole - CUT_OFF_NS * len(run)

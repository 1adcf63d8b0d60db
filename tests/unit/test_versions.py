"""What agents of other versions are told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.versions import features_of, lacking, refused, unable, why_too_old
from edgefarm import __version__
from edgefarm.model import FEATURES, LEAST_PROTOCOL, PROTOCOL, DeploymentState, FailureKind, LatencyWork, Scenario
from tests.fakes.orders import a_deployment, a_device, a_hello, a_memory_order, an_accuracy_order, an_order


def test_two_protocols_before_ours_are_spoken() -> None:
    assert max(1, PROTOCOL - 2) == LEAST_PROTOCOL


@pytest.mark.parametrize(("least", "new_enough", "too_old"), [(1, {1, 2, 9}, {0}), (2, {2, 3, 4}, {0, 1}), (7, {7, 8, 9, 10}, {0, 1, 6})])
def test_newer_agents_are_new_enough(least: int, new_enough: set[int], too_old: set[int]) -> None:
    assert not any(why_too_old(a_hello(protocol=p), least) for p in new_enough)
    assert all(why_too_old(a_hello(protocol=p), least) for p in too_old)


def test_the_reason_names_both_versions_and_what_to_do() -> None:
    reason = why_too_old(a_hello(replace(a_device(), agent_version="0.0.7"), protocol=0))
    assert f"agent 0.0.7 speaks protocol 0, this controller ({__version__}) {PROTOCOL}" in reason
    assert "install.sh --upgrade" in reason
    assert "of an unknown version" in why_too_old(a_hello(protocol=0))


@pytest.mark.parametrize(("order", "feature"), [(an_order(), "latency"), (a_memory_order(), "memory"), (an_accuracy_order(), "accuracy")])
def test_every_kind_of_order_has_its_feature(order: object, feature: str) -> None:
    assert features_of(order) == {feature}  # type: ignore[arg-type]
    assert feature in FEATURES


@pytest.mark.parametrize(
    ("scenario", "feature"),
    [
        (Scenario("paced", 30.0), "latency-paced"),
        (Scenario("offline", batch_sizes=(1, 8)), "latency-offline"),
        (Scenario("sustained", duration_ns=10**9), "latency-sustained"),
        (Scenario("server", 30.0), "latency-server"),
    ],
)
def test_older_agents_would_measure_another_scenario(scenario: Scenario, feature: str) -> None:
    order = an_order()
    assert isinstance(order.work, LatencyWork)
    assert features_of(replace(order, work=replace(order.work, scenario=scenario))) == {feature}


def test_older_agents_keep_no_window_and_take_every_fallback() -> None:
    assert features_of(replace(a_memory_order(), window="22:00-05:00")) == {"memory", "window"}
    order = an_order()
    assert isinstance(order.work, LatencyWork)
    strict = replace(order, work=replace(order.work, fail_on_fallback=True), window="22:00-05:00")
    assert features_of(strict) == {"latency", "fallback", "window"}
    assert {"window", "fallback"} <= set(FEATURES)


def test_what_an_agent_lacks() -> None:
    assert lacking(a_hello()) == frozenset()
    assert lacking(replace(a_hello(), features=("latency", "telepathy"))) == set(FEATURES) - {"latency"}


def test_what_comes_of_an_order_that_nobody_knows() -> None:
    failure = unable(replace(a_device(), agent_version="0.0.7"), "memory")
    assert failure.kind is FailureKind.UNSPECIFIED
    assert failure.detail.startswith("the agent of 'bench-1' (version 0.0.7) does not know 'memory': upgrade it")


def test_a_deployment_needs_a_feature_too() -> None:
    deployment = replace(a_deployment(), id="d1", generation=4)
    assert refused(deployment, a_device(), frozenset({"memory"})) is None
    status = refused(deployment, a_device(), frozenset({"activate-file"}))
    assert status is not None
    assert (status.id, status.generation, status.state) == ("d1", 4, DeploymentState.FAILED)
    assert "does not know 'activate-file'" in status.reason

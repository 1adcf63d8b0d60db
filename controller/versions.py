"""What agents of other versions can be told. Pure.

Newer agents speak our protocol to us; so do those of the two protocols before it. Whatever an agent does not do is among the features
that its Hello lacks: it is never ordered there.
"""

from __future__ import annotations

from edgefarm import __version__
from edgefarm.model import (
    FEATURES,
    LEAST_PROTOCOL,
    PROTOCOL,
    AccuracyWork,
    Deployment,
    DeploymentState,
    DeploymentStatus,
    Device,
    EnergyWork,
    Failure,
    FailureKind,
    Hello,
    LatencyWork,
    MemoryWork,
    Order,
    ProfileWork,
    Stage,
)

_WORK_FEATURES = {MemoryWork: "memory", AccuracyWork: "accuracy", EnergyWork: "energy", ProfileWork: "profile"}
_UPGRADE = "upgrade it: install.sh --upgrade on the device, or pip install --upgrade 'edgefarm[agent]'"


def why_too_old(hello: Hello, least: int = LEAST_PROTOCOL) -> str:
    """Why an agent is told nothing until it is upgraded; empty if it is new enough."""
    if hello.protocol >= least:
        return ""
    spoken = f"{least} to {PROTOCOL}" if least < PROTOCOL else f"{PROTOCOL}"
    theirs = f"agent {hello.device.agent_version or 'of an unknown version'} speaks protocol {hello.protocol}"
    return f"{theirs}, this controller ({__version__}) {spoken}: the agent is too old: {_UPGRADE}"


def lacking(hello: Hello) -> frozenset[str]:
    """Features of ours that an agent does not have."""
    return frozenset(FEATURES) - set(hello.features)


def features_of(order: Order) -> frozenset[str]:
    """The features that an agent needs for an order."""
    work = order.work
    needed = {"window"} if order.window else set()
    if not isinstance(work, LatencyWork):
        return frozenset({*needed, _WORK_FEATURES[type(work)]})
    scenario = work.scenario
    plain = scenario.kind == "paced" and scenario.rate_per_s is None
    fallback = {"fallback"} if work.fail_on_fallback else set()
    return frozenset({*needed, *fallback, "latency" if plain else f"latency-{scenario.kind}"})


def unable(device: Device, feature: str) -> Failure:
    """What comes of an order that the agents of its devices don't know how to carry out."""
    return Failure(FailureKind.UNSPECIFIED, _too_old_for(device, feature), Stage.RUN)


def refused(deployment: Deployment, device: Device, lacks: frozenset[str]) -> DeploymentStatus | None:
    """What comes of a deployment that a device's agent does not know how to activate; None if it does."""
    feature = f"activate-{deployment.activate}"
    if feature not in lacks:
        return None
    artifact, reason = deployment.candidate.artifact.digest, _too_old_for(device, feature)
    return DeploymentStatus(
        deployment.id, deployment.device, deployment.model, deployment.generation, DeploymentState.FAILED, artifact, reason=reason
    )


def _too_old_for(device: Device, feature: str) -> str:
    return f"the agent of {device.name!r} (version {device.agent_version or 'unknown'}) does not know {feature!r}: {_UPGRADE}"

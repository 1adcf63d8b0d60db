"""What a device may touch: the digests, and the bytes it may push, that its open orders and deployments need. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from edgefarm.model import AccuracyWork, Artifact, Candidate, Deployment, LatencyWork, Order

_MIB = 2**20
_SAMPLE_BYTES = 8
_SHORTEST_INFERENCE_NS = 500


def digests_of_order(order: Order) -> frozenset[str]:
    """Everything that a device must fetch to carry out `order`."""
    work = order.work
    if isinstance(work, LatencyWork):
        candidates, others = [c.candidate for c in work.contenders], [work.inputs]
    elif isinstance(work, AccuracyWork):
        candidates, others = [work.contender.candidate], list(work.shards)
    else:
        candidates, others = [work.contender.candidate], [work.inputs]
    return frozenset(others) | digests_of_candidates(candidates)


def digests_of_deployment(deployment: Deployment) -> frozenset[str]:
    """Everything that a device must fetch to activate `deployment`."""
    golden = frozenset([deployment.golden.digest]) if deployment.golden else frozenset()
    return golden | digests_of_candidates([deployment.candidate])


def digests_of_candidates(candidates: Iterable[Candidate]) -> frozenset[str]:
    """The files of all artifacts."""
    return frozenset(digest for c in candidates for digest in _files(c.artifact))


def _files(artifact: Artifact) -> Iterable[str]:
    return (f.digest for f in artifact.files)


def push_quota(order: Order) -> int:
    """Bytes that the results of `order` may take: raw samples, or outputs and golden pack."""
    work = order.work
    if isinstance(work, AccuracyWork):
        return 2 * work.output_bytes_limit + 64 * _MIB
    if not isinstance(work, LatencyWork):
        return _MIB
    length_ns = max(work.bursts * work.burst_ns, work.scenario.duration_ns)
    inferences = length_ns // _SHORTEST_INFERENCE_NS + work.bursts * work.min_inferences
    return len(work.launches) * (_MIB + len(work.contenders) * inferences * _SAMPLE_BYTES)

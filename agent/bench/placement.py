"""Whether a candidate ran where its options ask: libraries take nodes back to the CPU without a word."""

from __future__ import annotations

from collections.abc import Mapping

from edgefarm.model import Failure, FailureKind, Stage, fallen_back


def fallback_failure(provider: str, placement: Mapping[str, int]) -> Failure | None:
    """The failure of a candidate whose nodes may not run elsewhere; None where all of them run there, or no placement is known.

    Args:
        provider: what its options ask for by name, empty if nothing.
        placement: nodes per execution provider or delegate.
    """
    nodes = fallen_back(provider, placement)
    if not nodes:
        return None
    elsewhere = ", ".join(f"{count} on {name}" for name, count in sorted(placement.items()) if name != provider)
    detail = (
        f"asked for {provider}, but of {sum(placement.values())} nodes {elsewhere} ran: it can't run those; "
        "leave this candidate out, or let it count with measure.on_fallback: flag"
    )
    return Failure(FailureKind.UNSUPPORTED_OP, detail, Stage.RUN)

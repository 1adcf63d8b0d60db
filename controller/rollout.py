"""From choices to what devices are told to run. Pure."""

from __future__ import annotations

import hashlib

from controller.evidence import Evidence, Group
from controller.selection import Choice
from edgefarm.digest import canonical_json
from edgefarm.model import Deployment, Golden

# Devices of one class with equal runtimes and options differ by the order of float additions at most.
RELATIVE_TOLERANCE = 1e-3
ABSOLUTE_TOLERANCE = 1e-6


def statement(group: Group, choice: Choice, evidence: Evidence, activate: str) -> Deployment | None:
    """What `choice.device` is to run; None without a winner. The farm numbers its generation."""
    winner = choice.winner
    if winner is None or activate == "none":
        return None
    result = evidence.accuracy.get(winner.key)
    golden = Golden(result.golden, RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE) if result and result.golden else None
    identity = canonical_json([group.run, choice.device, group.model, winner.key, activate])
    name = hashlib.sha256(identity).hexdigest()[:16]
    return Deployment(name, choice.device, group.model, 0, winner.variant, winner.candidate, activate, golden)

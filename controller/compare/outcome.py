"""From findings on devices to one answer and one exit code. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from controller.compare.judging import Finding
from controller.compare.rules import Gate, Rules
from edgefarm.errors import BeyondLimit, DeviceLost, EdgefarmError, Inconclusive, NoFeasible
from edgefarm.statistics import Relation

# The worst answer of any device is that of the fleet.
_WORST_FIRST = (Relation.SLOWER, Relation.INCONCLUSIVE, Relation.SAME, Relation.FASTER)


def overall(findings: Sequence[Finding]) -> Relation:
    """Slower if any device is; else inconclusive if any is; else same if any is; else faster. No device: inconclusive."""
    said = {f.relation for f in findings}
    return next((r for r in _WORST_FIRST if r in said), Relation.INCONCLUSIVE)


def told(finding: Finding, rules: Rules) -> str:
    """One device's answer in words: `slower by 3.1 % (2.6 to 3.6)`."""
    if finding.ratio is None or not finding.ratio.known:
        return f"inconclusive: {finding.reason}"
    change = 1 / finding.ratio.value - 1
    ends = sorted(1 / e - 1 if e > 0 else float("inf") for e in (finding.ratio.low, finding.ratio.high))
    spread = f"{100 * ends[0]:+.2f} to {100 * ends[1]:+.2f} % time"
    if finding.relation is Relation.SAME:
        return f"same within {rules.margin:.2%} ({spread})"
    if finding.relation is Relation.INCONCLUSIVE:
        return f"inconclusive ({spread}): {finding.reason}"
    return f"{finding.relation.value} by {100 * abs(change):.2f} % ({spread})"


def summary(findings: Sequence[Finding], lost: Mapping[str, str]) -> str:
    """All devices in one line."""
    counts = Counter(f.relation for f in findings)
    words = [f"{r.value} on {counts[r]}" for r in _WORST_FIRST if counts[r]]
    gone = [f"{len(lost)} lost"] if lost else []
    of = len(findings) + len(lost)
    return f"{', '.join(words + gone) or 'nothing was measured'} of {of} device{'s' if of != 1 else ''}"


def problem(findings: Sequence[Finding], lost: Mapping[str, str], rules: Rules, allow_lost: float = 0.0) -> EdgefarmError | None:
    """The documented end that applies first; None: exit code 0.

    A side that does not run somewhere is 3, a lost device 4, surely beyond a limit 7, not to be said 8. Without limits an answer is an
    answer: slower ends with 0 too.
    """
    if broken := [f for f in findings if f.failed]:
        return NoFeasible("; ".join(f"{f.device}: {f.reason}" for f in broken))
    if len(lost) > allow_lost * (len(findings) + len(lost)):
        return DeviceLost("; ".join(f"{name}: {why}" for name, why in lost.items()))
    if beyond := [f for f in findings if Gate.BEYOND in (f.slowdown, f.energy_gate)]:
        return BeyondLimit("; ".join(f"{f.device}: {_beyond(f, rules)}" for f in beyond))
    if unsure := [f for f in findings if _unsure(f, rules)]:
        return Inconclusive("; ".join(f"{f.device}: {_why_unsure(f, rules)}" for f in unsure))
    return None if findings else Inconclusive("no device was compared")


def _beyond(finding: Finding, rules: Rules) -> str:
    told_ = []
    if finding.slowdown is Gate.BEYOND and rules.max_slowdown is not None:
        told_.append(f"{told(finding, rules)}, the limit is {rules.max_slowdown:.2%}")
    if (
        finding.energy_gate is Gate.BEYOND
        and finding.energy is not None
        and finding.energy.increase is not None
        and rules.max_energy is not None
    ):
        told_.append(f"{finding.energy.increase.value:+.2%} energy per inference, the limit is {rules.max_energy:.2%}")
    return "; ".join(told_)


def _unsure(finding: Finding, rules: Rules) -> bool:
    if rules.max_slowdown is None and rules.max_energy is None:
        return finding.relation is Relation.INCONCLUSIVE
    return Gate.UNKNOWN in (finding.slowdown, finding.energy_gate)


def _why_unsure(finding: Finding, rules: Rules) -> str:
    if finding.slowdown is Gate.UNKNOWN or finding.energy is None:
        return told(finding, rules)
    increase = finding.energy.increase
    return finding.energy.reason if increase is None else f"energy changed by {increase.low:+.2%} to {increase.high:+.2%}"

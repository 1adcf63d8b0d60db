"""Where a variant comes from: one step per pass that changed something."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgefarm.model import Scalar


@dataclass(frozen=True)
class LineageStep:
    """One pass that made `parent` into the next artifact.

    Attributes:
        parent: digest of what it read.
        parameters: all of them, defaults included.
        tool_versions: distribution -> version.
        seconds: duration of pass and checks when they ran (a cache hit keeps it).
        changed: what the pass really changed, for people.
        drift: the largest of an output from the parent's over the probe samples (`optimizer.drift`); None = not compared.
    """

    parent: str
    pass_name: str
    parameters: Mapping[str, Scalar]
    tool_versions: Mapping[str, str]
    seconds: float
    changed: str
    drift: float | None = None

    def as_json(self) -> dict[str, Any]:
        """As the report holds it."""
        return {
            "pass": self.pass_name,
            "parameters": dict(self.parameters),
            "seconds": self.seconds,
            "changed": self.changed,
            "drift": self.drift,
            "parent": self.parent,
            "tool_versions": dict(self.tool_versions),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LineageStep:
        """Inverse of `as_json`."""
        names = ("parent", "parameters", "tool_versions", "seconds", "changed")
        return cls(pass_name=value["pass"], drift=value.get("drift"), **{name: value[name] for name in names})

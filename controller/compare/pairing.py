"""Which candidate stands for each side on each device. Pure but for the builds, which the caller takes in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from controller.config.fleet import Target
from controller.evidence import Entry, Group
from controller.fleetplan import OWN_RUNTIME, Build, Unable
from edgefarm.model import Candidate, DeviceStatus


@dataclass(frozen=True)
class Given:
    """One side.

    Attributes:
        anywhere: the build that is meant on every device; or else
        by_device: the very candidate of each, with its variant's name.
    """

    name: str
    anywhere: Build | None = None
    by_device: Mapping[str, tuple[Candidate, str]] | None = None

    def build(self, device: str) -> Build | None:
        """The build that is meant on a device; None: the run did not have it there."""
        if self.anywhere is not None:
            return self.anywhere
        found = (self.by_device or {}).get(device)
        return None if found is None else Build(found[0].artifact, found[1], found[0].io)

    def candidate(self, device: str) -> Candidate | None:
        """The candidate that a run measured there."""
        found = (self.by_device or {}).get(device)
        return found[0] if found else None


Grouping = Callable[[Build, Build, tuple[Target, DeviceStatus]], Group | Unable]


def pair(base: Given, new: Given, device: tuple[Target, DeviceStatus], grouped: Grouping) -> Group | str:
    """The group that compares both sides on one device, two entries; or why they can't be compared there."""
    target, _ = device
    first, second = base.build(target.name), new.build(target.name)
    for side, build in ((base, first), (new, second)):
        if build is None:
            return f"{side.name}: the run has no such variant on {target.name}"
    assert first is not None
    assert second is not None
    group = grouped(first, second, device)
    if isinstance(group, Unable):
        return group.reason
    chosen_base = _chosen(group, first, base.candidate(target.name), None)
    chosen_new = _chosen(group, second, new.candidate(target.name), chosen_base)
    if chosen_base is None or chosen_new is None:
        side = base if chosen_base is None else new
        return f"no runtime of {target.name} opens {side.name} ({(first if side is base else second).artifact.format})"
    entries = (replace(chosen_base, variant=base.name, baseline=True), replace(chosen_new, variant=new.name, baseline=False))
    return replace(group, entries=entries, constraints={})


def _chosen(group: Group, build: Build, measured: Candidate | None, like: Entry | None) -> Entry | None:
    """How a build runs: as its run measured it, else as the other side does, else in its format's own runtime, else as it can."""
    own = [e for e in group.entries if e.candidate.artifact.digest == build.artifact.digest]
    if measured is not None:
        own = [e for e in own if e.key == measured.key] or own

    def rank(entry: Entry) -> tuple[bool, bool, bool]:
        alike = like is not None and entry.candidate.runtime == like.candidate.runtime
        equal = alike and like is not None and dict(entry.candidate.options) == dict(like.candidate.options)
        return not equal, not alike, entry.candidate.runtime != OWN_RUNTIME.get(build.artifact.format)

    return min(own, key=rank, default=None)

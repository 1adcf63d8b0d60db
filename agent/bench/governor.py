"""Sets the CPU frequency governor for a measurement, and gives it back, also after the agent has died.

Before the first change a file says what was before; it is removed once everything is as it was. An agent that starts and finds such a
file of this boot gives back what it says. https://docs.kernel.org/admin-guide/pm/cpufreq.html
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from agent.sensors.files import text
from edgefarm.digest import atomic_write

_POLICIES = "sys/devices/system/cpu"
_BOOT = "proc/sys/kernel/random/boot_id"


@contextlib.contextmanager
def governed(root: Path, wanted: str, keep: Path | None, refused: Callable[[str, str], None]) -> Iterator[None]:
    """Inside the block all policies have the governor `wanted`, or none was changed and `refused("governor_set", reason)` was called.

    Args:
        root: `/`, or a copied tree.
        wanted: e.g. `performance`; empty: none is set.
        keep: the file that says what was before, in a folder that survives the agent; None: nothing may be changed.
        refused: takes the name of what was not done and why.
    """
    if not wanted or keep is None:
        yield
        return
    give_back(root, keep)
    if reason := _set(root, wanted, keep):
        give_back(root, keep)
        refused("governor_set", reason)
    try:
        yield
    finally:
        give_back(root, keep)


def give_back(root: Path, keep: Path) -> None:
    """Undoes what `keep` says was changed, and removes it; nothing to do without that file.

    A policy that somebody has changed since is left alone, and so is a device that was booted since: its governors are new anyway.
    """
    try:
        said = json.loads(keep.read_text())
        before, ours, boot = dict(said["before"]), str(said["set"]), said["boot"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):  # damaged: it can't say anything
        keep.unlink(missing_ok=True)
        return
    if boot == (text(root / _BOOT) or ""):
        for name, governor in before.items():
            path = root / _POLICIES / name / "scaling_governor"
            if text(path) == ours:
                with contextlib.suppress(OSError):  # the core is gone, or the right to change it
                    path.write_text(governor)
    keep.unlink(missing_ok=True)


def _set(root: Path, wanted: str, keep: Path) -> str:
    """Sets all policies; returns why not, '' if they are set."""
    before = _governors(root)
    if not before:
        return f"{wanted!r} can't be set: no cpufreq in /sys/devices/system/cpu"
    changed = {name: governor for name, governor in before.items() if governor != wanted}
    if not changed:
        return ""
    first = root / _POLICIES / next(iter(changed)) / "scaling_governor"
    offered = (text(first.with_name("scaling_available_governors")) or wanted).split()
    if wanted not in offered:
        return f"{wanted!r} is no governor of this device; it has {', '.join(offered)}"
    if not os.access(first, os.W_OK):
        return f"{wanted!r} can't be set: the agent's user may not write {first}; it stays {changed[next(iter(changed))]!r}"
    atomic_write(keep, json.dumps({"boot": text(root / _BOOT) or "", "set": wanted, "before": changed}).encode())
    for name in changed:
        path = root / _POLICIES / name / "scaling_governor"
        try:
            path.write_text(wanted)
        except OSError as error:
            return f"{wanted!r} can't be set: {path}: {error.strerror}"
    return ""


def _governors(root: Path) -> Mapping[str, str]:
    """By the folder of the core, below `sys/devices/system/cpu`."""
    folder = root / _POLICIES
    found = {str(p.relative_to(folder)): text(p / "scaling_governor") for p in sorted(folder.glob("cpu[0-9]*/cpufreq"))}
    return {name: governor for name, governor in found.items() if governor}

"""Two slots per model and one link: a device runs the old model or the new one, whole, whatever is cut or killed.

    models/<model>/a, b          a slot: the artifact's files and deployment.json
    models/<model>/current       -> a or b, flipped by one atomic rename
    models/<model>/ledger.json   generations, what ended and why, what is being done right now

`current` alone says what runs. The ledger's intent, written before the first step, lets recovery tell what a kill left behind:
a new deployment counts as committed if and only if the link points at it.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.cache import check_name, link_or_copy
from agent.identity import FolderLock
from agent.ledger import Ended, Intent, Ledger, Statement, describe, status_of_ended
from edgefarm.digest import atomic_write, digest_file, sync_directory
from edgefarm.errors import EdgefarmError, NeedsUpgrade, NotFound, ProtocolError, UserError
from edgefarm.model import Deployment, DeploymentState, DeploymentStatus, Failure, FileEntry

_LOG = logging.getLogger(__name__)
_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_STAGING, _DISCARD, _LEDGER, _STATEMENT = ".staging", ".discard", "ledger.json", "deployment.json"

Obtain = Callable[[FileEntry], Path]
Check = Callable[[Deployment, Path], "Failure | None"]


class Slots:
    """The deployed models of one device.

    Args:
        root: the folder `models`.
        device: the device's name, for the statuses.
        step: called with a step's name before each step that changes the disk (tests cut there).
    """

    def __init__(self, root: Path, device: str, step: Callable[[str], None] = lambda _: None) -> None:
        self._root, self._device, self._step = root, device, step
        root.mkdir(parents=True, exist_ok=True)

    def recover(self) -> None:
        """Brings every model to a whole state after whatever happened before; call it once at the start.

        One that a newer agent left in a form of its own stays as it is: what runs there goes on.
        """
        with self._locked():
            for folder in self._models():
                try:
                    self._recover(folder)
                except NeedsUpgrade as error:
                    _LOG.error("%s", error)

    def models(self) -> list[str]:
        """Names of the models that were ever deployed here."""
        return [f.name for f in self._models()]

    def statuses(self) -> tuple[DeploymentStatus, ...]:
        """What runs, and what ended, for every model: the committed one last. Nothing of one that only a newer agent understands."""
        found: list[DeploymentStatus] = []
        for folder in self._models():
            try:
                ledger = self._ledger(folder)
            except NeedsUpgrade:
                continue
            path = str(self._path(folder) or "")
            found += [status_of_ended(folder.name, self._device, k, e, path) for k, e in ledger.ended.items()]
            current = self._statement(self._active(folder))
            if current is not None and current.id not in ledger.ended:
                found.append(self._committed(folder, current))
        return tuple(found)

    def running(self) -> dict[str, Statement]:
        """What every model's link points at, by model."""
        active = {f.name: self._statement(self._active(f)) for f in self._models()}
        return {model: statement for model, statement in active.items() if statement is not None}

    def stamp(self) -> tuple[tuple[str, int], ...]:
        """Changes whenever a deployment's state does; cheap."""
        return tuple((f.name, _modified(f / _LEDGER)) for f in self._models())

    def known(self, deployment: Deployment) -> DeploymentStatus | None:
        """The status of a deployment that needs no more work: it is committed, ended, or older than what was seen already.

        Raises:
            NeedsUpgrade: a newer agent left the model in a form of its own.
        """
        folder = self._folder(deployment.model)
        ledger, current = self._ledger(folder), self._statement(self._active(folder))
        if deployment.id in ledger.ended:
            return status_of_ended(
                deployment.model, self._device, deployment.id, ledger.ended[deployment.id], str(self._path(folder) or "")
            )
        if current is not None and current.id == deployment.id and current.generation == deployment.generation:
            return self._committed(folder, current)
        newest = max(ledger.generation, current.generation if current else 0)
        if deployment.generation > newest or (deployment.generation == newest and self._interrupted(ledger, current)):
            return None
        reason = f"generation {deployment.generation} is not above {newest}, which this device has seen"
        return self._status(deployment, DeploymentState.SUPERSEDED, reason)

    def activate(self, deployment: Deployment, obtain: Obtain, check: Check) -> DeploymentStatus:
        """Stages, checks and switches to `deployment`; on any failure the old one stays and the reason is remembered.

        Args:
            obtain: gives a verified local file for an entry of the artifact.
            check: runs the golden inputs through the staged file, in a fresh runner.
        """
        try:
            folder = self._folder(deployment.model)
        except ProtocolError as error:
            return self._status(deployment, DeploymentState.FAILED, str(error))
        with self._locked():
            if (status := self.known(deployment)) is not None:
                return status
            folder.mkdir(exist_ok=True)
            _let_group_read(self._root, folder)
            try:
                reason = self._activate(folder, deployment, obtain, check)
            except (OSError, EdgefarmError) as error:
                reason = str(error)
            if reason:
                return self._fail(folder, deployment, reason)
            current = self._statement(self._active(folder))
            assert current is not None
            return self._committed(folder, current)

    def roll_back(self, model: str) -> DeploymentStatus:
        """Goes back to the other slot, offline, and pins it until the controller sends a newer generation.

        Raises:
            UserError: there is nothing to go back to, it is damaged, or only a newer agent understands it.
        """
        folder = self._folder(model)
        with self._locked():
            current, other = self._statement(self._active(folder)), self._statement(self._free(folder))
            ledger = self._ledger(folder)
            if current is None:
                raise UserError(f"{model}: nothing is deployed on this device")
            if other is None or other.id in ledger.ended:
                raise UserError(f"{model}: there is no earlier deployment to go back to")
            if not self._whole(self._free(folder), other):
                raise UserError(f"{model}: the earlier deployment in {self._free(folder)} is damaged on disk")
            self._write(folder, ledger.begin(Intent("rollback", self._free(folder).name, current.id, current.generation)))
            self._finish_rollback(folder)
            return self._committed(folder, other)

    def _interrupted(self, ledger: Ledger, current: Statement | None) -> bool:
        """Whether the newest generation came to no end: a kill cut it, so it may be tried again."""
        ended = any(e.generation == ledger.generation for e in ledger.ended.values())
        return not ended and (current is None or current.generation < ledger.generation)

    def _activate(self, folder: Path, deployment: Deployment, obtain: Obtain, check: Check) -> str:
        """The steps; returns the reason of a failure, empty if it is done."""
        if deployment.activate != "file":
            return f"activate: {deployment.activate} is not available in this version"
        free, current = self._free(folder), self._statement(self._active(folder))
        self._step("intent")
        self._write(folder, self._ledger(folder).begin(Intent("activate", free.name, deployment.id, deployment.generation)))
        staging = folder / _STAGING
        main = self._stage(folder, staging, deployment, obtain)
        self._step("check")
        if (failure := check(deployment, main)) is not None:
            return f"{failure.kind.value}: {failure.detail}"
        if current is not None and current.key == deployment.candidate.key:
            self._step("rename-same")  # the same candidate under a new generation: keep what the other slot holds
            os.rename(staging / _STATEMENT, self._active(folder) / _STATEMENT)
            sync_directory(self._active(folder))
        else:
            self._swap(folder, staging, free)
        self._step("commit")
        self._write(folder, self._ledger(folder).done())
        self._step("clean")
        _remove(folder / _DISCARD)
        _remove(staging)
        return ""

    def _stage(self, folder: Path, staging: Path, deployment: Deployment, obtain: Obtain) -> Path:
        artifact = deployment.candidate.artifact
        self._step("stage")
        _remove(staging)
        staging.mkdir()
        main = "model" + Path(check_name(artifact.main_file)).suffix
        names = {f.name: main if f.name == artifact.main_file else check_name(f.name) for f in artifact.files}
        if artifact.format == "openvino":  # weights are looked for under the graph's own name
            names |= {n: "model.bin" for n in names if n == Path(artifact.main_file).with_suffix(".bin").name}
        if len(set(names.values()) | {_STATEMENT}) != len(artifact.files) + 1:
            raise ProtocolError(f"{deployment.variant}: files with the same name, or named {main} or {_STATEMENT}")
        for entry in artifact.files:
            self._step("stage-file")
            target = staging / names[entry.name]
            source = self._reusable(folder, entry) or obtain(entry)
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(source, target)
            if target.stat().st_size != entry.bytes or digest_file(target) != entry.digest:
                raise NotFound(f"{entry.name}: its bytes on this device are not {entry.digest}")
        for inner in {(staging / name).parent for name in names.values()} - {staging}:
            sync_directory(inner)
        self._step("stage-statement")
        atomic_write(staging / _STATEMENT, describe(deployment, main, names))
        _let_group_read(staging, *staging.rglob("*"))
        return staging / main

    def _swap(self, folder: Path, staging: Path, free: Path) -> None:
        """Puts the staged folder into the free slot, then flips the link: the one step that decides."""
        self._step("discard")
        _remove(folder / _DISCARD)
        if free.exists():
            os.rename(free, folder / _DISCARD)
        self._step("place")
        os.rename(staging, free)
        sync_directory(folder)
        self._step("flip")
        self._flip(folder, free.name)

    def _fail(self, folder: Path, deployment: Deployment, reason: str) -> DeploymentStatus:
        _LOG.warning("deployment %s of %s failed: %s", deployment.id, deployment.model, reason)
        ended = Ended(deployment.generation, DeploymentState.FAILED, reason, deployment.candidate.artifact.digest)
        try:
            self._recover(folder)
            current = self._statement(self._active(folder))
            if current is not None and current.id == deployment.id:  # the link was flipped before the disk refused: it runs
                return self._committed(folder, current)
            self._write(folder, self._ledger(folder).end(deployment.id, ended))
        except OSError as error:  # a disk that refuses even this: the next start recovers
            _LOG.error("%s: %s", folder, error)
        return status_of_ended(deployment.model, self._device, deployment.id, ended, str(self._path(folder) or ""))

    def _recover(self, folder: Path) -> None:
        ledger = self._ledger(folder)
        intent = ledger.intent
        for leftover in folder.glob(".current.*"):
            leftover.unlink()
        if intent is not None and intent.kind == "rollback":
            self._finish_rollback(folder)
        elif intent is not None:
            active = self._statement(self._active(folder))
            if active is None or active.id != intent.id:
                self._undo(folder, intent)
            self._write(folder, ledger.done())
        _remove(folder / _DISCARD)
        _remove(folder / _STAGING)

    def _undo(self, folder: Path, intent: Intent) -> None:
        free, discarded = folder / intent.slot, folder / _DISCARD
        placed = self._statement(free)
        if placed is not None and placed.id == intent.id:
            _remove(free)
        if discarded.exists() and not free.exists():
            os.rename(discarded, free)
        sync_directory(folder)

    def _finish_rollback(self, folder: Path) -> None:
        ledger = self._ledger(folder)
        intent = ledger.intent
        assert intent is not None
        self._step("rollback-flip")
        self._flip(folder, intent.slot)
        self._step("rollback-commit")
        other = self._statement(self._free(folder))
        ended = Ended(intent.generation, DeploymentState.ROLLED_BACK, "rolled back on the device", other.digest if other else "")
        done = ledger.end(intent.id, ended)
        self._write(folder, Ledger(done.generation, None, done.ended, done.generation))

    def _flip(self, folder: Path, slot: str) -> None:
        aside = folder / f".current.{os.getpid()}"
        aside.unlink(missing_ok=True)
        aside.symlink_to(slot)
        os.rename(aside, folder / "current")
        sync_directory(folder)

    def _reusable(self, folder: Path, entry: FileEntry) -> Path | None:
        """The same bytes in a slot of this model, hashed again, so that they need not be fetched."""
        for slot in (folder / "a", folder / "b"):
            statement = self._statement(slot)
            for name, (digest, _) in (statement.files if statement else {}).items():
                if digest == entry.digest and (slot / name).is_file() and digest_file(slot / name) == digest:
                    return slot / name
        return None

    def _whole(self, slot: Path, statement: Statement) -> bool:
        return all((slot / n).is_file() and digest_file(slot / n) == d for n, (d, _) in statement.files.items())

    def _committed(self, folder: Path, current: Statement) -> DeploymentStatus:
        other = self._statement(self._free(folder))
        ledger = self._ledger(folder)
        reason = "" if ledger.pin is None else "pinned: rolled back on the device"
        return DeploymentStatus(
            current.id, self._device, folder.name, current.generation, DeploymentState.COMMITTED, current.digest,
            str(self._path(folder) or ""), reason, other.digest if other else "",
        )  # fmt: skip

    def _status(self, deployment: Deployment, state: DeploymentState, reason: str) -> DeploymentStatus:
        digest = deployment.candidate.artifact.digest
        return DeploymentStatus(deployment.id, self._device, deployment.model, deployment.generation, state, digest, reason=reason)

    def _path(self, folder: Path) -> Path | None:
        """The stable path of the active file."""
        current = self._statement(self._active(folder))
        return folder / "current" / current.main if current else None

    def _active(self, folder: Path) -> Path:
        try:
            slot = os.readlink(folder / "current")
        except OSError:
            return folder / "none"
        return folder / (slot if slot in ("a", "b") else "none")

    def _free(self, folder: Path) -> Path:
        return folder / ("b" if self._active(folder).name == "a" else "a")

    def _statement(self, slot: Path) -> Statement | None:
        try:
            return Statement.read((slot / _STATEMENT).read_text())
        except (OSError, ValueError):
            return None

    def _ledger(self, folder: Path) -> Ledger:
        try:
            return Ledger.read((folder / _LEDGER).read_text())
        except FileNotFoundError:
            return Ledger()
        except NeedsUpgrade as error:
            raise NeedsUpgrade(f"{folder / _LEDGER}: {error}") from error
        except ValueError as error:
            _LOG.error("%s: %s: begun anew", folder / _LEDGER, error)
            return Ledger()

    def _write(self, folder: Path, ledger: Ledger) -> None:
        atomic_write(folder / _LEDGER, ledger.write())

    def _folder(self, model: str) -> Path:
        if not _MODEL.fullmatch(model):
            raise ProtocolError(f"model name {model!r}: letters, digits, '.', '_' and '-' only")
        return self._root / model

    def _models(self) -> list[Path]:
        return sorted(p for p in self._root.iterdir() if p.is_dir() and _MODEL.fullmatch(p.name))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with FolderLock(self._root / ".lock", "another process is changing the deployed models"):
            yield


def _let_group_read(*paths: Path) -> None:
    """Programs that load what is deployed run as users of the agent's group; what else the agent keeps is its own."""
    for path in paths:
        path.chmod(stat.S_IMODE(path.stat().st_mode) | (0o050 if path.is_dir() else 0o040))


def _remove(folder: Path) -> None:
    if folder.is_symlink() or folder.is_file():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0

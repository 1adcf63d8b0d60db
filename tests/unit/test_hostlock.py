"""Which file the agents and commands of one machine lock."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edgefarm import hostlock

NOBODY = 65534


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "run-lock"
    folder.mkdir()
    monkeypatch.setattr(hostlock, "_SHARED", folder)
    return folder


def test_a_file_is_made_where_all_may_write(shared: Path) -> None:
    assert hostlock.default_path() == shared / "edgefarm-measure.lock"
    with hostlock.hold(exclusive=True) as held:
        assert held
    assert (shared / "edgefarm-measure.lock").stat().st_mode & 0o777 == 0o666


@pytest.mark.parametrize(("there", "expected"), [(True, "run-lock"), (False, "private")])
def test_a_file_that_is_there_is_shared_even_where_only_root_may_write(
    shared: Path, monkeypatch: pytest.MonkeyPatch, there: bool, expected: str
) -> None:
    if there:
        (shared / "edgefarm-measure.lock").touch()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(shared.parent / "private"))
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK and Path(path).exists())
    assert hostlock.default_path() == shared.parent / expected / "edgefarm-measure.lock"


_LOCK = """
import os, sys
from pathlib import Path
from edgefarm import hostlock
os.chdir("/")
os.setgroups([])
os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
with hostlock.hold(exclusive=True, path=Path(sys.argv[1]), cancelled=iter([False, True]).__next__) as held:
    print(held)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
@pytest.mark.parametrize("mode", [0o666, 0o644], ids=["theirs-to-write", "theirs-to-read"])
def test_another_user_takes_turns_at_a_file_of_root(tmp_path: Path, mode: int) -> None:
    folder = Path("/tmp") / f"edgefarm-hostlock-{os.getpid()}-{mode:o}"  # every user may come here, not to tmp_path
    folder.mkdir()
    path = folder / "lock"
    path.touch()
    path.chmod(mode)
    folder.chmod(0o755)

    def theirs() -> str:
        done = subprocess.run([sys.executable, "-c", _LOCK, str(path), str(NOBODY)], capture_output=True, text=True, cwd="/")
        return done.stdout.strip() or done.stderr

    try:
        assert theirs() == "True"
        with hostlock.hold(exclusive=True, path=path) as held:
            assert held
            path.chmod(mode)  # holding it gave it the usual one
            assert theirs() == "False"
    finally:
        path.unlink()
        folder.rmdir()


def test_a_link_is_not_followed(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (shared / "edgefarm-measure.lock").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic links"), hostlock.hold(exclusive=True):
        pass

"""Folders that a model wrote into go away, whatever it made there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from agent.runner import scratch


def test_a_folder_is_there_and_then_gone(tmp_path: Path) -> None:
    with scratch.folder(tmp_path, "runner-") as folder:
        assert folder.parent == tmp_path
        (folder / "a" / "b").mkdir(parents=True)
        (folder / "a" / "b" / "file").write_text("x")
        (folder / "a" / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_a_tree_too_deep_for_recursion_with_a_path_too_long_to_name(tmp_path: Path) -> None:
    folder, back = tmp_path / "deep", os.getcwd()
    folder.mkdir()
    os.chdir(folder)
    try:
        for _ in range(1500):
            os.mkdir("deeper")
            os.chdir("deeper")
        Path("file").write_text("x")
    finally:
        os.chdir(back)
    scratch.remove(folder)
    assert list(tmp_path.iterdir()) == []


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    kept, folder = tmp_path / "kept", tmp_path / "folder"
    kept.mkdir()
    folder.mkdir()
    (kept / "file").write_text("x")
    (folder / "link").symlink_to(kept)
    (folder / "lost").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    scratch.remove(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    assert (kept / "file").read_text() == "x"


def test_closed_folders_are_opened(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "closed" / "inner").mkdir(parents=True)
    (folder / "closed" / "inner" / "file").write_text("x")
    (folder / "closed" / "inner").chmod(0)
    (folder / "closed").chmod(0)
    scratch.remove(folder)
    assert not folder.exists()


def test_a_folder_that_was_closed_itself_is_removed(tmp_path: Path) -> None:
    """As another user than root, who would not notice."""
    program = """
import os, tempfile
from pathlib import Path
from agent.runner import scratch
if os.geteuid() == 0:
    os.setgroups([])
    os.setuid(65534)
with scratch.folder(None, "closed-") as folder:
    (folder / "file").write_text("x")
    folder.chmod(0)
print(folder.exists())
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    scratch.remove(tmp_path / "nowhere")
    assert not scratch.is_own_file(tmp_path / "nowhere")


def test_only_a_plain_file_with_one_name_is_its_own(tmp_path: Path) -> None:
    plain, link, pipe = tmp_path / "plain", tmp_path / "link", tmp_path / "pipe"
    plain.write_text("x")
    assert scratch.is_own_file(plain)
    link.symlink_to(plain)
    os.mkfifo(pipe)
    assert not scratch.is_own_file(link)
    assert not scratch.is_own_file(pipe)
    assert not scratch.is_own_file(tmp_path)
    os.link(plain, tmp_path / "second")
    assert not scratch.is_own_file(plain)

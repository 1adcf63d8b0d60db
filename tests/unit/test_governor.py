"""A governor that is set for a measurement and given back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.bench.governor import give_back, governed
from tests.fixtures.trees import BARE, LAPTOP, ORIN, plant


def _governors(root: Path) -> set[str]:
    return {p.read_text().strip() for p in root.glob("sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")}


def _each(root: Path) -> dict[str, str]:
    return {p.parent.parent.name: p.read_text().strip() for p in root.glob("sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")}


def test_it_is_set_inside_and_given_back_after(tmp_path: Path) -> None:
    root, keep, refused = plant(LAPTOP, tmp_path), tmp_path / "governor.json", dict[str, str]()
    before = _each(root)
    assert len(set(before.values())) == 2
    with governed(root, "performance", keep, refused.__setitem__):
        assert _governors(root) == {"performance"}
        assert keep.exists()
    assert _each(root) == before
    assert not keep.exists()
    assert refused == {}


def test_nothing_is_touched_where_none_is_wanted(tmp_path: Path) -> None:
    root = plant(ORIN, tmp_path)
    with governed(root, "", tmp_path / "keep", lambda *_: None):
        assert _governors(root) == {"schedutil"}
    assert not (tmp_path / "keep").exists()


@pytest.mark.parametrize(
    ("tree", "wanted", "reason"),
    [(BARE, "performance", "no cpufreq"), (ORIN, "turbo", "'turbo' is no governor of this device; it has ondemand")],
    ids=["no-cpufreq", "unknown"],
)
def test_what_cannot_be_set_is_refused_with_its_reason(tmp_path: Path, tree: dict[str, str], wanted: str, reason: str) -> None:
    root, refused = plant(tree, tmp_path), dict[str, str]()
    before = _each(root)
    with governed(root, wanted, tmp_path / "keep", refused.__setitem__):
        assert _each(root) == before
    assert reason in refused["governor_set"]
    assert not (tmp_path / "keep").exists()


def test_an_unprivileged_agent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, refused = plant(ORIN, tmp_path), dict[str, str]()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with governed(root, "performance", tmp_path / "keep", refused.__setitem__):
        assert _governors(root) == {"schedutil"}
    assert "may not write" in refused["governor_set"]
    assert "stays 'schedutil'" in refused["governor_set"]


def test_half_a_change_is_taken_back(tmp_path: Path) -> None:
    root, refused = plant(ORIN, tmp_path), dict[str, str]()
    last = root / "sys/devices/system/cpu/cpu5/cpufreq/scaling_governor"
    with pytest.MonkeyPatch.context() as patch:
        write = Path.write_text

        def refusing(path: Path, text: str) -> int:
            if path == last and text == "performance":
                raise OSError(16, "Device or resource busy")
            return write(path, text)

        patch.setattr(Path, "write_text", refusing)
        with governed(root, "performance", tmp_path / "keep", refused.__setitem__):
            assert _governors(root) == {"schedutil"}
    assert "Device or resource busy" in refused["governor_set"]


def test_what_somebody_changed_meanwhile_is_left_alone(tmp_path: Path) -> None:
    root = plant(ORIN, tmp_path)
    with governed(root, "performance", tmp_path / "keep", lambda *_: None):
        (root / "sys/devices/system/cpu/cpu2/cpufreq/scaling_governor").write_text("userspace\n")
    assert _each(root) == {**{f"cpu{n}": "schedutil" for n in range(6)}, "cpu2": "userspace"}


def test_after_a_crash_the_next_agent_gives_it_back(tmp_path: Path) -> None:
    root, keep = plant(ORIN, tmp_path), tmp_path / "governor.json"
    script = (
        "import os, signal, sys; from pathlib import Path; from agent.bench.governor import governed\n"
        "with governed(Path(sys.argv[1]), 'performance', Path(sys.argv[2]), print): os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(root), str(keep)], cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert _governors(root) == {"performance"}
    give_back(root, keep)
    assert _governors(root) == {"schedutil"}
    assert not keep.exists()


def test_after_a_boot_there_is_nothing_to_give_back(tmp_path: Path) -> None:
    root, keep = plant(ORIN, tmp_path), tmp_path / "governor.json"
    keep.write_text('{"boot": "another", "set": "schedutil", "before": {"cpu0/cpufreq": "ondemand"}}')
    give_back(root, keep)
    assert _governors(root) == {"schedutil"}
    assert not keep.exists()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"before": 3}', '{"boot": "", "set": "x", "before": [1]}'])
def test_a_damaged_file_is_removed(tmp_path: Path, content: str) -> None:
    root, keep = plant(ORIN, tmp_path), tmp_path / "governor.json"
    keep.write_text(content)
    give_back(root, keep)
    assert _governors(root) == {"schedutil"}
    assert not keep.exists()

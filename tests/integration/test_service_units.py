"""The unit files by themselves; what they do when they run is shown by tests/e2e/test_units.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = DEPLOY / "systemd"
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="NOT TESTED: the unit files: no systemd-analyze here (Debian: systemd)"
)


def _analyze(*arguments: str, cwd: Path = UNITS) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, cwd=cwd, timeout=60)


@needs_systemd
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    """Programs of the units must exist for this: others stand for them."""
    for unit in UNITS.iterdir():
        (tmp_path / unit.name).write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE))
    done = subprocess.run(
        ["systemd-analyze", "verify", *sorted(str(p) for p in tmp_path.iterdir())], capture_output=True, text=True, timeout=60,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )  # fmt: skip
    ours = [line for line in done.stderr.splitlines() if "edge-" in line or str(tmp_path) in line]
    assert (done.returncode, ours) == (0, [])


@needs_systemd
def test_an_unknown_key_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "edge-agent.service").write_text("[Service]\nExecStart=/bin/true\nProtectEverything=yes\n")
    done = _analyze("verify", str(tmp_path / "edge-agent.service"))
    assert "edge-agent.service:3: Unknown key 'ProtectEverything'" in done.stderr


@needs_systemd
@pytest.mark.parametrize(("unit", "most"), [("edge-agent.service", 1.5), ("edge-runner@.service", 0.8)])
def test_exposure(unit: str, most: float) -> None:
    done = _analyze("security", "--offline=true", "--no-pager", f"--threshold={round(most * 10)}", unit)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert (done.returncode, float(found[1]) <= most) == (0, True), done.stdout


@pytest.mark.parametrize("script", ["install.sh", "wheelhouse.sh"])
def test_scripts_are_posix(script: str) -> None:
    shell = shutil.which("dash") or "sh"
    assert subprocess.run([shell, "-n", str(DEPLOY / script)], capture_output=True, text=True).stderr == ""
    if shutil.which("shellcheck") is None:
        pytest.skip(f"NOT TESTED: shellcheck of {script}: not here (Debian: shellcheck)")
    found = subprocess.run(["shellcheck", str(DEPLOY / script)], capture_output=True, text=True)
    assert found.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--help"], 0, "--wheelhouse DIR"),
        (["--upgarde"], 2, "unknown option --upgarde"),
        (["--wheelhouse"], 2, "--wheelhouse needs a value"),
    ],
)
def test_what_the_script_says(arguments: list[str], code: int, message: str) -> None:
    done = subprocess.run(["sh", str(DEPLOY / "install.sh"), *arguments], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: install.sh as another user than root: not root here")
def test_the_script_wants_root() -> None:
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-s"]
    done = subprocess.run(as_nobody, input=(DEPLOY / "install.sh").read_text(), capture_output=True, text=True, timeout=60, cwd="/")
    assert done.returncode == 2
    assert "must run as root" in done.stderr

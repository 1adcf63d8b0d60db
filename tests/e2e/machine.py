"""A device with systemd: a Debian root folder, booted by systemd-nspawn in a network namespace of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv,libstdc++6,procps"
CACHE = Path(tempfile.gettempdir()) / "edgefarm-root" / "base"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_RUNNING = ("running", "degraded")  # degraded: some unit of the distribution does not work in a container
_POLL_S = 0.1


def require() -> None:
    """Skips, saying why, where no such machine can be booted."""
    tools = ("systemd-nspawn", "nsenter", "ip", "mmdebstrap")
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        pytest.skip(
            f"NOT TESTED: the units in a booted system: no {', '.join(missing)} here (Debian: systemd-container, iproute2, mmdebstrap)"
        )
    if os.geteuid() != 0:
        pytest.skip("NOT TESTED: the units in a booted system: only root can boot one")
    if not CACHE.is_dir():
        made = subprocess.run(
            ["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(CACHE)], capture_output=True, text=True
        )
        if made.returncode != 0:
            pytest.skip(f"NOT TESTED: the units in a booted system: no Debian root folder: {made.stderr[-500:]}")


def run(*command: str, check: bool = True, timeout_s: float = 120.0) -> str:
    """Runs a command on this machine; returns what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


class Network:
    """Two network namespaces with a cable between them: `outside` (a controller's) and `inside` (the device's)."""

    def __init__(self) -> None:
        self.outside, self.inside = f"ef{os.getpid()}c", f"ef{os.getpid()}d"
        self.address = "10.76.0.1"

    def __enter__(self) -> Network:
        for name in (self.outside, self.inside):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "link", "add", "efc", "netns", self.outside, "type", "veth", "peer", "name", "efd", "netns", self.inside)
        for name, end, address in ((self.outside, "efc", self.address), (self.inside, "efd", "10.76.0.2")):
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", end)
            run("ip", "-n", name, "link", "set", end, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in (self.outside, self.inside):
            run("ip", "netns", "delete", name, check=False)


class Machine:
    """Use it as a context manager: booted, then powered off."""

    def __init__(self, folder: Path, namespace: str) -> None:
        self.root = folder / "root"
        self._namespace, self._log = namespace, folder / "boot.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Machine:
        run("cp", "-a", str(CACHE), str(self.root))
        (self.root / "etc/hostname").write_text("device\n")
        (self.root / "etc/machine-id").write_text("")
        self.boot()
        return self

    def __exit__(self, *_: object) -> None:
        self.power_off()
        shutil.rmtree(self.root, ignore_errors=True)

    def boot(self) -> None:
        command = [
            "systemd-nspawn", "-q", "-D", str(self.root), "--boot", f"--machine={self._namespace}", "--register=no", "--keep-unit",
            f"--network-namespace-path=/run/netns/{self._namespace}",
        ]  # fmt: skip
        with self._log.open("wb") as log:
            environment = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        self.wait(lambda: self("systemctl is-system-running", check=False).strip() in _RUNNING, "booted")

    def power_off(self) -> None:
        if self._process is None:
            return
        if (leader := self._leader()) is not None:
            os.kill(leader, signal.SIGRTMIN + 4)
        try:
            self._process.wait(60)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        self._process = None

    def __call__(self, script: str, check: bool = True, timeout_s: float = 120.0) -> str:
        """Runs a shell script in the machine, as root; returns what it printed."""
        leader = self._leader()
        if leader is None:
            if check:
                raise AssertionError(f"the machine is off:\n{self._log.read_text(errors='replace')[-2000:]}")
            return ""
        return run("nsenter", "-t", str(leader), "-a", "env", "-i", _PATH, "sh", "-c", script, check=check, timeout_s=timeout_s)

    @contextlib.contextmanager
    def override(self, unit: str, text: str) -> Iterator[None]:
        """Lines on top of a unit's own, until the block ends or the machine does."""
        folder = f"/run/systemd/system/{unit}.d"
        self(f"mkdir -p {folder} && printf '%s' '{text}' >{folder}/test.conf && systemctl daemon-reload")
        try:
            yield
        finally:
            self(f"rm -r {folder} && systemctl daemon-reload")

    def plug(self, on: bool) -> None:
        """Puts the network cable in, or pulls it."""
        run("ip", "-n", self._namespace, "link", "set", "efd", "up" if on else "down")

    def property(self, name: str, unit: str = "edge-agent.service") -> str:
        """A property of a unit, as systemd tells it."""
        return self(f"systemctl show --value -p {name} {unit}").strip()

    def wait(self, condition: Callable[[], object], what: str, timeout_s: float = 90.0) -> None:
        """Until `condition()` is true."""
        end = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > end:
                log = self("journalctl --no-pager -n 60 -o cat -u edge-agent -u edge-runner.socket -u 'edge-runner@*'", check=False)
                raise AssertionError(f"waited {timeout_s} s: {what}\n{log}")
            time.sleep(_POLL_S)

    def _leader(self) -> int | None:
        """The container's first process."""
        if self._process is None or self._process.poll() is not None:
            return None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0]) if children else None

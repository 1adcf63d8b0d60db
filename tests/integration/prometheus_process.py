"""A real Prometheus for tests, on a free port of loopback."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Series = dict[str, str]
_PAUSE_S = 0.1


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [p for p in programs if shutil.which(p) is None]
    unproved = "metrics, rules and dashboards are unproved here"
    reason = f"NOT TESTED: {', '.join(missing)} not found (Debian: apt-get install prometheus); {unproved}"
    return pytest.mark.skipif(bool(missing), reason=reason)


class Prometheus:
    """Runs with a configuration. Use it as a context manager: the process is gone afterwards."""

    def __init__(self, configuration: Path, data: Path) -> None:
        self._configuration, self._data = configuration, data
        self._log = data.with_suffix(".log")

    def __enter__(self) -> Prometheus:
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.url = f"http://{address}"
        command = ["prometheus", f"--config.file={self._configuration}", f"--storage.tsdb.path={self._data}"]
        command += [f"--web.listen-address={address}", "--log.level=warn"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self.wait(lambda: self._ready(), "Prometheus")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def api(self, path: str, **parameters: str) -> Any:
        """The data of an answer; its error where it has none."""
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=20) as reply:
                return json.load(reply)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def query(self, expression: str) -> list[tuple[Series, float]]:
        """Labels and values of an instant vector."""
        found = self.api("query", query=expression)["result"]
        return [(entry["metric"], float(entry["value"][1])) for entry in found]

    def value(self, expression: str) -> float | None:
        """Of the only series; None if there is none."""
        found = self.query(expression)
        assert len(found) < 2, found
        return found[0][1] if found else None

    def wait(self, condition: Callable[[], bool], what: str, seen: Callable[[], object] = str, timeout_s: float = 60.0) -> None:
        """Looks again and again: Prometheus tells nobody when it has scraped. `seen`: what to show if it never comes."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"waited for {what}; seen: {seen()}; log: {self._log.read_text()}"
            time.sleep(_PAUSE_S)

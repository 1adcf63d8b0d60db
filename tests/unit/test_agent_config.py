"""`agent.toml`: what it may say, and how it says what is wrong with it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from agent import cli, config
from agent.config import AgentFile
from edgefarm.errors import UserError

EXAMPLE = Path(__file__).parents[2] / "deploy" / "agent.toml"
WHOLE = """
name = "pi-kitchen"
controller = "unix:/run/farm.sock"
state = "/data/edgefarm"
threads = 2
runtimes = ["onnxruntime"]
cache_mib = 64
metrics = "127.0.0.1:9477"
runner_socket = "/run/edgefarm/runner.sock"

[labels]
room = "kitchen"

[limits]
memory_mib = 512

[measure]
cpus = "big"
governor = "performance"
start_below_celsius = 55
start_wait_s = 30.5

[power]
source = "prometheus"
rail = "wall"
url = "http://127.0.0.1:9090"
channel = 1
query = "pdu_watts"
"""


def _load(folder: Path, text: str) -> AgentFile:
    path = folder / "agent.toml"
    path.write_text(text)
    return config.load(path)


def test_every_key_arrives(tmp_path: Path) -> None:
    assert _load(tmp_path, WHOLE) == AgentFile(
        "pi-kitchen", "unix:/run/farm.sock", Path("/data/edgefarm"), 2, ("onnxruntime",), {"room": "kitchen"}, 64 * 2**20,
        "127.0.0.1:9477", Path("/run/edgefarm/runner.sock"), 512 * 2**20, "big", "performance", 55.0, 30.5,
        "prometheus", "wall", "http://127.0.0.1:9090", 1, "pdu_watts",
    )  # fmt: skip
    untouched = [f.name for f in dataclasses.fields(AgentFile) if getattr(_load(tmp_path, WHOLE), f.name) == getattr(AgentFile(), f.name)]
    assert untouched == []


def test_nothing_is_required(tmp_path: Path) -> None:
    assert _load(tmp_path, "") == AgentFile()


def test_the_example_explains_every_key_and_its_lines_are_valid(tmp_path: Path) -> None:
    text = EXAMPLE.read_text()
    assert config.load(EXAMPLE) == AgentFile(runner_socket=Path("/run/edgefarm/runner.sock"))
    active = re.sub(r"^#(?=\w+ = |\[)", "", text, flags=re.MULTILINE)
    loaded = _load(tmp_path, active)
    assert [f.name for f in dataclasses.fields(AgentFile) if f.name != "state" and not getattr(loaded, f.name)] == []
    assert loaded.state == config.DEFAULT_STATE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nthread = 2", r":2: unknown key 'thread'; did you mean 'threads'\?"),
        ("zzz = 2", r":1: unknown key 'zzz'; known are cache_mib, controller, labels, "),
        ("threads = 0", r":1: threads: must be a whole number of at least 1, got 0"),
        ("threads = true", r":1: threads: must be a whole number"),
        ('threads = "4"', r":1: threads: must be a whole number of at least 1, got '4'"),
        ('name = "a b"', r":1: name: letters, digits"),
        ("name = 3", r":1: name: must be a text, got 3"),
        ('state = "here"', r":1: state: must be an absolute path"),
        ('runtimes = "onnxruntime"', r":1: runtimes: must be a list of texts"),
        ("runtimes = [1]", r":1: runtimes: must be a text"),
        ("[labels]\n\nroom = 3", r":1: labels: must be a table of texts"),
        ("labels = 3", r":1: labels: must be a table of texts"),
        ("limits = 3", r":1: limits: must be a table"),
        ("measure = 3", r":1: measure: must be a table"),
        ('[measure]\ncpus = "fast"', r":2: measure\.cpus: must be 'all', 'big', 'little' or a list of cores such as '0-3,6', got 'fast'"),
        ("[measure]\ncpus = 3", r":2: measure\.cpus: must be a text"),
        ('[measure]\ngovernor = "a/b"', r":2: measure\.governor: must be the name of a governor"),
        ("[measure]\nstart_below_celsius = 500", r":2: measure\.start_below_celsius: must be 20 to 110 degrees Celsius, got 500"),
        ("[measure]\nstart_wait_s = true", r":2: measure\.start_wait_s: must be 0 to 3600 seconds"),
        ("[measure]\ncpu = 'all'", r":2: unknown key 'measure.cpu'; did you mean 'cpus'\?"),
        ('[power]\nsource = "socket"', r":2: power\.source: must be one of hwmon, .*, prometheus, got 'socket'"),
        ("[power]\nchannel = -1", r":2: power\.channel: must be the number of a socket, from 0, got -1"),
        ("[power]\nurl = 3", r":2: power\.url: must be a text"),
        ("# [limits]\n[limits]\nmemory_mb = 3", r":3: unknown key 'limits.memory_mb'; did you mean 'memory_mib'\?"),
        ("[limits]\nmemory_mib = -3", r":2: limits\.memory_mib: must be a whole number"),
        ("name = 'a'\nname = 'b'", r": not TOML: Cannot overwrite"),
        ("name = \x00", r": not TOML: "),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        _load(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "agent.toml"))
    assert caught.value.exit_code == 2


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.toml: No such file"):
        config.load(tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(UserError, match=r"latin\.toml: not a text file in UTF-8"):
        config.load(tmp_path / "latin.toml")


def test_options_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(WHOLE)
    asked = cli._config(cli._parser().parse_args(["run", "--config", str(path)]))
    assert (asked.name, asked.controller, asked.state, asked.threads) == ("pi-kitchen", "unix:/run/farm.sock", Path("/data/edgefarm"), 2)
    assert (asked.runtimes, asked.labels, asked.metrics) == (("onnxruntime",), {"room": "kitchen"}, "127.0.0.1:9477")
    told = "--name x --controller unix:/y --state z --threads 1 --label room=attic --label floor=2 --metrics :0 --cache-bytes 5"
    other = cli._config(cli._parser().parse_args(["run", "--config", str(path), *told.split()]))
    assert (other.name, other.controller, other.state, other.threads, other.metrics) == ("x", "unix:/y", Path("z"), 1, ":0")
    assert (other.labels, other.cache_bytes) == ({"room": "attic", "floor": "2"}, 5)


def test_the_device_s_own_file_is_read_where_it_exists_but_not_by_an_agent_that_a_command_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "agent.toml")
    (tmp_path / "agent.toml").write_text(WHOLE)
    assert cli._config(cli._parser().parse_args(["run"])).labels == {"room": "kitchen"}
    monkeypatch.setattr(cli, "_read_secret", lambda descriptor: "5ec4e7")
    hosted = cli._parser().parse_args(["run", "--secret-fd", "3", "--name", "x", "--controller", "unix:/y"])
    assert cli._config(hosted).labels == {}


def test_an_unknown_runtime_is_named_with_those_that_are_known(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text('name = "a"\ncontroller = "unix:/x"\nruntimes = ["onyx"]')
    with pytest.raises(UserError, match=r"runtimes onyx: unknown; known are .*onnxruntime"):
        cli._config(cli._parser().parse_args(["run", "--config", str(path)]))

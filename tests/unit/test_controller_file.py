"""`controller.yaml`."""

from __future__ import annotations

from pathlib import Path

import pytest

from controller.config.controller_file import load_controller
from edgefarm.errors import FleetFileError, UserError


def written(folder: Path, text: str) -> Path:
    path = folder / "controller.yaml"
    path.write_text(text)
    return path


def test_all_has_a_default(tmp_path: Path) -> None:
    settings = load_controller(None, None)
    assert (settings.join, settings.main, settings.names, settings.authority) == ("0.0.0.0:7443", "0.0.0.0:7444", (), None)
    assert settings.certificate_s == 30 * 86400
    assert load_controller(written(tmp_path, ""), None) == settings


def test_what_is_written_counts(tmp_path: Path) -> None:
    text = """\
version: 1
listen: 10.0.0.1:9000
advertise: farm.example:443
names: [farm.example, 10.0.0.1, "::1"]
authority: {certificate: ca.pem, key: /etc/ca-key.pem}
certificate_days: 1.5
"""
    settings = load_controller(written(tmp_path, text), None)
    assert (settings.join, settings.main, settings.advertise) == ("10.0.0.1:9000", "10.0.0.1:9001", "farm.example:443")
    assert settings.names == ("farm.example", "10.0.0.1", "::1")
    assert settings.authority == (tmp_path / "ca.pem", Path("/etc/ca-key.pem"))
    assert settings.certificate_s == 1.5 * 86400


def test_an_option_counts_more(tmp_path: Path) -> None:
    path = written(tmp_path, "listen: 10.0.0.1:9000\nmain: 10.0.0.1:9999\n")
    assert load_controller(path, None).main == "10.0.0.1:9999"
    settings = load_controller(path, "127.0.0.1:0")
    assert (settings.join, settings.main, settings.names) == ("127.0.0.1:0", "127.0.0.1:0", ("127.0.0.1",))
    with pytest.raises(UserError, match="HOST:PORT"):
        load_controller(None, "nonsense:port")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("listne: a:1", r"controller\.yaml:1: listne: unknown key 'listne'; did you mean 'listen'\?"),
        ("version: 2", r":1: version: "),
        ("certificate_days: 0", r":1: certificate_days: "),
        ("\nlisten: 'a:b'", r":2: listen: .*HOST:PORT"),
        ("advertise: 'a:0'", r":1: advertise: .*HOST:PORT"),
        ("names: ['a b']", r":1: names\[0\]: "),
        ("authority: {certificate: ca.pem}", r":1: authority.key: is missing"),
        ("authority: {certificate: a, key: b, kye: c}", r":1: authority.kye: unknown key 'kye'; did you mean 'key'\?"),
        ("[1, 2]", r"controller\.yaml"),
        ("a: [", r"not valid YAML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FleetFileError, match=message):
        load_controller(written(tmp_path, text), None)

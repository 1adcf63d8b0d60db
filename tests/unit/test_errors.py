"""Errors on their way between processes."""

from __future__ import annotations

from collections.abc import Iterator

from edgefarm.errors import Denied, EdgefarmError, FleetFileError, UserError, from_code


def test_every_error_comes_back_as_itself() -> None:
    def all_of(root: type[EdgefarmError]) -> Iterator[type[EdgefarmError]]:
        yield root
        for child in root.__subclasses__():
            yield from all_of(child)

    for kind in (k for k in all_of(EdgefarmError) if k.__module__ == EdgefarmError.__module__):  # others share the code of one of these
        expected = UserError if kind is FleetFileError else kind
        assert type(from_code(kind.code, "x")) is expected
        assert expected.exit_code == kind.exit_code
    assert type(from_code("of a newer version", "x")) is EdgefarmError
    assert Denied.exit_code == UserError.exit_code

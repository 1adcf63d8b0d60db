"""The addresses that a controller took, kept in its state: devices and users know them, so a restart takes them again."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from edgefarm.digest import atomic_write
from edgefarm.errors import StorageError, UserError

_LOG = logging.getLogger(__name__)
_ANY = ":0"


class Ports:
    """Where one state's controller was reached last.

    Args:
        state: its folder.

    Raises:
        StorageError, UserError: the note there can't be read, or is none.
    """

    def __init__(self, state: Path) -> None:
        self._path = state / "ports.json"
        self._known: dict[str, str] = {}
        try:
            self._known = {name: str(address) for name, address in json.loads(self._path.read_bytes()).items()}
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror}") from error
        except (ValueError, AttributeError) as error:
            raise UserError(f"{self._path}: damaged ({error}): remove it, and name the ports that devices know with --listen") from error

    def again(self, name: str, address: str) -> str:
        """`address`, HOST:PORT; where it leaves the port open (0), with the one that was taken before, if any was."""
        if not address.endswith(_ANY) or name not in self._known:
            return address
        return address.removesuffix(_ANY) + ":" + self._known[name].rpartition(":")[2]

    def took(self, join: str, main: str, *, members: bool) -> None:
        """Notes what is served now. Where others know another address, it is said what becomes of them. Raises StorageError."""
        now = {"join": join, "main": main}
        for name, before in self._known.items():
            if members and before.rpartition(":")[2] != now.get(name, before).rpartition(":")[2]:
                _LOG.warning("the %s address was %s and is %s: %s", name, before, now[name], _CONSEQUENCE[name])
        if now != self._known:
            try:
                atomic_write(self._path, json.dumps(now).encode(), mode=0o600)
            except OSError as error:
                raise StorageError(f"{self._path}: {error.strerror}") from error
        self._known = now


_CONSEQUENCE = {
    "join": "devices and users that know the former can't renew, and find no new main address: serve there again, or enroll them anew",
    "main": "devices find it at the join address, in a minute or so; users with 'controller login'",
}

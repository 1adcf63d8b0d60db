"""Who calls as a user over the private socket, which only this user may open."""

from __future__ import annotations

import getpass
from collections.abc import Callable

from controller.roles import ADMIN, Caller
from controller.servicers.errors import Context
from edgefarm.errors import Denied

CallerOf = Callable[[Context], Caller]


def on_private_socket(context: Context) -> Caller:
    """The user of this process, who may do everything. Raises Denied for any other transport."""
    if not str(context.peer()).startswith("unix:"):
        raise Denied("no certificate was shown: log in with 'controller login' first")
    return Caller("user", getpass.getuser(), ADMIN)

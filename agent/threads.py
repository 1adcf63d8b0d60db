"""Threads that an agent cannot do without."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


def vital(name: str, target: Callable[[], Any], failed: Callable[[BaseException], None]) -> threading.Thread:
    """A thread, to be started, whose failure is told to `failed`.

    An agent that heartbeats on without one of its parts would be waited for for ever: its process has to end instead.
    """

    def guarded() -> None:
        try:
            target()
        except BaseException as error:
            failed(error)

    return threading.Thread(target=guarded, name=name, daemon=True)

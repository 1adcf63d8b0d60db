"""The runner: a process that loads models and runs them, asked over an inherited socket. What it loads is untrusted: it may die any time.

Started as `python -m agent.runner.child '{"socket": 3, "parent": 123, "limits": {…}, "in_unit": false}' FILE…`: the files, and folders,
that it may read besides libraries; in a unit it sees no others than those that it is handed. One request at a time; every answer is
`{"ok": {…}}` or `{"failure": {"kind": …, "detail": …}}`. It ends when the socket does.
"""

from __future__ import annotations

import errno
import gc
import json
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agent.runner import confine, limits
from agent.runner.frames import Decoder, Frame, encode
from agent.runner.handed import Received

_RECEIVE_BYTES = 1 << 18


def main() -> None:
    """Limits and confines itself, then answers until the socket ends."""
    settings = json.loads(sys.argv[1])
    limits.die_with(settings["parent"])
    limits.apply(limits.ProcessLimits(**settings["limits"]))
    confine.apply(Path.cwd(), None if settings["in_unit"] else [Path(given) for given in sys.argv[2:]])
    serve(socket.socket(fileno=settings["socket"]))


def serve(channel: socket.socket) -> None:
    """Answers requests one after the other."""
    from agent.runner.requests import Bench  # after the limits: it imports numpy

    bench, decoder, received = Bench(), Decoder(), Received()
    while True:
        frame = decoder.next()
        if frame is not None and "files" in frame.header:
            received.place(frame.header["files"])
        elif frame is not None:
            reply = answer(bench.answers, frame)
            received.give_back()
            channel.sendall(reply)
        elif chunk := received.receive(channel, _RECEIVE_BYTES):
            decoder.feed(chunk)
        else:
            return


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def answer(table: Mapping[str, Callable[..., tuple[dict[str, Any], bytes]]], frame: Frame) -> bytes:
    """Runs one request; whatever goes wrong becomes a failure."""
    from agent.runtimes import RuntimeFailure

    header = dict(frame.header)
    try:
        body, payload = table[header.pop("do")](**header)
        return encode({"ok": body}, payload)
    except MemoryError as error:
        gc.collect()
        return _failure("oom", f"out of memory: {error}")
    except RuntimeFailure as error:
        return _failure(error.kind.value, error.detail)
    except OSError as error:
        if error.errno in _DISK:  # says nothing of the model: it is asked again once there is room
            return _failure("transfer", f"{error.strerror} while its results were written; free some space on the device")
        return _failure("crash", traceback.format_exc(limit=-6))
    except Exception:
        return _failure("crash", traceback.format_exc(limit=-6))


def _failure(kind: str, detail: str) -> bytes:
    return encode({"failure": {"kind": kind, "detail": detail[-8000:]}})


if __name__ == "__main__":
    main()

"""A fake meter in the network: a server on loopback that answers each path as it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote_plus


@contextmanager
def serving(answer: Callable[[str], str | None], status: int = 200) -> Iterator[str]:
    """Yields its address. `answer`: from path and query, both unquoted, to the body; None: not found."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answer(unquote_plus(self.path))
            self.send_response(404 if body is None else status)
            self.end_headers()
            self.wfile.write((body or "").encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""A TCP proxy that passes every byte on later: a long way, where the kernel has no `netem`.

python -m tests.delaying LISTEN_HOST:PORT TARGET_HOST:PORT SECONDS

It ends both connections, as the gateways of satellites do: a sender's bytes are acknowledged before they arrive. Once it listens it prints
its address; port 0 takes a free one.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

_BLOCK = 64 * 1024
_UNDERWAY = 64  # blocks


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """Passes on what `reader` brings, then its end."""
    loop = asyncio.get_running_loop()
    underway: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_UNDERWAY)

    async def deliver() -> None:
        while True:
            due, block = await underway.get()
            await asyncio.sleep(due - loop.time())
            if not block:
                return
            writer.write(block)
            await writer.drain()

    delivering = asyncio.create_task(deliver())
    try:
        block = b"\0"
        while block:
            block = await reader.read(_BLOCK)
            await underway.put((loop.time() + delay_s, block))
        await delivering
    finally:
        delivering.cancel()
        writer.close()


async def serve(listen: str, target: str, delay_s: float) -> None:
    """Until it is killed."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(*_split(target))
            ways = [asyncio.create_task(pump(reader, far_writer, delay_s)), asyncio.create_task(pump(far_reader, writer, delay_s))]
            await asyncio.gather(*ways, return_exceptions=True)
        writer.close()

    server = await asyncio.start_server(connected, *_split(listen))
    print(":".join(map(str, server.sockets[0].getsockname())), flush=True)
    await server.serve_forever()


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], sys.argv[2], float(sys.argv[3])))

"""Forward TCP connections from sockets that were opened in another network namespace.

    python3 forward.py FD=HOST:PORT [FD=HOST:PORT …]

Each FD is a listening socket, opened on the host's loopback before this process entered the control plane's
namespace; a connection that it accepts goes on to HOST:PORT in here. That is the cluster's only opening.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

_CHUNK_BYTES = 1 << 18


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, OSError):
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


async def _serve(listener: socket.socket, host: str, port: int) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, OSError):
            inner_reader, inner_writer = await asyncio.open_connection(host, port, limit=_CHUNK_BYTES)
            try:
                await asyncio.gather(_copy(reader, inner_writer), _copy(inner_reader, writer))
            finally:
                inner_writer.close()
        writer.close()

    server = await asyncio.start_server(connected, sock=listener, limit=_CHUNK_BYTES)
    await server.serve_forever()


async def _main(arguments: list[str]) -> None:
    routes = []
    for argument in arguments:
        descriptor, _, target = argument.partition("=")
        host, _, port = target.rpartition(":")
        routes.append(_serve(socket.socket(fileno=int(descriptor)), host, int(port)))
    await asyncio.gather(*routes)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))

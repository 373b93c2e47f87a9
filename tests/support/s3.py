"""A real S3 server for tests, started once a session, and a server's bad manners on loopback sockets."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from giblet.config.schema import CheckpointConfig
from giblet.storage.embedded import EmbeddedServer
from giblet.storage.s3 import S3Storage

HASTY = {"connect_timeout_seconds": 0.5, "read_timeout_seconds": 0.5, "max_attempts": 2}


def hasty_storage(server: EmbeddedServer, bucket: str, **changes: object) -> S3Storage:
    """A store with half-second timeouts, and the server's own credentials."""
    config = CheckpointConfig(url=f"s3://{bucket}", endpoint_url=server.endpoint_url).model_copy(update=HASTY | changes)
    return S3Storage.open(config.url, config, credentials=server.credentials())


@contextlib.contextmanager
def silent_endpoint() -> Iterator[str]:
    """An address that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextlib.contextmanager
def dead_endpoint() -> Iterator[str]:
    """An address where nobody listens; held, so that nobody else takes it meanwhile."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@contextlib.contextmanager
def failing_endpoint(status: int, reason: str) -> Iterator[str]:
    """An address that answers every request with one status."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        listener.settimeout(0.1)
        thread = threading.Thread(target=_answer, args=(listener, stop, status, reason))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()


def _answer(listener: socket.socket, stop: threading.Event, status: int, reason: str) -> None:
    body = f"<Error><Code>{reason}</Code></Error>".encode()
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
    while not stop.is_set():
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        with connection:
            connection.settimeout(5)
            connection.recv(65536)
            connection.sendall(head + body)

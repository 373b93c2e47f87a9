"""A real S3 server for tests, started once a session, and a server's bad manners on loopback sockets."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

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


@contextlib.contextmanager
def tls_endpoint(behind: str, certificate: Path, key: Path) -> Iterator[int]:
    """A port of 127.0.0.1 that ends TLS and passes everything on to the server at `behind`."""
    target = urlsplit(behind)
    assert target.hostname is not None
    assert target.port is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        arguments = (listener, context, (target.hostname, target.port))
        thread = threading.Thread(target=_accept_tls, args=arguments)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _accept_tls(listener: socket.socket, context: ssl.SSLContext, target: tuple[str, int]) -> None:
    while True:
        try:
            plain, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_relay_tls, args=(plain, context, target), daemon=True).start()


def _relay_tls(plain: socket.socket, context: ssl.SSLContext, target: tuple[str, int]) -> None:
    """One connection; a client that does not trust the certificate ends it."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(OSError))
        stack.enter_context(plain)
        near = stack.enter_context(context.wrap_socket(plain, server_side=True))
        far = stack.enter_context(socket.create_connection(target))
        back = threading.Thread(target=_pump, args=(far, near), daemon=True)
        back.start()
        _pump(near, far)
        far.shutdown(socket.SHUT_RDWR)
        back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)

"""A proxy before a real S3 server, on loopback: it passes requests on, or does to them what a bad day does.

    with FaultProxy(server.endpoint_url) as proxy:
        proxy.behave = answer(503, "SlowDown")        # until it is set back to `proxy.honest`
        proxy.gone()                                  # nobody listens; proxy.back() ends it

A behaviour is a function of a request and of `forward`, which asks the real server: all else is written in terms of it.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect", "content-length"}


class Dropped(Exception):  # noqa: N818  (an event, not an error)
    """The connection breaks without an answer."""


@dataclass(frozen=True)
class Request:
    """As the client sent it. `key`: of the object, "" for the bucket itself."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def key(self) -> str:
        """The object's key in its bucket."""
        parts = urllib.parse.unquote(self.path.partition("?")[0]).split("/", 2)
        return parts[2] if len(parts) > 2 else ""

    @property
    def conditional(self) -> bool:
        """A put that must not overwrite."""
        return self.method == "PUT" and "if-none-match" in self.headers

    def puts(self, name: str) -> bool:
        """It writes an object whose name starts with this (`MANIFEST`, `rank-`)."""
        return self.method == "PUT" and self.key.rpartition("/")[2].startswith(name)


@dataclass(frozen=True)
class Response:
    """As the client gets it."""

    status: int
    body: bytes = b""
    headers: list[tuple[str, str]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """The server did it."""
        return self.status < 300


Forward = Callable[[], Response]
Behaviour = Callable[[Request, Forward], Response]


def honest(request: Request, forward: Forward) -> Response:
    """Pass everything on."""
    return forward()


def answer(status: int, code: str) -> Behaviour:
    """Every request gets this instead of the server's answer."""
    return lambda request, forward: error(status, code)


def slow(delay_seconds: float, bytes_per_second: float) -> Behaviour:
    """Every request waits, and then trickles."""

    def behave(request: Request, forward: Forward) -> Response:
        time.sleep(delay_seconds + len(request.body) / bytes_per_second)
        response = forward()
        time.sleep(len(response.body) / bytes_per_second)
        return response

    return behave


def error(status: int, code: str) -> Response:
    """An S3 error."""
    return Response(status, f"<Error><Code>{code}</Code></Error>".encode(), [("Content-Type", "application/xml")])


class FaultProxy:
    """Listens on a free port of 127.0.0.1; `history` has every put and delete that the server did, in order."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream.removeprefix("http://")
        self.behave: Behaviour = honest
        self.honest = honest
        self.history: list[tuple[float, str, str]] = []
        self._port, self._server = 0, None
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()

    _server: _Server | None

    @property
    def endpoint_url(self) -> str:
        """What a client is told."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> FaultProxy:
        self.back()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gone()

    def back(self) -> None:
        """Listen, at the port it had before."""
        if self._server is None:
            self._server = _Server(("127.0.0.1", self._port), self)
            self._port = self._server.server_address[1]
            threading.Thread(target=self._server.serve_forever, args=(0.05,), name="fault-proxy", daemon=True).start()

    def gone(self) -> None:
        """Nobody listens any more, and open connections break."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def forward(self, request: Request) -> Response:
        """Ask the real server, and remember what it changed."""
        connection = http.client.HTTPConnection(self.upstream, timeout=60)
        try:
            connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name not in HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(request.body)))
            connection.endheaders(request.body)
            got = connection.getresponse()
            body = got.read()
            headers = [(name, value) for name, value in got.getheaders() if name.lower() not in HOP_BY_HOP]
            if request.method == "HEAD" and (length := got.getheader("Content-Length")) is not None:
                headers.append(("Content-Length", length))
        finally:
            connection.close()
        response = Response(got.status, body, headers)
        if response.ok and request.method in ("PUT", "DELETE"):
            self.history.append((time.monotonic(), request.method, request.key))
        return response

    def answer(self, request: Request) -> Response:
        """What the behaviour makes of it."""
        return self.behave(request, lambda: self.forward(request))

    def opened(self, connection: socket.socket) -> None:
        """A client has connected."""
        with self._lock:
            self._connections.add(connection)

    def closed(self, connection: socket.socket) -> None:
        """It is gone again."""
        with self._lock:
            self._connections.discard(connection)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], proxy: FaultProxy) -> None:
        self.proxy = proxy
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that is killed breaks its connections: nothing to tell."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    connection: socket.socket

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server.proxy.opened(self.connection)

    def finish(self) -> None:
        self.server.proxy.closed(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, body)
        try:
            response = self.server.proxy.answer(request)
        except (Dropped, OSError):
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response_only(response.status)
        for name, value in response.headers:
            self.send_header(name, value)
        if request.method != "HEAD" and response.status != 204:
            self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if request.method != "HEAD":
            self.wfile.write(response.body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

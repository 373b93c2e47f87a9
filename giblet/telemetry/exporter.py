"""`/metrics` over HTTP, from a thread; and a way to end without the last numbers being lost.

    with Exporter(metrics, 9464) as exporter:
        …
        exporter.wait_for_scrape(30.0)

Prometheus asks at its own times, and a process that ends right after its last number takes it along. `wait_for_scrape`
stays for one more request, but only where somebody has asked before, and no longer than allowed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from prometheus_client import start_http_server

from giblet.telemetry.metrics import Metrics

_GRACE = 2.5
"""Times the usual time between scrapes until the next one counts as not coming."""


class Exporter:
    """Serves one process's metrics. Raises `OSError` where the port is taken; `port` 0 picks one."""

    def __init__(self, metrics: Metrics, port: int, address: str = "0.0.0.0") -> None:
        self._scraped = threading.Condition()
        self._last: float | None = None  # when the newest answered scrape was asked
        self._interval_seconds: float | None = None
        self._server, self._thread = start_http_server(port, addr=address, registry=metrics.registry)
        self._server.set_app(self._counted(self._server.get_app()))
        self.port = int(self._server.server_address[1])

    def wait_for_scrape(self, limit_seconds: float, *, first_seconds: float = 0.0) -> bool:
        """Returns once a scrape has begun and ended after this call: True. False where none came.

        Where nobody has ever asked it waits `first_seconds` for the first to; else for a few of the intervals seen, at
        most `limit_seconds`.
        """
        called = time.monotonic()
        with self._scraped:
            if self._last is None:
                return self._scraped.wait_for(lambda: self._last is not None, first_seconds)
            expected = limit_seconds if self._interval_seconds is None else _GRACE * self._interval_seconds
            return self._scraped.wait_for(
                lambda: self._last is not None and self._last > called, min(limit_seconds, expected)
            )

    def close(self) -> None:
        """Stop answering. Safe to repeat."""
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Exporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _counted(self, app: Callable[..., Iterable[bytes]] | None) -> Callable[..., Iterable[bytes]]:
        assert app is not None

        def counted(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            asked = time.monotonic()
            yield from app(environ, start_response)
            with self._scraped:  # only now is the answer on its way
                if self._last is not None:
                    self._interval_seconds = asked - self._last
                self._last = asked
                self._scraped.notify_all()

        return counted

"""Log lines for `kubectl logs`: one readable line an event, `time level message key=value …`, or JSON by choice.

    log = get_logger(__name__)
    log.info("step", step=12, loss=0.83, seconds=0.21)

Context that every line should carry (run, rank) is bound once with `configure`.
"""

from __future__ import annotations

import datetime
import json
import logging
import math
import sys
from typing import Any, Literal, TextIO

_ROOT = "giblet"
_context: dict[str, Any] = {}


class Logger:
    """A named logger whose keyword arguments become the line's fields."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, message: str, **fields: Any) -> None:
        """For people who look for a fault."""
        self._log(logging.DEBUG, message, fields)

    def info(self, message: str, **fields: Any) -> None:
        """What happens, in the order in which it happens."""
        self._log(logging.INFO, message, fields)

    def warning(self, message: str, **fields: Any) -> None:
        """Something a person should know; the run goes on."""
        self._log(logging.WARNING, message, fields)

    def error(self, message: str, **fields: Any) -> None:
        """Something failed."""
        self._log(logging.ERROR, message, fields)

    def _log(self, level: int, message: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, message, extra={"fields": fields})


def get_logger(name: str) -> Logger:
    """The logger of a module: `get_logger(__name__)`."""
    return Logger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


def configure(
    log_format: Literal["logfmt", "json"] = "logfmt",
    *,
    level: int | str = "INFO",
    stream: TextIO | None = None,
    **context: Any,
) -> None:
    """Send giblet's log to `stream` (standard error if None), every line with `context`."""
    _context.clear()
    _context.update(context)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else LogfmtFormatter())
    logger = logging.getLogger(_ROOT)
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


def _time(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, tz=datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {**_context, **getattr(record, "fields", {})}


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(c in text for c in ' "=\n\t') else text


class LogfmtFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO step step=12 loss=0.83`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback follows on lines of its own."""
        parts = [_time(record), record.levelname, record.getMessage()]
        parts += [f"{key}={_plain(value)}" for key, value in _fields(record).items()]
        line = " ".join(parts)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Non-finite numbers become strings, so that the line stays valid JSON."""
        row: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "message": record.getMessage(),
        }
        for key, value in _fields(record).items():
            row[key] = str(value) if isinstance(value, float) and not math.isfinite(value) else value
        if record.exc_info:
            row["exception"] = self.formatException(record.exc_info)
        return json.dumps(row, default=str, ensure_ascii=False)

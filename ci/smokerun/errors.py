"""How a smoke run ends. Every class carries its exit code; the table is in `ci/smoke --help`."""

from __future__ import annotations

EXIT_SAFE, EXIT_UNSAFE, EXIT_INTERRUPTED = 0, 1, 130


class SmokeError(Exception):
    """It did not end with a verdict."""

    exit_code = 3
    word = "failed"

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message, self.remedy = message, remedy


class ValuesError(SmokeError):
    """The command line or the values are wrong; nothing was created."""

    exit_code = 2
    word = "refused"


class RunFailedError(SmokeError):
    """The job failed, or its verification ended without a verdict."""


class CannotStartError(SmokeError):
    """The cluster lacks something: operator, namespace, secret, image, capacity."""

    exit_code = 4
    word = "cannot start"


class TimedOutError(SmokeError):
    """It was still going on when the time was over."""

    exit_code = 5
    word = "timed out"

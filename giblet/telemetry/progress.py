"""Progress of long work: a bar with an estimate on a terminal, a line now and then elsewhere.

    with progress("video", total=rows, unit="TR") as bar:
        for row in work:
            bar.advance()

Everything goes to standard error, so that standard output stays free for `--json`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from giblet.telemetry.logs import get_logger

LINE_EVERY_SECONDS = 10.0
log = get_logger(__name__)


class Bar(Protocol):
    """What work reports its progress to."""

    def advance(self, amount: float = 1.0) -> None:
        """So much more is done."""
        ...

    def note(self, text: str) -> None:
        """A few words beside the bar."""
        ...


class _TerminalBar:
    def __init__(self, progress: Progress, description: str, total: float, unit: str) -> None:
        self._progress = progress
        self._task = progress.add_task(description, total=total, unit=unit, note="")

    def advance(self, amount: float = 1.0) -> None:
        self._progress.advance(self._task, amount)

    def note(self, text: str) -> None:
        self._progress.update(self._task, note=text)


class _LineBar:
    def __init__(self, description: str, total: float, unit: str) -> None:
        self._description, self._total, self._unit = description, total, unit
        self._done, self._note = 0.0, ""
        self._start = self._said = time.monotonic()

    def advance(self, amount: float = 1.0) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._said >= LINE_EVERY_SECONDS and self._done > 0:
            self._said = now
            left = (now - self._start) * max(self._total - self._done, 0) / self._done
            log.info(
                self._description,
                done=_amounts(self._done, self._total, self._unit),
                percent=round(100 * self._done / self._total) if self._total else 100,
                left_seconds=round(left),
                **({"note": self._note} if self._note else {}),
            )

    def note(self, text: str) -> None:
        self._note = text


def _amounts(done: float, total: float, unit: str) -> str:
    return f"{done / 1e9:.2f}/{total / 1e9:.2f} GB" if unit == "bytes" else f"{done:.0f}/{total:.0f} {unit}"


@contextmanager
def progress(description: str, *, total: float, unit: str = "") -> Iterator[Bar]:
    """A bar over `total` units of work, alive within the `with`."""
    if not sys.stderr.isatty():
        yield _LineBar(description, total, unit)
        return
    counted = [MofNCompleteColumn(), TextColumn("{task.fields[unit]}")]
    columns = (
        TextColumn("{task.description}"), BarColumn(),
        *([DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else counted),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as live:
        yield _TerminalBar(live, description, total, unit)

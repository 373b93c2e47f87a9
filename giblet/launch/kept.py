"""Reads back what `giblet.launch.logs` keeps of a run's pods, while they run or when they are gone: for `giblet logs`.

Storage holds whole objects, so following means reading one again and showing what is new in it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from giblet.checkpoint import layout
from giblet.checkpoint.records import read_record
from giblet.checkpoint.starts import newest_start
from giblet.errors import EXIT_CRASHED, CheckpointError
from giblet.storage import Storage

POLL_SECONDS = 5.0
_OVERLAP_BYTES = 512
_KEY = re.compile(r"runs/[^/]+/logs/(?P<start>\d+)/(?P<pod>.+)\.log")


@dataclass(frozen=True, slots=True, order=True)
class KeptLog:
    """A pod's log of one start; `start` 0 is what was printed before any start was claimed."""

    start: int
    pod: str
    key: str
    size_bytes: int


def list_logs(storage: Storage, run: str, start: int | None = None) -> list[KeptLog]:
    """The kept logs of a run by start and pod, or of one start. Raises `CheckpointError` if there are none."""
    found = []
    for info in storage.list(f"runs/{run}/logs/"):
        if (named := _KEY.fullmatch(info.key)) is not None:
            found.append(KeptLog(int(named["start"]), named["pod"], info.key, info.size_bytes))
    starts = sorted({log.start for log in found})
    if not found or (start is not None and start not in starts):
        which = f"start {start} of run {run}" if found else f"run {run}"
        there = f"it has logs of starts {', '.join(map(str, starts))}" if found else "`giblet launch` keeps them"
        raise CheckpointError(f"{storage.url}: no logs of {which}", remedy=f"check name and number: {there}")
    return sorted(log for log in found if start in (None, log.start))


def news(before: bytes, now: bytes) -> bytes:
    """What `now` has that `before` had not; where a log has lost its middle, what follows the last known line."""
    if now.startswith(before):
        return now[len(before) :]
    at = now.rfind(before[-_OVERLAP_BYTES:])
    return now if at < 0 else now[at + len(before[-_OVERLAP_BYTES:]) :]


def follow(
    storage: Storage, run: str, start: int | None, *, sleep: Callable[[float], None] = time.sleep
) -> Iterator[tuple[KeptLog, bytes]]:
    """What is there, then what comes, until the run has ended for good (or the one `start` that was asked for has).

    Without `start`: the newest there is now, and those after it.
    """
    first = list_logs(storage, run, start)[-1].start
    shown: dict[str, bytes] = {}
    while True:
        over = _is_over(storage, run, start)  # asked first: what was printed before it is read below
        for log in list_logs(storage, run, start):
            if log.start < first:
                continue
            body = storage.get(log.key)
            whole = body if over else body[: body.rfind(b"\n") + 1]  # a line that is being written can wait
            if new := news(shown.get(log.key, b""), whole):
                yield log, new
            shown[log.key] = whole
        if over:
            return
        sleep(POLL_SECONDS)


def _is_over(storage: Storage, run: str, start: int | None) -> bool:
    newest = newest_start(storage, run) if start is None else start
    end = read_record(storage, layout.end_key(run, newest)) if newest else None
    return end is not None and (start is not None or int(end["exit_code"]) < EXIT_CRASHED)

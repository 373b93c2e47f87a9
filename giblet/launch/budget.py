"""The restart budget that knows progress: so many restarts without a newly committed step, counted in storage.

It survives pods and jobs, and any progress refills it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from giblet.checkpoint import layout
from giblet.checkpoint.history import VANISHED
from giblet.checkpoint.records import read_record
from giblet.checkpoint.starts import newest_start
from giblet.checkpoint.survey import survey
from giblet.errors import RestartBudgetError, StorageUnavailableError
from giblet.storage import Storage
from giblet.telemetry.logs import get_logger

HARMLESS = frozenset({"done", "stopped", "rescaled"})
"""Ends of a start that are no failure: it finished, or was asked to save and stop."""
PAUSES_SECONDS = (1.0, 2.0, 5.0, 10.0, 30.0)
log = get_logger(__name__)


class RestartBudget:
    """May this run be started (again)? `patience_seconds`: how long storage may be away before that is the answer."""

    def __init__(self, storage: Storage, run: str, max_restarts: int, *, patience_seconds: float) -> None:
        self._storage, self._run, self._max = storage, run, max_restarts
        self._patience = patience_seconds
        self._unclaimed: list[str] = []

    def failed_unclaimed(self, message: str) -> None:
        """Ranks failed before they had claimed a start: storage knows nothing of it, so it is counted here."""
        self._unclaimed.append(message)

    def progressed(self) -> None:
        """A start was claimed: from here on storage counts."""
        self._unclaimed.clear()

    def check(self, stopping: Callable[[], bool] = lambda: False) -> int:
        """How many restarts are left.

        Raises `RestartBudgetError` if none is, `StorageUnavailableError` if storage stays away for the patience (or
        while `stopping`), `StorageDeniedError` at once.
        """
        deadline, tries = time.monotonic() + self._patience, 0
        while True:
            try:
                return self._check()
            except StorageUnavailableError as error:
                pause = PAUSES_SECONDS[min(tries, len(PAUSES_SECONDS) - 1)]
                tries += 1
                if stopping() or time.monotonic() + pause > deadline:
                    raise
                log.warning("storage is away, trying again", error=error.message, pause_seconds=pause)
                _sleep(pause, stopping)

    def _check(self) -> int:
        steps = [e.ref.step for e in survey(self._storage, self._run) if e.committed and not e.quarantined]
        step = max(steps, default=0)
        told = failures_since(self._storage, self._run, step, enough=self._max + 1)
        told += [f"before any start: {message}" for message in reversed(self._unclaimed)]
        if len(told) > self._max:
            listed = "\n".join(f"  - {line.splitlines()[0][:200]}" for line in told[:5])
            raise RestartBudgetError(
                f"run {self._run}: {len(told)} starts failed since step {step} was committed, {self._max} restarts are "
                f"allowed without a newly committed step\n{listed}",
                remedy="cure the cause named above; then allow more restarts (workers.maxRestarts) to go on",
            )
        return self._max - len(told)


def failures_since(storage: Storage, run: str, committed_step: int, *, enough: int) -> list[str]:
    """The newest starts that went on from `committed_step` and failed, newest first, a line each; at most `enough`.

    A start that committed a further step is not among them: the one after it went on from there.
    """
    told: list[str] = []
    number = newest_start(storage, run)
    while number > 0 and len(told) < enough:
        begun = read_record(storage, layout.start_key(run, number)) or {}
        if int((begun.get("resumed_from") or {}).get("step", 0)) != committed_step:
            break
        end = read_record(storage, layout.end_key(run, number)) or {"cause": VANISHED}
        if end["cause"] not in HARMLESS:
            told.append(f"start {number}: {end['cause']}: {end.get('message', '')}")
        number -= 1
    return told


def _sleep(seconds: float, stopping: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not stopping():
        time.sleep(0.1)

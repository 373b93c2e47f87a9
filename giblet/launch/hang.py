"""The hang watch: no sign of life from a rank within what its phase allows.

The launcher's own clock is the only one. Time in which the launcher itself did not run counts for nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from giblet.config.schema import TelemetryConfig
from giblet.telemetry.logs import get_logger
from giblet.training.heartbeat import Beat
from giblet.training.ranks import Ranks

STACKS_SECONDS = 5.0
"""How long ranks may take to print their stacks."""
STALL_SECONDS = 5.0
"""The launcher looks many times a second; a longer gap means that it was stopped itself."""
log = get_logger(__name__)


@dataclass(slots=True)
class HangWatch:
    """Watches the beats of one start's ranks."""

    settings: TelemetryConfig
    clock: Callable[[], float] = time.monotonic
    _seen: dict[int, tuple[Beat, float]] = field(default_factory=dict)
    _looked: float | None = None

    def late(self, beats: dict[int, Beat]) -> str | None:
        """Which rank has not moved for longer than allowed, in a sentence; None while all do."""
        now = self.clock()
        gap = 0.0 if self._looked is None else now - self._looked
        if gap > STALL_SECONDS:
            self._seen = {rank: (beat, since + gap) for rank, (beat, since) in self._seen.items()}
        self._looked = now
        for rank, beat in beats.items():
            if rank not in self._seen or self._seen[rank][0] != beat:
                self._seen[rank] = (beat, now)
        worst = max(self._seen.items(), key=lambda item: now - item[1][1] - self._allowed(item[1][0]), default=None)
        if worst is None:
            return None
        rank, (beat, since) = worst
        if now - since <= self._allowed(beat):
            return None
        return (
            f"rank {rank} gave no sign of life for {now - since:.0f} s ({self._allowed(beat):g} allowed), "
            f"phase {beat.phase}, after step {beat.step}"
        )

    def _allowed(self, beat: Beat) -> float:
        slow = beat.phase in ("start", "save")  # a checkpoint is being read, or written
        return self.settings.save_hang_seconds if slow else self.settings.hang_seconds


def print_stacks(ranks: Ranks) -> None:
    """Have every rank that can print the stacks of its threads, and say of the others what the kernel knows."""
    log.error("stacks of the ranks follow", ranks=",".join(map(str, ranks.pids)))
    for rank, pid in ranks.pids.items():
        state, where = _kernel_view(pid)
        log.error("rank", of=rank, pid=pid, state=state, waits_in=where)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)
    ranks.wait(STACKS_SECONDS)


def _kernel_view(pid: int) -> tuple[str, str]:
    """The state of a process (`T (stopped)`, `R (running)` …) and the kernel function that it waits in."""
    process = Path("/proc", str(pid))
    try:
        lines = (process / "status").read_text().splitlines()
        state = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("State:")), "?")
        return state, (process / "wchan").read_text() or "-"
    except OSError:
        return "?", "-"

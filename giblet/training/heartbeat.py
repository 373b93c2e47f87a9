"""What a rank is doing, told to the process that started it, so that somebody notices when it no longer does anything.

A rank overwrites one small file, some microseconds a step; the launcher reads it and keeps the time itself, so that no
two clocks are compared.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

Phase = Literal["start", "train", "validate", "save", "end"]
_BYTES = 256


@dataclass(frozen=True, slots=True)
class Beat:
    """The newest sign of life. `count` grows with each; `start` is the run's start number, 0 before it is claimed."""

    phase: Phase = "start"
    step: int = 0
    start: int = 0
    resumed_step: int = 0
    count: int = 0


class Heartbeat:
    """Written by a rank. Without a path it does nothing."""

    def __init__(self, path: Path | None = None) -> None:
        self._beat = Beat()
        self._file = None if path is None else os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        self._write()

    def beat(self, phase: Phase, step: int | None = None) -> None:
        """Alive, at this; `step` if it changed."""
        self._beat = replace(
            self._beat, phase=phase, step=self._beat.step if step is None else step, count=self._beat.count + 1
        )
        self._write()

    def started(self, start: int, resumed_step: int) -> None:
        """The run's start number is known."""
        self._beat = replace(self._beat, start=start, resumed_step=resumed_step, step=resumed_step)
        self.beat("start")

    def _write(self) -> None:
        if self._file is not None:
            os.pwrite(self._file, json.dumps(asdict(self._beat)).ljust(_BYTES).encode(), 0)


def read_beat(path: Path) -> Beat | None:
    """The newest beat; None if there is none yet, or it is being written."""
    try:
        return Beat(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None

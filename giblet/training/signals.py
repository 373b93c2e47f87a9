"""SIGTERM and Ctrl-C ask the run to stop after the step; a second Ctrl-C leaves at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

from giblet.errors import EXIT_CRASHED


class StopFlag:
    """Within `with StopFlag() as stop`, `stop.requested` turns True when this process is asked to stop.

    Signals can only be caught in the main thread; elsewhere the flag simply stays as it is.
    """

    def __init__(self) -> None:
        self.requested = False
        self._interrupts = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            # Collectives and uploads may hang; the person does not want to wait for them.
            sys.stderr.write("giblet: second interrupt: leaving without saving\n")
            sys.stderr.flush()
            os._exit(EXIT_CRASHED)

"""Seconds, processor seconds and peak memory of a piece of work in this process."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock


@dataclass
class Reading:
    """Of one piece of work; what was paused (the simulation's own work) is not in it.

    `peak_bytes`: how far resident memory rose above what it was when the work began.
    """

    seconds: float = 0.0
    processor_seconds: float = 0.0
    peak_bytes: int = 0
    times: int = 0


@dataclass
class Gauge:
    """Readings by name. Nested work counts in both; not for several threads at one time."""

    readings: dict[str, Reading] = field(default_factory=dict)
    _paused: list[float] = field(default_factory=lambda: [0.0, 0.0])

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add what happens inside to `name`."""
        reading = self.readings.setdefault(name, Reading())
        before = _resident()
        with _PeakOf() as peak:
            began, paused = (time.perf_counter(), time.process_time()), list(self._paused)
            try:
                yield
            finally:
                reading.seconds += time.perf_counter() - began[0] - (self._paused[0] - paused[0])
                reading.processor_seconds += time.process_time() - began[1] - (self._paused[1] - paused[1])
                reading.times += 1
        reading.peak_bytes = max(reading.peak_bytes, peak.highest - before)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The simulation's own work: not counted."""
        began = (time.perf_counter(), time.process_time())
        try:
            yield
        finally:
            self._paused[0] += time.perf_counter() - began[0]
            self._paused[1] += time.process_time() - began[1]

    @contextlib.contextmanager
    def watching(self, *places: tuple[Any, str, str]) -> Iterator[None]:
        """Measure each call of `(owner, attribute)` under a name, while inside."""
        with contextlib.ExitStack() as stack:
            for owner, attribute, name in places:
                original = owner.__dict__[attribute]
                stack.enter_context(mock.patch.object(owner, attribute, self._watched(original, name)))
            yield

    def _watched(self, original: Any, name: str) -> Any:
        if isinstance(original, classmethod):
            return classmethod(self._watched(original.__func__, name))
        call: Callable[..., Any] = original

        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.measure(name):
                return call(*args, **kwargs)

        return measured


class _PeakOf:
    """The highest resident memory while inside, looked at twenty times a second."""

    def __init__(self) -> None:
        self.highest = _resident()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _PeakOf:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self.highest = max(self.highest, _resident())

    def _look(self) -> None:
        while not self._over.wait(0.05):
            self.highest = max(self.highest, _resident())


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096

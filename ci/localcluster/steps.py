"""Progress: each step's name while it runs, its time when it is done, and about how much is left."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localcluster.shell import write_atomically


@dataclass(frozen=True)
class Step:
    """One thing to do. `seconds` is what it took when it was measured; a machine's own last time replaces it."""

    name: str
    action: Callable[[], object]
    seconds: float


class Steps:
    """Runs steps in order, and remembers their durations for the next estimate."""

    def __init__(self, timings: Path, *, write: Callable[[str], object] = sys.stderr.write) -> None:
        self._timings = timings
        self._write = write
        self._known = _read(timings)

    def run(self, steps: list[Step], *, learn: bool = True) -> float:
        """Run all; returns the seconds that it took. A failing step ends it with its own exception.

        Without `learn` the times are not remembered: those of an `up` that finds all done say nothing about the next.
        """
        started = time.monotonic()
        width = len(str(len(steps)))
        for number, step in enumerate(steps, start=1):
            left = sum(self._estimate(later) for later in steps[number - 1 :])
            elapsed = time.monotonic() - started
            head = f"[{number:>{width}}/{len(steps)}] {elapsed:6.1f} s  {step.name}"
            self._write(f"{head} (about {max(1, round(left))} s left)\n")
            began = time.monotonic()
            step.action()
            self._known[step.name] = round(time.monotonic() - began, 2)
        if learn:
            write_atomically(self._timings, json.dumps(self._known, indent=1, sort_keys=True))
        return time.monotonic() - started

    def _estimate(self, step: Step) -> float:
        return self._known.get(step.name, step.seconds)


def _read(timings: Path) -> dict[str, float]:
    try:
        return {str(name): float(seconds) for name, seconds in json.loads(timings.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # the first run, or a damaged file: the built-in estimates do

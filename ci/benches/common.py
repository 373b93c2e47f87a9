"""What the benchmarks share: what was asked for, a line of the table, and commands that are timed."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG = "configs/demo.yaml"
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Options:
    """Rounds of each comparison, minutes of the film, sizes of checkpoints, a folder for what is written."""

    folder: Path
    rounds: int
    minutes: float
    gigabytes: float = 2.0
    megabytes: int = 256

    def example(self) -> Path:
        """The film with a simulated brain of few voxels, so that the film is most of the work; made once."""
        folder = self.folder / "bids"
        if not folder.exists():
            make_example(folder, self.minutes)
        return folder


@dataclass(frozen=True, slots=True)
class Took:
    """What a command needed: wall and processor seconds (of it and its children), and peak memory."""

    seconds: float
    processor_seconds: float
    peak_mib: float


def make_example(folder: Path, minutes: float) -> None:
    """A short example data set with one coarse brain."""
    timed(giblet("example", str(folder), "--minutes", str(minutes), "--resolution-mm", "8", "--subjects", "1"))


def row(name: str, ratios: Sequence[float], *, goal: str = "", note: str = "") -> Row:
    """One line of the table, also said at once."""
    print(f"{name}: {statistics.median(ratios):.3f} {note}", file=sys.stderr, flush=True)
    return {
        "benchmark": name, "median": statistics.median(ratios), "least": min(ratios), "most": max(ratios),
        "rounds": len(ratios), "goal": goal, "note": note,
    }  # fmt: skip


def giblet(*arguments: str) -> list[str]:
    """A giblet command as the system takes it."""
    return [sys.executable, "-m", "giblet", *arguments]


def timed(command: Sequence[str]) -> Took:
    """Run a command, which has to succeed."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)[:200]} failed: {said.decode(errors='replace')[-2000:]}")
    return Took(time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)

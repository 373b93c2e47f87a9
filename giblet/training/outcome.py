"""What came of a rank, left in a file for the process that started it; and which of several was the cause of the rest.

A peer of a rank that failed sees a broken connection, and says so: an echo, never the cause.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from giblet import errors
from giblet.checkpoint.ranks import PeerFailedError
from giblet.errors import EXIT_CRASHED, EXIT_OK, GibletError, StoppedError, cause_of

_BROKEN = re.compile(r"gloo|NCCL|Connection (closed|reset)|Broken pipe|Socket (closed|Timeout)|recvValue failed", re.I)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one rank ended. `kind` is the error's class; `signal` the one that killed it before it could say anything."""

    rank: int
    exit_code: int = EXIT_OK
    kind: str = ""
    message: str = ""
    remedy: str | None = None
    echo: bool = False
    signal: str | None = None
    unix_seconds: float = 0.0
    result: dict[str, Any] | None = None

    def write(self, folder: Path) -> None:
        """Leave it where `read_outcomes` looks."""
        path = outcome_path(folder, self.rank)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self)), encoding="utf-8")
        part.replace(path)

    @property
    def told(self) -> str:
        """Its message, for a person."""
        return self.message if self.known is not None else f"rank {self.rank}: {self.kind}: {self.message}"

    @property
    def known(self) -> type[GibletError] | None:
        """The class of giblet's own errors that ended it; None for any other end."""
        found = getattr(errors, self.kind, None) if self.kind else None
        return found if isinstance(found, type) and issubclass(found, GibletError) else None

    @property
    def cause(self) -> str:
        """The cause in one word: `done`, `crashed`, `killed`, or the error's name (`diverged`, `storage_denied` …)."""
        if self.signal is not None:
            return "killed"
        if self.exit_code == EXIT_OK:
            return "done"
        return "crashed" if self.known is None else cause_of(self.known)


def of_error(rank: int, error: Exception, unix_seconds: float) -> Outcome:
    """The outcome of a rank that raised `error`."""
    if isinstance(error, GibletError):
        return Outcome(
            rank, error.exit_code, type(error).__name__, error.message, error.remedy,
            echo=isinstance(error, PeerFailedError), unix_seconds=unix_seconds,
        )  # fmt: skip
    echo = isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError | ConnectionError) and _BROKEN.search(str(error)) is not None
    )
    return Outcome(
        rank, EXIT_CRASHED, type(error).__name__, str(error)[:2000], echo=echo, unix_seconds=unix_seconds
    )  # fmt: skip


def outcome_path(folder: Path, rank: int) -> Path:
    """The file of a rank's outcome."""
    return folder / f"outcome-{rank}.json"


def read_outcome(folder: Path, rank: int) -> Outcome | None:
    """What a rank left; None if it ended without a word."""
    try:
        return Outcome(**json.loads(outcome_path(folder, rank).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def first_cause(outcomes: Iterable[Outcome]) -> Outcome:
    """The one that explains the others: permanent before passing, causes before echoes, the earlier first."""
    return min(outcomes, key=lambda outcome: (_weight(outcome), outcome.unix_seconds, outcome.rank))


def _weight(outcome: Outcome) -> int:
    if outcome.exit_code == EXIT_OK:
        return 5
    if outcome.echo:
        return 4
    if outcome.exit_code == StoppedError.exit_code and outcome.signal is None:
        return 3
    if outcome.signal is None and outcome.known is None:
        return 2
    return 0 if outcome.exit_code < EXIT_CRASHED else 1

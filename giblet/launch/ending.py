"""How a start, or the whole job, ended: one word, one exit code, one sentence; kept in S3 and in the pod's status."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from giblet.errors import EXIT_CRASHED, EXIT_OK, GibletError, StoppedError, cause_of
from giblet.telemetry.logs import get_logger
from giblet.training.outcome import Outcome, first_cause

TERMINATION_BYTES = 4096
"""What Kubernetes keeps of a termination message."""
log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ending:
    """`cause` is one word: done, stopped, crashed, killed, node_lost, rescaled, hung, or an error's name.

    `echo`: this node only saw a connection break, and another one knows why.
    """

    cause: str
    exit_code: int
    message: str = ""
    remedy: str | None = None
    step: int = 0
    start: int = 0
    echo: bool = False

    @property
    def permanent(self) -> bool:
        """A restart would end the same way."""
        return EXIT_OK < self.exit_code < EXIT_CRASHED

    @property
    def what_to_do(self) -> dict[str, str]:
        """The remedy as a field of a log line; {} where there is none."""
        return {"remedy": self.remedy} if self.remedy else {}


def of_outcomes(outcomes: Iterable[Outcome], *, step: int, start: int) -> Ending:
    """What the ranks' outcomes come to."""
    first = first_cause(outcomes)
    message = "" if first.exit_code == EXIT_OK else first.message if first.signal else first.told
    return Ending(first.cause, first.exit_code, message, first.remedy, step, start, first.echo)


def of_error(error: GibletError, *, step: int = 0, start: int = 0) -> Ending:
    """An error of the launcher's own."""
    cause = "crashed" if error.exit_code in (EXIT_CRASHED, 1) else cause_of(type(error))
    code = EXIT_CRASHED if error.exit_code == 1 else error.exit_code
    return Ending(cause, code, error.message, error.remedy, step, start)


def is_clean(ending: Ending) -> bool:
    """Nothing was lost."""
    return ending.exit_code in (EXIT_OK, StoppedError.exit_code)


def write_termination(path: Path | None, ending: Ending, *, run: str) -> None:
    """The container's termination message: one JSON object that fits, whatever the error said."""
    if path is None:
        return
    row = {
        "exit_code": ending.exit_code, "cause": ending.cause, "message": ending.message, "step": ending.step,
        "run": run, "start": ending.start,
    }  # fmt: skip
    while len(body := json.dumps(row)) > TERMINATION_BYTES:
        row["message"] = str(row["message"])[: -(len(body) - TERMINATION_BYTES) // 6 - 8] + " […]"
    try:
        path.write_text(body, encoding="utf-8")
    except OSError as error:
        log.warning("the termination message could not be written", path=str(path), error=str(error))

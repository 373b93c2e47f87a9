"""Has the job ended? Asked of Kubernetes; where that does not answer, of what the run left in storage.

Two witnesses, because either can be taken away: the PyTorchJob's own conditions, and the record that each start of a
run writes when it ends (`starts/<n>.end.json`). The second is believed only when the first has been silent, or the job
gone, for longer than `verify.patience_seconds`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal, Protocol

from giblet.checkpoint import layout
from giblet.checkpoint.records import read_record
from giblet.checkpoint.starts import newest_start
from giblet.config.schema import VerifyConfig
from giblet.errors import cause_of
from giblet.storage import Storage
from giblet.telemetry.logs import get_logger
from giblet.verify.jobs import Job, Jobs, JobsDeniedError, JobsUnavailableError

REPEAT_SECONDS = 300.0
"""What has not changed is said again after so long."""
_FIRST_RETRYABLE_EXIT_CODE = 128
log = get_logger(__name__)

State = Literal["waiting", "ended", "missing"]


class Clock(Protocol):
    """Time, so that tests need not wait."""

    def now(self) -> float:
        """Seconds since some moment; never backwards."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


class SystemClock:
    """Real time."""

    def now(self) -> float:
        """See `Clock.now`."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        time.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Sight:
    """What is known of the job now. `job` is the newest one seen, None if none ever was.

    `missing`: no job was there for all of the patience, and nothing says that the run has ended.
    """

    state: State
    what: str
    job: Job | None = None
    suspended: bool = False
    error: str | None = None
    """In one word, why Kubernetes could not be asked this time."""


class JobWatch:
    """Looks at the job, bears with what does not answer, and logs what changes."""

    def __init__(
        self, jobs: Jobs, storage: Storage, run: str, config: VerifyConfig, clock: Clock | None = None
    ) -> None:
        self._jobs, self._storage, self._run, self._config = jobs, storage, run, config
        self._clock = clock if clock is not None else SystemClock()
        self._job: Job | None = None
        self._silent_since: float | None = None
        self._said: tuple[str, float] = ("", 0.0)
        self._ended_before = self._ended_start()

    def look(self) -> Sight:
        """What is known now. Raises only what storage raises."""
        try:
            job = self._jobs.look()
        except JobsUnavailableError as error:
            return self._unheard(error)
        if job is None:
            return self._absent()
        if self._job is not None and job.uid != self._job.uid:
            log.warning("the job was replaced by another of the same name", job=job.uid, was=self._job.uid)
        self._job, self._silent_since = job, None
        self._say(f"job is {job.phase}", reason=job.reason, detail=job.message)
        what = f"{job.phase}: {job.message}" if job.message else job.phase
        return Sight("ended" if job.ended else "waiting", what, job, suspended=job.phase == "Suspended")

    def _absent(self) -> Sight:
        """Not made yet (it may come after this pod), deleted, or never to be."""
        end = self._ended_start()
        if self._job is not None:
            what = "the job was deleted"
            if end is not None and end != self._ended_before:
                return Sight("ended", f"{what}; the run had ended ({end})", self._job)
        else:
            what = f"there is no PyTorchJob {self._jobs.name} in namespace {self._jobs.namespace}"
        self._say(what)
        if not self._out_of_patience():
            return Sight("waiting", what, self._job)
        if self._job is not None or end is not None:
            return Sight("ended", f"{what}{f'; the run had ended ({end})' if end else ''}", self._job)
        return Sight("missing", what)

    def _unheard(self, error: JobsUnavailableError) -> Sight:
        """The API server is away, or refuses: after a while, believe storage."""
        what, remedy = "the Kubernetes API does not answer", "the gate goes on asking, and verifies what it can"
        word = cause_of(type(error))
        if isinstance(error, JobsDeniedError):
            what = "the Kubernetes API refuses the gate"
            remedy = f"let this service account get and patch pytorchjobs {self._jobs.name} in {self._jobs.namespace}"
        self._say(what, warn=True, error=str(error), remedy=remedy)
        end = self._ended_start()
        patient = not self._out_of_patience()
        if end is None or patient or (end == self._ended_before and not self._out_of_patience(2)):
            return Sight("waiting", f"not known: {error}", self._job, error=word)
        return Sight("ended", f"by the run's own record ({end}), since {error}", self._job, error=word)

    def _out_of_patience(self, times: float = 1.0) -> bool:
        now = self._clock.now()
        if self._silent_since is None:
            self._silent_since = now
        return now - self._silent_since >= times * self._config.patience_seconds

    def _ended_start(self) -> str | None:
        """How the run's newest start ended for good; None while it runs, or is to be tried again."""
        number = newest_start(self._storage, self._run)
        end = read_record(self._storage, layout.end_key(self._run, number)) if number else None
        code = end.get("exit_code") if end else None
        if end is None or not isinstance(code, int) or code >= _FIRST_RETRYABLE_EXIT_CODE:
            return None
        return f"start {number}: {end.get('cause')}, exit {code}, step {end.get('step')}"

    def _say(self, message: str, *, warn: bool = False, **fields: str) -> None:
        text, when = self._said
        if message != text or self._clock.now() - when >= REPEAT_SECONDS:
            self._said = (message, self._clock.now())
            (log.warning if warn else log.info)(message, **{name: value for name, value in fields.items() if value})

"""What the gate asks of Kubernetes: look at one PyTorchJob, annotate it, record an event on it.

`MemoryJobs` is the shipped fake; `kubernetes_jobs.KubernetesJobs` is the real one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

Phase = Literal["Pending", "Created", "Running", "Restarting", "Suspended", "Succeeded", "Failed"]
EventKind = Literal["Normal", "Warning"]


class JobsUnavailableError(Exception):
    """The API server does not answer, or not with an answer. It may later."""


class JobsDeniedError(JobsUnavailableError):
    """The API server answered, and said no: no permission, or an identity it does not know."""


@dataclass(frozen=True, slots=True)
class Job:
    """A PyTorchJob as its status has it. `uid` tells it from a later one of the same name."""

    uid: str
    phase: Phase
    reason: str = ""
    message: str = ""

    @property
    def ended(self) -> bool:
        """It will not run again."""
        return self.phase in ("Succeeded", "Failed")


class Jobs(Protocol):
    """One PyTorchJob of one namespace. Every call raises `JobsUnavailableError` or `JobsDeniedError`."""

    name: str
    namespace: str

    def look(self) -> Job | None:
        """The job as it is now; None if there is none."""
        ...

    def annotate(self, job: Job, annotations: Mapping[str, str]) -> bool:
        """Set annotations; False if this very job is gone."""
        ...

    def record_event(self, job: Job, kind: EventKind, reason: str, message: str) -> None:
        """Leave an event on the job, for `kubectl describe`."""
        ...


@dataclass
class MemoryJobs:
    """A cluster with at most one job, in memory. Set `error` to be refused."""

    name: str = "movie"
    namespace: str = "lab"
    job: Job | None = None
    error: JobsUnavailableError | None = None
    annotations: dict[str, dict[str, str]] = field(default_factory=dict)
    events: list[tuple[EventKind, str, str]] = field(default_factory=list)

    def look(self) -> Job | None:
        """See `Jobs.look`."""
        self._answer()
        return self.job

    def annotate(self, job: Job, annotations: Mapping[str, str]) -> bool:
        """See `Jobs.annotate`."""
        self._answer()
        if self.job is None or self.job.uid != job.uid:
            return False
        self.annotations.setdefault(job.uid, {}).update(annotations)
        return True

    def record_event(self, job: Job, kind: EventKind, reason: str, message: str) -> None:
        """See `Jobs.record_event`."""
        self._answer()
        self.events.append((kind, reason, message))

    def _answer(self) -> None:
        if self.error is not None:
            raise self.error

"""From the installed release to its end: what the pods are doing, what keeps them, and what came of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from smokerun.cluster import Cluster, LogFollower
from smokerun.errors import CannotStartError, RunFailedError, TimedOutError
from smokerun.release import Release
from smokerun.trouble import phase_of, trouble_of

POLL_SECONDS = 2
ENDED = ("Succeeded", "Failed")
MAIN_CONTAINERS = {"worker": "pytorch", "verify": "verify", "rendezvous": "rendezvous"}


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    job: str | None
    job_message: str
    verdict: str | None
    verified_step: int | None
    report: str | None


@dataclass
class Watching:
    """One release under way."""

    cluster: Cluster
    release: Release
    say: Callable[[str], None]
    deadline: float
    patience_seconds: float
    seconds: dict[str, float] = field(default_factory=dict)
    """When what happened, since the install."""

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        self.logs = LogFollower(self.cluster, self.say)
        self._phases: dict[str, str] = {}
        self._troubles: dict[tuple[str, str], float] = {}

    def until_the_end(self) -> Outcome:
        """Wait for the job, then for its verification. Raises the SmokeError that fits, as soon as it is clear."""
        job = self._job_at_its_end()
        self._mark("job")
        self.say(f"job: {_condition(job)[0]}; waiting for the verdict")
        verification = self._verification_at_its_end()
        self._mark("verdict")
        self.logs.drain()
        job = self.cluster.job(self.release.job)
        notes = job.metadata.annotations or {}
        state, message = _condition(job)
        step = notes.get("giblet.dev/verified-step", "")
        outcome = Outcome(
            state, message, notes.get("giblet.dev/verdict"), int(step) if step.isdigit() else None,
            notes.get("giblet.dev/report"),
        )  # fmt: skip
        if outcome.verdict is None:
            raise RunFailedError(
                f"the job ended ({state}: {message}) and verification gave no verdict ({_why(verification)})"
                + self._last_words(),
                remedy="the logs above say why; `--keep` leaves the pods there to look into",
            )
        return outcome

    def _job_at_its_end(self) -> Any:
        while True:
            left = max(self.deadline - time.monotonic(), POLL_SECONDS)
            try:
                return self.cluster.training.wait_for_job_conditions(
                    self.release.job, expected_conditions=set(ENDED), wait_timeout=round(left) + POLL_SECONDS,
                    polling_interval=POLL_SECONDS, callback=self._look,
                )  # fmt: skip
            except TimeoutError:
                self._not_too_late()
            except RuntimeError as error:  # the client's word for any answer that it did not like
                if isinstance(error.__cause__ or error.__context__, ApiException):
                    cause = error.__cause__ or error.__context__
                    if getattr(cause, "status", None) == 404:
                        raise RunFailedError("somebody deleted the PyTorchJob while it ran") from None
                self._not_too_late()
                time.sleep(POLL_SECONDS)

    def _verification_at_its_end(self) -> Any:
        name = f"{self.release.job}-verify"
        while True:
            self._look(None)
            found = self.cluster.verification(name)
            if found is None or _verification_state(found) is not None:
                return found
            time.sleep(POLL_SECONDS)

    def _look(self, job: Any) -> None:
        """Once a poll: say what changed, follow new logs, and give up where waiting is of no use."""
        self._not_too_late()
        try:
            pods = self.cluster.pods(self.release)
        except (ApiException, HTTPError, OSError) as error:
            self.say(f"the API server did not answer, asking again ({type(error).__name__})")
            return
        running = [pod for pod in pods if _component(pod) == "worker" and phase_of(pod) == "Running"]
        if running:
            self._mark("worker_running")
        for pod in pods:
            self._follow(pod)
        enough = len(running) >= self.release.fewest_workers
        self._give_up_on_trouble([pod for pod in pods if not (enough and _component(pod) == "worker")])
        if job is not None and not any(_component(pod) == "worker" for pod in pods):
            self._give_up_without_pods(job)

    def _follow(self, pod: Any) -> None:
        name, phase = pod.metadata.name, phase_of(pod)
        if self._phases.get(pod.metadata.uid) != phase:
            self._phases[pod.metadata.uid] = phase
            self.say(f"pod {name}: {phase}")
        if phase.startswith("init "):
            self.logs.follow(pod, phase.removeprefix("init "))
        if phase in ("Running", *ENDED):
            self.logs.follow(pod, MAIN_CONTAINERS[_component(pod)])

    def _give_up_on_trouble(self, pods: list[Any]) -> None:
        """Raise CannotStartError for what does not pass by itself, or has lasted too long."""
        now = time.monotonic()
        troubles = [trouble for pod in pods if (trouble := trouble_of(pod)) is not None]
        self._troubles = {
            (found.pod, found.reason): self._troubles.get((found.pod, found.reason), now) for found in troubles
        }
        for trouble in troubles:
            lasted = now - self._troubles[trouble.pod, trouble.reason]
            if not trouble.lasting or lasted > self.patience_seconds:
                raise CannotStartError(
                    f"pod {trouble.pod} does not start: {trouble.reason}: {trouble.message}", remedy=trouble.remedy
                )

    def _give_up_without_pods(self, job: Any) -> None:
        """No worker at all: refused by the API server, held back by a queue, or nobody is there to create it."""
        if _condition(job)[0] in ENDED or time.monotonic() - self.began < min(self.patience_seconds, 30):
            return
        if warnings := self.cluster.warnings(self.release.job):
            raise CannotStartError(f"the operator cannot create the workers: {warnings[-1]}")
        if not (job.status and job.status.conditions):
            raise CannotStartError(
                "nobody took up the PyTorchJob: its definition is there, but the operator is not running",
                remedy="kubectl -n kubeflow get pods; kubectl -n kubeflow logs deployment/training-operator",
            )
        if time.monotonic() - self.began > self.patience_seconds:
            state, message = _condition(job)
            raise CannotStartError(f"the job is {state}, without a worker: {message or 'a queue holds it back'}")

    def _not_too_late(self) -> None:
        if time.monotonic() > self.deadline:
            now = ", ".join(sorted(set(self._phases.values()))) or "no pods"
            raise TimedOutError(
                f"it was not over in time (pods: {now})", remedy="--timeout SECONDS, or look with --keep"
            )

    def _mark(self, what: str) -> None:
        self.seconds.setdefault(what, round(time.monotonic() - self.began, 1))

    def _last_words(self) -> str:
        """What ended containers left in their termination message."""
        said = []
        for pod in self.cluster.pods(self.release):
            for status in pod.status.container_statuses or []:
                ended = status.state.terminated if status.state is not None else None
                if ended is not None and ended.exit_code:
                    said.append(
                        f"{pod.metadata.name} exit {ended.exit_code}: {_message(ended.message or ended.reason)}"
                    )
        return "".join(f"\n  {line}" for line in said)


def _component(pod: Any) -> str:
    return str(pod.metadata.labels.get("app.kubernetes.io/component", ""))


def _condition(job: Any) -> tuple[str, str]:
    """The newest condition that holds."""
    conditions = [c for c in (job.status.conditions if job.status else None) or [] if c.status == "True"]
    for ended in ENDED:
        for condition in conditions:
            if condition.type == ended:
                return ended, condition.message or ""
    return (conditions[-1].type, conditions[-1].message or "") if conditions else ("not begun", "")


def _verification_state(job: Any) -> str | None:
    for condition in job.status.conditions or []:
        if condition.type in ("Complete", "Failed") and condition.status == "True":
            return str(condition.type)
    return None


def _why(verification: Any) -> str:
    if verification is None:
        return "its Job is gone"
    messages = [c.message for c in verification.status.conditions or [] if c.type == "Failed" and c.message]
    return messages[-1] if messages else "its Job ended without a word"


def _message(text: str | None) -> str:
    """A termination message, which is JSON where giblet wrote it."""
    try:
        found = json.loads(text or "")
        return f"{found['cause']}: {found['message']}" if isinstance(found, dict) else str(text)
    except (ValueError, KeyError):
        return str(text)

"""The gate: stands beside a training job, reads back what it commits, and ends with the verdict on the last of it.

    result = Gate(config, storage, KubernetesJobs.open(name, namespace), metrics).run()

One loop, nothing held between two rounds but what was judged: look at the job, judge what is new (`verify.when: each`),
sleep. Once the job has ended, succeeded or not, the last checkpoint is judged, by reading it again whatever an earlier
process thought of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from giblet.checkpoint.layout import CheckpointRef, reports_prefix
from giblet.checkpoint.resume import verified_ref
from giblet.checkpoint.survey import survey
from giblet.config.schema import GibletConfig
from giblet.errors import CheckpointError, ConfigError, DeadlineError, StorageUnavailableError
from giblet.storage import Storage
from giblet.telemetry.logs import get_logger
from giblet.telemetry.metrics import Metrics
from giblet.verify import announce
from giblet.verify.job_watch import Clock, JobWatch, Sight, SystemClock
from giblet.verify.jobs import Job, Jobs
from giblet.verify.judge import verify
from giblet.verify.pointer import record
from giblet.verify.report import Report
from giblet.verify.signing import Signer

_PAUSES_SECONDS = (1.0, 2.0, 5.0, 10.0, 20.0)
log = get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GateResult:
    """How the gate ended: the report on the last checkpoint, what became of the job, and what is trusted now."""

    report: Report
    ref: CheckpointRef
    job: str
    verified: CheckpointRef | None
    judged: int

    @property
    def exit_code(self) -> int:
        """The verdict's."""
        return self.report.exit_code


class Gate:
    """Verifies one run. `judge` is `verify`, or what a test puts in its place.

    Raises `ConfigError` if `verify.signing_key` cannot be read: before anything is waited for.
    """

    def __init__(
        self,
        config: GibletConfig,
        storage: Storage,
        jobs: Jobs,
        metrics: Metrics,
        *,
        clock: Clock | None = None,
        judge: Callable[..., Report] = verify,
    ) -> None:
        self._config, self._storage, self._jobs, self._metrics = config, storage, jobs, metrics
        for cause in ("storage", "jobs_unavailable", "jobs_denied"):  # the first one is seen as a rise
            metrics.add("verify_errors_total", 0, cause=cause)
        self._run = config.run.name
        self._clock = clock if clock is not None else SystemClock()
        self._judge_one = judge
        key = config.verify.signing_key
        self._signer = Signer.read(Path(key)) if key is not None else None
        self._judged: dict[CheckpointRef, Report] = {}
        self._untold: tuple[Report, CheckpointRef] | None = None

    def run(self) -> GateResult:
        """Watch until the job has ended, then judge the last checkpoint.

        Raises `CheckpointError` if the job ended without any, `ConfigError` if there is no such job, `DeadlineError`
        if it did not end in time, and storage's own errors once it has been away for `verify.patience_seconds`.
        """
        settings = self._config.verify
        watch = self._patiently(lambda: JobWatch(self._jobs, self._storage, self._run, settings, self._clock))
        self._begin()
        waited, looked = 0.0, self._clock.now()
        while True:
            sight = self._patiently(watch.look)
            self._metrics.set("job_active", float(sight.state == "waiting"))
            if sight.error is not None:
                self._metrics.add("verify_errors_total", cause=sight.error)
            if sight.state == "missing":
                raise ConfigError(sight.what, remedy="name the job with --job and --namespace, or start it")
            if sight.state == "ended":
                result = self._conclude(sight)
                if not self._went_on(watch, sight):
                    return result
                continue
            if settings.deadline_seconds is not None and waited >= settings.deadline_seconds:
                return self._out_of_time(sight, settings.deadline_seconds)
            if not (settings.when == "each" and self._judge_new(sight.job)):
                self._clock.sleep(settings.poll_seconds)
            waited += 0.0 if sight.suspended else self._clock.now() - looked
            looked = self._clock.now()

    def _begin(self) -> None:
        verified = self._patiently(lambda: verified_ref(self._storage, self._run))
        self._metrics.add("verify_bytes_total", 0)
        announce.tell_verified(self._metrics, self._storage, verified)
        announce.forget(self._run, self._config.verify.pushgateway_url, self._jobs.namespace)
        log.info(
            "gate", job=self._jobs.name, namespace=self._jobs.namespace, storage=self._storage.url,
            when=self._config.verify.when, verified_step=verified.step if verified is not None else announce.NONE,
        )  # fmt: skip

    def _conclude(self, sight: Sight) -> GateResult:
        """Judge the last checkpoint; what is committed meanwhile (a pod that saves while it ends) comes after it."""
        log.info("the job has ended", how=sight.what)
        report = None
        while (newest := self._newest()) is not None:
            while self._config.verify.when == "each" and self._judge_new(sight.job, oldest_first=True):
                pass  # the last one comes last, so that its verdict is the one that is seen
            report = self._judged.get(newest) or self._judge(newest, sight.job)
            if report is not None and self._newest() == newest:
                break
        if report is None or newest is None:
            raise CheckpointError(
                f"{self._storage.url}: run {self._run} has no checkpoint, and its job has ended ({sight.what})",
                remedy="read the job's log; checkpoint.save_every_epochs and save_every_steps say when it saves, and "
                "`giblet runs` shows quarantined ones, which do not count",
            )
        if self._untold is not None:
            self._tell_job(sight.job, *self._untold)
        verified = self._patiently(lambda: verified_ref(self._storage, self._run))
        return GateResult(report, newest, sight.what, verified, len(self._judged))

    def _went_on(self, watch: JobWatch, before: Sight) -> bool:
        """Whether another job of the same name came while the last checkpoint was judged."""
        if before.job is None:
            return False
        now = self._patiently(watch.look)
        return now.state == "waiting" and now.job is not None and now.job.uid != before.job.uid

    def _out_of_time(self, sight: Sight, seconds: float) -> GateResult:
        newest = self._newest()
        report = (self._judged.get(newest) or self._judge(newest, sight.job)) if newest is not None else None
        if report is not None and newest is not None and report.exit_code:
            return GateResult(report, newest, sight.what, verified_ref(self._storage, self._run), len(self._judged))
        found = "it has no checkpoint"
        if report is not None and newest is not None:
            found = f"its newest checkpoint, step {newest.step}, is {report.verdict}"
        raise DeadlineError(
            f"{self._jobs.name} has not ended within verify.deadline_seconds {seconds:g} ({sight.what}); {found}",
            remedy="look at the job's pods, or raise verify.deadline_seconds",
        )

    def _judge_new(self, job: Job | None, *, oldest_first: bool = False) -> bool:
        """Judge the newest commit that nobody has judged yet (or the oldest such); False if there is none."""
        reports = self._patiently(lambda: {info.key for info in self._storage.list(reports_prefix(self._run))})
        waiting = [ref for ref in self._commits() if ref not in self._judged and ref.report_key not in reports]
        if waiting:
            self._judge(min(waiting) if oldest_first else max(waiting), job)
        return bool(waiting)

    def _judge(self, ref: CheckpointRef, job: Job | None) -> Report | None:
        """Read one checkpoint back, record and announce the verdict; None if it was removed or quarantined by then."""
        url = f"{self._storage.url}/{ref.prefix.rstrip('/')}"
        log.info("judging", step=ref.step, checkpoint=url)
        try:
            report = self._patiently(
                lambda: self._judge_one(
                    url, storage=self._storage, config=self._config, restore=self._config.verify.restore
                )
            )
        except CheckpointError:
            if self._is_there(ref):
                raise
            report = None
        if report is None or (report.exit_code and not self._is_there(ref)):
            log.info("removed by retention while it was read", step=ref.step)
            return None
        if self._patiently(lambda: self._storage.head(ref.quarantine_key)) is not None:
            log.warning("quarantined while it was read, so it is passed over", step=ref.step, verdict=report.verdict)
            return None
        self._judged[ref] = report
        verified = self._patiently(lambda: record(report, self._storage, ref, signer=self._signer))
        announce.tell_metrics(self._metrics, report)
        announce.tell_verified(self._metrics, self._storage, verified)
        announce.push(self._metrics, self._config.verify.pushgateway_url, self._jobs.namespace)
        self._tell_job(job, report, ref)
        return report

    def _tell_job(self, job: Job | None, report: Report, ref: CheckpointRef) -> None:
        self._untold = None if job is not None and self._told(job, report, ref) else (report, ref)

    def _told(self, job: Job, report: Report, ref: CheckpointRef) -> bool:
        verified = self._patiently(lambda: verified_ref(self._storage, self._run))
        return announce.tell_job(self._jobs, job, report, ref, verified, f"{self._storage.url}/{ref.report_key}")

    def _commits(self) -> list[CheckpointRef]:
        """What may be judged. A quarantined checkpoint was found bad already, and nobody resumes from it."""
        found = self._patiently(lambda: survey(self._storage, self._run))
        return [entry.ref for entry in found if entry.committed and not entry.quarantined]

    def _newest(self) -> CheckpointRef | None:
        return max(self._commits(), default=None)

    def _is_there(self, ref: CheckpointRef) -> bool:
        return self._patiently(lambda: self._storage.head(ref.manifest_key)) is not None

    def _patiently(self, call: Callable[[], T]) -> T:
        """`call`, again and again while storage is away, for `verify.patience_seconds`."""
        since, tries = self._clock.now(), 0
        while True:
            try:
                return call()
            except StorageUnavailableError as error:
                away = self._clock.now() - since
                if away >= self._config.verify.patience_seconds:
                    raise
                pause = _PAUSES_SECONDS[min(tries, len(_PAUSES_SECONDS) - 1)]
                self._metrics.add("verify_errors_total", cause="storage")
                log.warning("storage is away, trying again", error=error.message, pause_seconds=pause)
                self._clock.sleep(pause)
                tries += 1

"""Tells the world a verdict: metrics, annotations and an event on the job, a Pushgateway. Nothing here changes it.

What cannot be told is logged and left; the verdict is in the report, in the exit code and in the log anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import prometheus_client

from giblet.checkpoint.layout import CheckpointRef
from giblet.checkpoint.records import read_record
from giblet.storage import Storage
from giblet.telemetry.logs import get_logger
from giblet.telemetry.metrics import METRICS, Metrics
from giblet.verify.jobs import EventKind, Job, Jobs, JobsUnavailableError
from giblet.verify.report import VERDICT_NUMBERS, Report

VERDICT, VERIFIED_STEP, REPORT = "giblet.dev/verdict", "giblet.dev/verified-step", "giblet.dev/report"
NONE = "none"
PUSH_JOB = "giblet_verify"
_PUSH_SECONDS = 10.0
log = get_logger(__name__)


def tell_metrics(metrics: Metrics, report: Report) -> None:
    """What was found in the checkpoint judged last."""
    metrics.set("verify_verdict", VERDICT_NUMBERS[report.verdict])
    metrics.add("verify_judgements_total", verdict=report.verdict)
    if report.step is not None:
        metrics.set("verify_judged_step", report.step)
    metrics.set("verify_tensors", len(report.records))
    metrics.set("verify_elements", sum(record.elements for record in report.records.values()))
    metrics.set("verify_nan_elements", report.total("nan"))
    metrics.set("verify_inf_elements", report.total("inf"))
    metrics.set("verify_over_limit_elements", report.total("over_limit"))
    metrics.set("verify_zero_tensors", len(report.zero_tensors))
    metrics.add("verify_bytes_total", report.bytes_read)
    metrics.set("verify_seconds", report.seconds)


def tell_verified(metrics: Metrics, storage: Storage, verified: CheckpointRef | None) -> None:
    """The newest checkpoint that was accepted, and when: 0 where there is none. It may have been another pod's work."""
    report = read_record(storage, verified.report_key) if verified is not None else None
    metrics.set("verify_verified_step", verified.step if verified is not None else 0)
    metrics.set("verify_verified_timestamp_seconds", float((report or {}).get("judged_unix_seconds") or 0.0))


def tell_job(
    jobs: Jobs, job: Job, report: Report, ref: CheckpointRef, verified: CheckpointRef | None, report_url: str
) -> bool:
    """Annotate the job and leave an event on it. Returns whether both were done."""
    annotations = {
        VERDICT: report.verdict,
        VERIFIED_STEP: NONE if verified is None else str(verified.step),
        REPORT: report_url,
    }
    kind, reason, message = event_of(report, ref.step)
    told = _tried("annotate the job", lambda: jobs.annotate(job, annotations))
    return _tried("record an event on the job", lambda: jobs.record_event(job, kind, reason, message)) and told


def event_of(report: Report, step: int) -> tuple[EventKind, str, str]:
    """Kind, reason and message of the event of a verdict."""
    failed = [check for check in report.checks if check.status == "failed"]
    where = f"checkpoint of step {step}"
    if failed:
        return (
            "Warning",
            "CheckpointRejected",
            f"{where} is {report.verdict}: " + "; ".join(f"{check.name}: {check.detail}" for check in failed),
        )
    return (
        "Normal",
        "CheckpointAccepted",
        f"{where} is {report.verdict}: {len(report.records):,} tensors, " + (f"{report.bytes_read:,} bytes read back"),
    )


def _tried(what: str, call: Callable[[], Any]) -> bool:
    try:
        call()
    except JobsUnavailableError as error:
        log.warning(f"cannot {what}; the verdict stands without it", error=str(error))
        return False
    return True


def push(metrics: Metrics, url: str | None, namespace: str) -> None:
    """Tell a Pushgateway what was verified, in place of what it was told before of this run; nothing without `url`.

    Only that: a gateway goes on telling what it was told, and "the job is active" would stay true in it for ever.
    """
    if url is None:
        return
    verdicts = metrics.registry.restricted_registry(
        [metric.full_name for metric in METRICS if metric.name.startswith("verify_")]
    )
    try:
        prometheus_client.push_to_gateway(
            url, PUSH_JOB, verdicts, _grouping(metrics.run, namespace), timeout=_PUSH_SECONDS
        )
    except OSError as error:
        log.warning("the Pushgateway was not told", url=url, error=f"{type(error).__name__}: {error}")


def forget(run: str, url: str | None, namespace: str) -> bool:
    """Remove what a Pushgateway keeps of this run: an earlier verdict must not look like this one's."""
    if url is None:
        return True
    try:
        prometheus_client.delete_from_gateway(url, PUSH_JOB, _grouping(run, namespace), timeout=_PUSH_SECONDS)
    except OSError as error:
        log.warning("the Pushgateway keeps what it was told earlier", url=url, error=f"{type(error).__name__}: {error}")
        return False
    return True


def _grouping(run: str, namespace: str) -> dict[str, Any]:
    return {"run": run, "namespace": namespace}

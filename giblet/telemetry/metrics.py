"""Every metric's name, kind, unit and help text, once; and the registry that holds them.

Dashboards, alerts and the documentation are checked against `METRICS`. Names are without the `giblet_` prefix.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Literal, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the series, and say nothing here
Instrument: TypeAlias = Counter | Gauge | Histogram
STEP_SECONDS_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
WAIT_SECONDS_BUCKETS = (0.0001, 0.001, 0.01, 0.1, 0.5, 1, 5, 10, 50)
SAVE_SECONDS_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000, 2500)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as Prometheus sees it."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ("run",)
    buckets: tuple[float, ...] = ()

    @property
    def full_name(self) -> str:
        """With the prefix."""
        return f"giblet_{self.name}"


METRICS: tuple[Metric, ...] = (
    # The run as a whole. From storage, so that they outlive every process.
    Metric("run_info", "gauge", "1; what trains.", ("run", "version", "image", "device", "sharding")),
    Metric("run_created_timestamp_seconds", "gauge", "Unix time at which the run first began."),
    Metric("run_started_timestamp_seconds", "gauge", "Unix time at which its newest start began."),
    Metric("run_starts", "gauge", "Starts of the run so far, the one that goes on included."),
    Metric("restarts_total", "counter", "Restarts since the run began, by what ended the start before.", (
        "run", "cause")),
    Metric("steps_lost_total", "counter", "Steps done and lost to restarts since the run began, where known."),
    Metric("restart_budget", "gauge", "Restarts without a newly committed step that end the run."),
    Metric("restart_budget_left", "gauge", "Restarts left before the run is ended; a new commit refills it."),
    # Training.
    Metric("train_step", "gauge", "Optimizer steps done; goes back to the checkpoint when a restart loses some."),
    Metric("train_planned_steps", "gauge", "Optimizer steps that the run is to do in all."),
    Metric("train_step_timestamp_seconds", "gauge", "Unix time of the newest step; before this process's first one, "
           "of its start."),
    Metric("train_ended", "gauge", "1 once training has reached its end or has diverged, 0 before."),
    Metric("train_epoch", "gauge", "Passes over the training samples done since the run began."),
    Metric("train_batch_samples", "gauge", "Samples of one optimizer step, all ranks together."),
    Metric("train_samples_total", "counter", "Samples trained on since the run began, all ranks together; lost steps "
           "count where they are known."),
    Metric("train_tokens_total", "counter", "EnCodec codes (tokens) trained on, all ranks together; a restart goes on "
           "from what the checkpoint holds."),
    Metric("train_loss", "gauge", "Loss of the newest step, by term, relative to its variance.", ("run", "term")),
    Metric("train_step_seconds", "histogram", "Seconds an optimizer step took, the wait for its data included.",
           buckets=STEP_SECONDS_BUCKETS),
    Metric("train_data_wait_seconds", "histogram", "Seconds a step waited for its data.", buckets=WAIT_SECONDS_BUCKETS),
    Metric("train_grad_norm", "gauge", "Global gradient norm of the newest step, before clipping."),
    Metric("train_learning_rate", "gauge", "Learning rate of the newest step."),
    Metric("train_world_size", "gauge", "Ranks that train."),
    Metric("train_gpu_memory_bytes", "gauge", "Peak GPU memory of rank 0 of this node."),
    Metric("validation_loss", "gauge", "Validation loss of the newest validation, by term.", ("run", "term")),
    Metric("validation_bold_correlation", "gauge", "Mean over voxels of the correlation over validation TRs."),
    Metric("validation_best_score", "gauge", "Best validation loss so far."),
    Metric("validation_seconds", "gauge", "Seconds the newest validation took."),
    # Checkpoints and the storage beneath them.
    Metric("checkpoint_committed_step", "gauge", "Step of the newest committed checkpoint."),
    Metric("checkpoint_committed_timestamp_seconds", "gauge", "Unix time of the newest commit."),
    Metric("checkpoint_interval_steps", "gauge", "Most steps between two saves, by the configuration."),
    Metric("checkpoint_save_seconds", "histogram", "Seconds from the beginning of a save to its commit.",
           buckets=SAVE_SECONDS_BUCKETS),
    Metric("checkpoint_stall_seconds", "histogram", "Seconds training stood still for a save.",
           buckets=STEP_SECONDS_BUCKETS),
    Metric("checkpoint_bytes_total", "counter", "Bytes of the checkpoints that this process committed."),
    Metric("checkpoint_failures_total", "counter", "Saves of this process that failed, by cause.", ("run", "cause")),
    Metric("storage_requests_total", "counter", "Requests to S3 by this process, each try counted, by what came of "
           "them: ok, missing, exists, denied, throttled, server, connection.", ("run", "operation", "outcome")),
    # Verification.
    Metric("verify_verdict", "gauge", "Of the newest verification: 2 SAFE, 1 SAFE WITH WARNINGS, 0 UNSAFE."),
    Metric("verify_judged_step", "gauge", "Step of the newest checkpoint that was judged, whatever the verdict."),
    Metric("verify_judgements_total", "counter", "Checkpoints judged by this process, by verdict.", (
        "run", "verdict")),
    Metric("verify_errors_total", "counter", "Attempts to judge that failed, by cause.", ("run", "cause")),
    Metric("verify_tensors", "gauge", "Tensors in the verified checkpoint."),
    Metric("verify_elements", "gauge", "Elements in the verified checkpoint."),
    Metric("verify_nan_elements", "gauge", "NaN elements in the verified checkpoint."),
    Metric("verify_inf_elements", "gauge", "Infinite elements in the verified checkpoint."),
    Metric("verify_over_limit_elements", "gauge", "Elements beyond the magnitude limit in the verified checkpoint."),
    Metric("verify_zero_tensors", "gauge", "All-zero tensors in the verified checkpoint."),
    Metric("verify_bytes_total", "counter", "Bytes read back by verification."),
    Metric("verify_seconds", "gauge", "Seconds the newest verification took."),
    Metric("verify_verified_step", "gauge", "Step of the newest checkpoint that verification accepted."),
    Metric("verify_verified_timestamp_seconds", "gauge", "Unix time at which it was accepted."),
    Metric("job_active", "gauge", "1 while the PyTorchJob that the verifier watches is neither done, failed nor gone."),
)  # fmt: skip
_BY_NAME = {metric.name: metric for metric in METRICS}


class Metrics:
    """The metrics of one process, each with its `run` label bound. Safe between threads.

    `set`, `add` and `observe` take the short name; extra labels by keyword. Unknown names raise `KeyError`. An
    `exemplar` (at most 128 characters of names and values) points from a number to what caused it, for instance the
    step; scrapers that ask for OpenMetrics see it.
    """

    def __init__(self, run: str, registry: CollectorRegistry | None = None) -> None:
        self.run = run
        self.registry = registry if registry is not None else CollectorRegistry()
        self._instruments: dict[str, Instrument] = {}
        self._children: dict[tuple[str, tuple[tuple[str, str], ...]], Instrument] = {}
        self._raised: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._lock = threading.Lock()

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        child = self._child(name, labels)
        if not isinstance(child, Gauge):
            raise TypeError(f"{name} is no gauge")
        child.set(value)

    def add(self, name: str, amount: float = 1.0, *, exemplar: dict[str, str] | None = None, **labels: str) -> None:
        """Add to a counter; an amount of 0 makes it appear, so that its first increase is seen."""
        child = self._child(name, labels)
        if not isinstance(child, Counter):
            raise TypeError(f"{name} is no counter")
        child.inc(amount, exemplar)

    def raise_to(self, name: str, total: float, **labels: str) -> None:
        """Raise a counter to a total that is kept elsewhere, in storage for instance; it never goes back."""
        child = self._child(name, labels)
        if not isinstance(child, Counter):
            raise TypeError(f"{name} is no counter")
        with self._lock:
            key = (name, tuple(labels.items()))
            child.inc(max(0.0, total - self._raised.get(key, 0.0)))
            self._raised[key] = max(total, self._raised.get(key, 0.0))

    def observe(self, name: str, value: float, *, exemplar: dict[str, str] | None = None, **labels: str) -> None:
        """Add a value to a histogram."""
        child = self._child(name, labels)
        if not isinstance(child, Histogram):
            raise TypeError(f"{name} is no histogram")
        child.observe(value, exemplar)

    def _child(self, name: str, labels: dict[str, str]) -> Instrument:
        key = (name, tuple(labels.items()))
        child = self._children.get(key)
        if child is None:
            with self._lock:
                if name not in self._instruments:
                    self._instruments[name] = _make(_BY_NAME[name], self.registry)
                child = self._children[key] = self._instruments[name].labels(run=self.run, **labels)
        return child


def _make(metric: Metric, registry: CollectorRegistry) -> Instrument:
    if metric.kind == "histogram":
        return Histogram(metric.full_name, metric.help, metric.labels, registry=registry, buckets=metric.buckets)
    kind = Counter if metric.kind == "counter" else Gauge
    return kind(metric.full_name, metric.help, metric.labels, registry=registry)

"""Every metric's name, kind, unit and help text, once; and the registry that exports them.

Dashboards, alerts and the documentation are checked against `METRICS`. Names are without the `giblet_` prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

Instrument: TypeAlias = Counter | Gauge | Histogram
STEP_SECONDS_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as Prometheus sees it."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ("run",)

    @property
    def full_name(self) -> str:
        """With the prefix."""
        return f"giblet_{self.name}"


METRICS: tuple[Metric, ...] = (
    Metric("train_step", "gauge", "Optimizer steps done since the run began."),
    Metric("train_epoch", "gauge", "Passes over the training samples done since the run began."),
    Metric("train_samples_total", "counter", "Samples trained on by this process's run, all ranks together."),
    Metric("train_loss", "gauge", "Loss of the newest step, by term, relative to its variance.", ("run", "term")),
    Metric("train_step_seconds", "histogram", "Seconds an optimizer step took."),
    Metric("train_data_wait_seconds", "histogram", "Seconds a step waited for its data."),
    Metric("train_grad_norm", "gauge", "Global gradient norm of the newest step, before clipping."),
    Metric("train_learning_rate", "gauge", "Learning rate of the newest step."),
    Metric("train_world_size", "gauge", "Ranks that train."),
    Metric("train_tokens_total", "counter", "EnCodec codes (tokens) trained on, all ranks together."),
    Metric("train_gpu_memory_bytes", "gauge", "Peak GPU memory of rank 0 of this node."),
    Metric("validation_loss", "gauge", "Validation loss of the newest validation, by term.", ("run", "term")),
    Metric("validation_bold_correlation", "gauge", "Mean over voxels of the correlation over validation TRs."),
    Metric("validation_best_score", "gauge", "Best validation loss so far."),
    Metric("validation_seconds", "gauge", "Seconds the newest validation took."),
    Metric("checkpoint_committed_step", "gauge", "Step of the newest committed checkpoint."),
    Metric("checkpoint_committed_timestamp_seconds", "gauge", "Unix time of the newest commit."),
    Metric("checkpoint_save_seconds", "histogram", "Seconds from the beginning of a save to its commit."),
    Metric("checkpoint_stall_seconds", "histogram", "Seconds training stood still for a save."),
    Metric("checkpoint_bytes_total", "counter", "Bytes of committed checkpoints."),
    Metric("checkpoint_failures_total", "counter", "Saves that failed."),
    Metric("restarts_total", "counter", "Restarts of the run, by cause.", ("run", "cause")),
    Metric("steps_lost_total", "counter", "Steps done and lost to restarts."),
    Metric("verify_verdict", "gauge", "2 SAFE, 1 SAFE WITH WARNINGS, 0 UNSAFE."),
    Metric("verify_tensors", "gauge", "Tensors in the verified checkpoint."),
    Metric("verify_elements", "gauge", "Elements in the verified checkpoint."),
    Metric("verify_nan_elements", "gauge", "NaN elements in the verified checkpoint."),
    Metric("verify_inf_elements", "gauge", "Infinite elements in the verified checkpoint."),
    Metric("verify_zero_tensors", "gauge", "All-zero tensors in the verified checkpoint."),
    Metric("verify_bytes_total", "counter", "Bytes read back by verification."),
    Metric("verify_seconds", "gauge", "Seconds the newest verification took."),
    Metric("verify_verified_step", "gauge", "Step of the newest checkpoint that verification accepted."),
    Metric("verify_verified_timestamp_seconds", "gauge", "Unix time at which it was accepted."),
)  # fmt: skip
_BY_NAME = {metric.name: metric for metric in METRICS}


class Metrics:
    """The metrics of one process, each with its `run` label bound.

    `set`, `add` and `observe` take the short name; extra labels by keyword. Unknown names raise `KeyError`.
    """

    def __init__(self, run: str, registry: CollectorRegistry | None = None) -> None:
        self.run = run
        self.registry = registry if registry is not None else CollectorRegistry()
        self._instruments: dict[str, Instrument] = {}

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        child = self._child(name, labels)
        if not isinstance(child, Gauge):
            raise TypeError(f"{name} is no gauge")
        child.set(value)

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        child = self._child(name, labels)
        if not isinstance(child, Counter):
            raise TypeError(f"{name} is no counter")
        child.inc(amount)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a value to a histogram."""
        child = self._child(name, labels)
        if not isinstance(child, Histogram):
            raise TypeError(f"{name} is no histogram")
        child.observe(value)

    def _child(self, name: str, labels: dict[str, str]) -> Instrument:
        if name not in self._instruments:
            self._instruments[name] = _make(_BY_NAME[name], self.registry)
        return self._instruments[name].labels(run=self.run, **labels)


def _make(metric: Metric, registry: CollectorRegistry) -> Instrument:
    if metric.kind == "histogram":
        return Histogram(metric.full_name, metric.help, metric.labels, registry=registry, buckets=STEP_SECONDS_BUCKETS)
    kind = Counter if metric.kind == "counter" else Gauge
    return kind(metric.full_name, metric.help, metric.labels, registry=registry)


def serve(metrics: Metrics, port: int, address: str = "0.0.0.0") -> tuple[WSGIServer, int]:
    """Serve `/metrics` from a thread; returns the server, whose `shutdown` ends it, and its port (0 picks one)."""
    server, _thread = start_http_server(port, addr=address, registry=metrics.registry)
    return server, int(server.server_address[1])

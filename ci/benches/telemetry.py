"""What exporting metrics costs: beside a step, and the answer to a scrape.

Goals: metrics <= 0.2 % of a step; a scrape within 50 ms.
"""

from __future__ import annotations

import time
import urllib.request

from benches.common import Options, Row, row
from benches.trainer import demo_trainer
from giblet.checkpoint.history import History, tell_history
from giblet.telemetry.exporter import Exporter
from giblet.telemetry.metrics import METRICS, Metrics
from giblet.training.loop import Trainer
from giblet.training.step import StepResult

CALLS, SCRAPES, STEPS = 2000, 50, 5


def rows(options: Options) -> list[Row]:
    """A step's metrics beside the step, and scrapes beside 50 ms."""
    metrics = Metrics("bench")
    with demo_trainer(options, metrics) as trainer:
        step = step_seconds(trainer)
        rounds = [reporting_seconds(trainer) for _ in range(5)]
    fill(metrics)
    with Exporter(metrics, 0, "127.0.0.1") as exporter:
        answers = [scrape(exporter.port) for _ in range(SCRAPES)]
    return [
        row("metrics of a step / step", [seconds / step for seconds in rounds], goal="<= 0.002",
            note=f"{min(rounds) * 1e6:.0f} us a step"),
        row("scrape / 50 ms", [seconds / 0.05 for seconds in answers], goal="<= 1",
            note=f"longest {max(answers) * 1e3:.1f} ms"),
    ]  # fmt: skip


def step_seconds(trainer: Trainer) -> float:
    """Of a step of the loop, the shortest of a few: what else the machine does would only flatter the metrics."""
    seconds = []
    with trainer.stream() as stream:
        for _ in range(STEPS):
            began = time.perf_counter()
            trainer.step(stream)
            seconds.append(time.perf_counter() - began)
    return min(seconds)


def reporting_seconds(trainer: Trainer) -> float:
    """Of telling of a step, in this thread's processor time: what else the machine does is no part of it."""
    result = StepResult(dict.fromkeys(("loss", "bold", "video", "audio", "text"), 0.5), 1.0, 1e-4, 1000, False)
    began = time.thread_time()
    for _ in range(CALLS):
        trainer.reporter.stepped(trainer.state, result, 0.1, 0.001, 8)
    return (time.thread_time() - began) / CALLS


def fill(metrics: Metrics) -> None:
    """Every metric there is, as after a long run with every kind of fault."""
    causes = ("killed", "crashed", "hung", "vanished", "storage_unavailable", "node_lost", "stopped", "rescaled")
    tell_history(metrics, History(0.0, 90, dict.fromkeys(causes, 10), 1000))
    for operation in ("PutObject", "GetObject", "HeadObject", "ListObjectsV2", "UploadPart", "DeleteObject"):
        for outcome in ("ok", "missing", "exists", "denied", "throttled", "server", "connection"):
            metrics.add("storage_requests_total", operation=operation, outcome=outcome)
    use = {"gauge": metrics.set, "counter": metrics.add, "histogram": metrics.observe}
    for metric in METRICS:
        labels = {label: "x" for label in metric.labels if label != "run"}
        use[metric.kind](metric.name, 1.0, **labels)  # type: ignore[operator]


def scrape(port: int) -> float:
    """Seconds until Prometheus would have the whole answer."""
    accept = {"Accept": "application/openmetrics-text; version=1.0.0", "Accept-Encoding": "gzip"}
    began = time.perf_counter()
    with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=accept)) as answer:
        answer.read()
    return time.perf_counter() - began

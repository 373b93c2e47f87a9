"""What the trainer exports of a run: totals that go on after a restart, a loss that is no number, and the end."""

from __future__ import annotations

import contextlib
import math
import threading
import time
import urllib.request

import pytest
import torch

from giblet.errors import DivergedError, StoppedError
from giblet.telemetry.metrics import Metrics
from giblet.training.parallel import World
from giblet.training.reporting import Reporter, serving_metrics
from giblet.training.state import Best, TrainState
from giblet.training.step import StepResult
from tests.support.monitoring import free_port
from tests.support.training import small_config

WORLD = World(0, 1, 0, torch.device("cpu"))
SCORES = {"loss": 0.8, "bold": 0.9, "video": 0.7, "audio": 0.6, "text": 0.5, "bold_correlation": 0.2}
RESULT = StepResult(dict.fromkeys(("loss", "bold", "video", "audio", "text"), 0.5), 1.0, 1e-4, 100, False)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("small")


@pytest.fixture
def reporter(metrics: Metrics) -> Reporter:
    return Reporter(small_config(checkpoint={"save_every_epochs": 2, "save_every_steps": 7}), WORLD, 40, metrics)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"giblet_{name}", {"run": "small", **labels})


def test_totals_go_on_after_a_restart_and_count_what_was_lost(reporter: Reporter, metrics: Metrics) -> None:
    state = TrainState(step=10, epoch=2, samples_consumed=40, best=Best(8, 1, 0.8), validation={"step": 8.0, **SCORES})
    reporter.restored(state, steps_lost=3, tokens=900, steps_per_epoch=5)
    assert value(metrics, "train_samples_total") == 40 + 3 * 4
    assert value(metrics, "train_tokens_total") == 900
    assert value(metrics, "train_step") == 10
    assert value(metrics, "validation_bold_correlation") == 0.2
    assert value(metrics, "checkpoint_interval_steps") == 7
    state.step = 11
    reporter.stepped(state, RESULT, 0.1, 0.01, 4)
    assert value(metrics, "train_samples_total") == 56
    assert value(metrics, "train_step_seconds_count") == 1


def test_the_newest_step_is_dated(reporter: Reporter, metrics: Metrics) -> None:
    begun = value(metrics, "train_step_timestamp_seconds")
    assert begun is not None
    time.sleep(0.01)
    reporter.stepped(TrainState(step=1), RESULT, 0.1, 0.01, 4)
    newest = value(metrics, "train_step_timestamp_seconds")
    assert newest is not None
    assert begun < newest <= time.time()


def test_a_loss_that_is_no_number_is_exported_and_is_an_end(reporter: Reporter, metrics: Metrics) -> None:
    error = DivergedError("no number")
    error.loss, error.grad_norm = math.nan, math.inf
    reporter.diverged(error)
    assert math.isnan(value(metrics, "train_loss", term="loss") or 0.0)
    assert value(metrics, "train_grad_norm") == math.inf
    assert value(metrics, "train_ended") == 1


@pytest.mark.parametrize(("reason", "ended"), [("epochs", 1), ("early stopping", 1), ("asked to stop", 0)])
def test_only_an_end_is_one(reporter: Reporter, metrics: Metrics, reason: str, ended: int) -> None:
    reporter.finished(TrainState(step=3), reason)
    assert value(metrics, "train_ended") == ended


@pytest.mark.parametrize(
    ("error", "waits"), [(None, True), (DivergedError("x"), True), (StoppedError("x"), False), (KeyError("x"), False)]
)
def test_the_last_numbers_wait_for_a_scrape_where_the_run_is_over(error: Exception | None, waits: bool) -> None:
    port = free_port()
    config = small_config(telemetry={"metrics_port": port, "last_scrape_seconds": 30})

    def scrape(found: list[str] | None = None) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            (found if found is not None else []).append(answer.read().decode())

    seen: list[str] = []
    later = threading.Timer(0.5, lambda: scrape(seen))
    began = time.monotonic()
    with contextlib.suppress(DivergedError, StoppedError, KeyError), serving_metrics(config, WORLD) as metrics:
        scrape()
        metrics.set("train_ended", 1)
        if waits:
            later.start()
        if error is not None:
            raise error
    if waits:
        later.join()
        assert 'giblet_train_ended{run="small"} 1.0' in seen[0]
    else:
        assert time.monotonic() - began < 15


@pytest.mark.parametrize("in_pod", [True, False])
def test_a_run_that_diverges_before_the_first_scrape_waits_for_it_in_a_pod(
    in_pod: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, seen = free_port(), []
    config = small_config(telemetry={"metrics_port": port, "last_scrape_seconds": 30})
    monkeypatch.delenv("GIBLET_POD", raising=False)
    if in_pod:
        monkeypatch.setenv("GIBLET_POD", "movie-worker-0")

    def scrape() -> None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            seen.append(answer.read().decode())

    first = threading.Timer(1.0, scrape)
    began = time.monotonic()
    with contextlib.suppress(DivergedError), serving_metrics(config, WORLD) as metrics:
        metrics.set("train_ended", 1)
        first.start()
        raise DivergedError("x")
    assert time.monotonic() - began < 15
    first.join()
    assert bool(seen) == in_pod
    assert not in_pod or 'giblet_train_ended{run="small"} 1.0' in seen[0]

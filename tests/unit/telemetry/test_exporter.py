"""The exporter: what a scrape returns, in which format, and that a process can wait for the last one."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from giblet.telemetry.exporter import Exporter
from giblet.telemetry.metrics import Metrics

OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("a")


@pytest.fixture
def exporter(metrics: Metrics) -> Iterator[Exporter]:
    with Exporter(metrics, 0, "127.0.0.1") as exporter:
        yield exporter


def scrape(exporter: Exporter, headers: dict[str, str] | None = None) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{exporter.port}/metrics", headers=headers or {})
    with urllib.request.urlopen(request) as answer:
        return str(answer.read().decode())


def test_a_scrape_sees_what_was_set(metrics: Metrics, exporter: Exporter) -> None:
    metrics.set("train_step", 7)
    assert 'giblet_train_step{run="a"} 7.0' in scrape(exporter)


def test_openmetrics_carries_exemplars_and_no_creation_times(metrics: Metrics, exporter: Exporter) -> None:
    metrics.observe("checkpoint_save_seconds", 0.3, exemplar={"step": "120"})
    text = scrape(exporter, OPENMETRICS)
    (family,) = text_string_to_metric_families(text)
    (bucket,) = [sample for sample in family.samples if sample.exemplar is not None]
    assert bucket.labels["le"] == "0.5"
    assert bucket.exemplar.labels == {"step": "120"}
    assert "_created" not in text


def test_waiting_ends_with_the_next_scrape_that_sees_the_last_numbers(metrics: Metrics, exporter: Exporter) -> None:
    scrape(exporter)
    metrics.set("train_ended", 1)
    seen: list[str] = []
    later = threading.Timer(0.2, lambda: seen.append(scrape(exporter)))
    later.start()
    assert exporter.wait_for_scrape(30.0)
    later.join()
    assert "giblet_train_ended" in seen[0]


def test_nobody_waits_for_a_scraper_that_was_never_there(exporter: Exporter) -> None:
    began = time.monotonic()
    assert not exporter.wait_for_scrape(30.0)
    assert time.monotonic() - began < 5


def test_waiting_gives_up_after_a_few_of_the_intervals_seen(exporter: Exporter) -> None:
    scrape(exporter)
    time.sleep(0.1)
    scrape(exporter)
    began = time.monotonic()
    assert not exporter.wait_for_scrape(60.0)
    assert time.monotonic() - began < 20


def test_a_port_in_use_is_an_error(metrics: Metrics) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            Exporter(metrics, taken.getsockname()[1], "127.0.0.1")

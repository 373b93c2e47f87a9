"""Every query of every dashboard, asked of a real Prometheus that scrapes a real run, with a restart, and a verifier.

The run is two processes that train on a tiny data set and save to a real S3 server; one of them is killed. What needs a
GPU comes from samples written down in dcgm.prom.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from giblet.checkpoint.history import budget_environment
from giblet.checkpoint.layout import CheckpointRef
from giblet.config import GibletConfig
from giblet.storage import Storage, open_storage
from giblet.storage.embedded import embedded_if_asked
from giblet.telemetry.exporter import Exporter
from giblet.telemetry.metrics import Metrics
from giblet.verify import record, verify
from giblet.verify.announce import tell_metrics, tell_verified
from tests.support.monitoring import (
    DASHBOARDS,
    RULES,
    Prometheus,
    Target,
    free_port,
    known_metrics,
    metrics_in,
    program,
    queries_of,
    serving_text,
)
from tests.support.prepared import make_prepared
from tests.support.running import Running
from tests.support.training import small_config

BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}
RECORDED = set(re.findall(r"record: (\S+)", RULES.read_text()))
PATIENCE_SECONDS = 400.0


@dataclass(frozen=True)
class Scene:
    """A run in progress, and the Prometheus that watches it."""

    prometheus: Prometheus
    verifier: Metrics


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    program("prometheus")  # skips where there is none
    folder = tmp_path_factory.mktemp("monitoring")
    dataset = make_prepared(folder / "dataset").path
    port = free_port()
    config = small_config(
        run={"name": "movie"},
        training={"epochs": 100_000, "processes": 2, "sharding": "ddp", "validate_every_epochs": 10},
        checkpoint={
            "url": "s3://giblet/lab", "endpoint_url": "embedded", "embedded_dir": str(folder / "s3"),
            "save_every_epochs": 0, "save_every_steps": 40, "keep_last": 2,
        },
        telemetry={"metrics_port": port, "log_every_steps": 10, "last_scrape_seconds": 2},
    )  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(embedded_if_asked(config.checkpoint))
        storage = open_storage(config.checkpoint.url, config.checkpoint)
        metrics = Metrics("movie")
        exporter = stack.enter_context(Exporter(metrics, 0, "127.0.0.1"))
        recorded = stack.enter_context(serving_text((Path(__file__).parent / "dcgm.prom").read_text()))
        first = Running(folder, config, dataset, nice=10, **budget_environment(10, 10))
        stack.callback(first.stop)
        prometheus = Prometheus(
            folder / "prometheus",
            [
                Target("trainer", port, {"namespace": "lab", "pod": "movie-worker-0"}),
                Target("verifier", exporter.port, {"namespace": "lab", "pod": "movie-verify"}),
                Target("dcgm", recorded, {}),
            ],
        )
        stack.callback(prometheus.close)
        prometheus.wait_until_ready()
        first.until_said("checkpoint committed .*step=40")
        os.kill(max(first.ranks()), signal.SIGKILL)
        first.exit_code()
        second = Running(folder, config, dataset, nice=10, **budget_environment(10, 9))
        stack.callback(second.stop)
        second.until_said("INFO step ")  # it has read the checkpoint that will be damaged
        tell_verdicts(config, storage, metrics)
        yield Scene(prometheus, metrics)


def tell_verdicts(config: GibletConfig, storage: Storage, metrics: Metrics) -> None:
    """What the gate exports: of the newest checkpoint, accepted; and then of the same with a byte changed."""
    metrics.set("job_active", 1)
    metrics.add("verify_errors_total", 0, cause="storage")
    report = verify(f"{config.checkpoint.url}/runs/movie", config=config)
    assert report.verdict == "SAFE", report.checks
    tell_metrics(metrics, report)
    tell_verified(metrics, storage, record(report, storage))
    assert report.step is not None
    assert report.attempt is not None
    prefix = CheckpointRef(report.step, report.attempt, "movie").prefix
    key = next(info.key for info in storage.list(prefix) if info.key.endswith(".safetensors"))
    body = bytearray(storage.get(key))
    body[-1] ^= 0xFF
    storage.put(key, bytes(body))
    damaged = verify(report.url, config=config)
    assert damaged.verdict == "UNSAFE"
    tell_metrics(metrics, damaged)


def filled_in(query: str) -> str:
    """A query with the variables as Grafana would fill them in."""
    for name, value in (("$__rate_interval", "10s"), ("$namespace", "lab"), ("$run", "movie")):
        query = query.replace(name, value)
    assert "$" not in query, query
    return query


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.timeout(1200)
def test_every_query_returns_data(scene: Scene, board: str) -> None:
    waiting = {where: filled_in(query) for where, query in queries_of(BOARDS[board]).items()}
    deadline = time.monotonic() + PATIENCE_SECONDS
    while waiting:
        waiting = {where: query for where, query in waiting.items() if not scene.prometheus.samples(query)}
        assert not waiting or time.monotonic() < deadline, json.dumps(waiting, indent=1)
        time.sleep(0.2)


@pytest.mark.timeout(1200)
def test_variables_offer_the_run(scene: Scene) -> None:
    for board in BOARDS.values():
        for variable in board["templating"]["list"]:
            if variable["type"] != "query":
                continue
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
            assert found is not None
            values = scene.prometheus.get(f"label/{found[2]}/values", **{"match[]": filled_in(found[1])})
            assert values == [{"namespace": "lab", "run": "movie"}[found[2]]]


@pytest.mark.timeout(1200)
def test_totals_survive_the_restart_and_the_fault_is_told(scene: Scene) -> None:
    def value(query: str) -> float:
        return float(scene.prometheus.samples(query)[0]["value"][1])

    assert value("giblet_run_starts") == 2
    assert value('giblet_restarts_total{cause="killed"}') == 1
    assert value("giblet_train_samples_total") >= 4 * value("giblet_train_step offset 1s")
    assert value("giblet_restart_budget") == 10
    assert value('ALERTS{alertname="GibletVerificationFailed",alertstate="firing"}') == 1
    others = scene.prometheus.samples('ALERTS{alertname!="GibletVerificationFailed",alertstate="firing"}')
    assert others == []


@pytest.mark.timeout(1200)
def test_every_metric_of_a_run_without_a_gpu_is_exported(scene: Scene) -> None:
    names = set(scene.prometheus.get("label/__name__/values"))
    assert known_metrics() - names - {"giblet_train_gpu_memory_bytes"} == set()


@pytest.mark.timeout(1200)
def test_exemplars_point_to_steps(scene: Scene) -> None:
    span = {"start": str(time.time() - 600), "end": str(time.time())}
    found: list[dict[str, Any]] = scene.prometheus.get(
        "query_exemplars", query="giblet_train_step_seconds_bucket", **span
    )
    assert all(exemplar["labels"]["step"].isdigit() for series in found for exemplar in series["exemplars"])
    assert found


@pytest.mark.parametrize("board", BOARDS)
def test_queries_name_only_metrics_that_exist(board: str) -> None:
    for where, query in queries_of(BOARDS[board]).items():
        assert metrics_in(query), where
        assert metrics_in(query) - RECORDED <= known_metrics(), where


@pytest.mark.parametrize("board", BOARDS)
def test_a_dashboard_is_one_that_the_sdk_reads_back(board: str) -> None:
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    read = Dashboard.from_json(BOARDS[board])
    assert read.uid == board
    titles = [panel.title for panel in read.panels or []]
    assert len(titles) == len(set(titles))
    for panel in read.panels or []:
        assert panel.grid_pos is not None
        assert panel.grid_pos.x + panel.grid_pos.w <= 24

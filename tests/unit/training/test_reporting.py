"""What a person and a Prometheus see."""

import io
import json
import socket
import urllib.request

import torch

from giblet.telemetry import logs
from giblet.training import train
from giblet.training.parallel import World
from giblet.training.reporting import serving_metrics
from tests.support.prepared import make_prepared
from tests.support.training import MemoryStore, small_config

ALONE = World(0, 1, 0, torch.device("cpu"))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def read(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()


def test_metrics_are_served_while_it_lasts_and_say_what_the_log_says(tmp_path, monkeypatch):
    dataset, port, scrapes = make_prepared(tmp_path / "d"), free_port(), []
    monkeypatch.setattr(MemoryStore, "close", lambda self: scrapes.append(read(port)))
    stream = io.StringIO()
    logs.configure("json", stream=stream, run="small", rank=0)
    config = small_config(telemetry={"metrics_port": port, "last_scrape_seconds": 0}, training={"epochs": 1})
    train(config, dataset_path=dataset.path, make_store=lambda *_: MemoryStore())
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    steps = [line for line in lines if line["message"] == "step"]
    assert [line["step"] for line in steps] == [1, 2]
    assert all(line["run"] == "small" and line["rank"] == 0 for line in lines)
    values = dict(line.rsplit(" ", 1) for line in scrapes[0].splitlines() if not line.startswith("#"))
    assert float(values['giblet_train_step{run="small"}']) == 2
    assert float(values['giblet_train_samples_total{run="small"}']) == 8
    assert float(values['giblet_train_world_size{run="small"}']) == 1
    assert float(values['giblet_train_loss{run="small",term="bold"}']) == steps[-1]["bold"]
    assert float(values['giblet_train_step_seconds_count{run="small"}']) == 2
    assert float(values['giblet_train_tokens_total{run="small"}']) > 0
    validation = next(line for line in lines if line["message"] == "validation")
    assert float(values['giblet_validation_bold_correlation{run="small"}']) == validation["bold_correlation"]
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_port_in_use_is_a_warning_and_other_ranks_serve_nothing():
    stream = io.StringIO()
    logs.configure("json", stream=stream)
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        config = small_config(telemetry={"metrics_port": port})
        with serving_metrics(config, ALONE) as metrics:
            metrics.set("train_step", 1)
        assert json.loads(stream.getvalue())["message"] == "metrics are not served"
    with serving_metrics(config, World(1, 2, 1, ALONE.device)), socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_log_every_n_steps(tmp_path):
    dataset, stream = make_prepared(tmp_path / "d"), io.StringIO()
    logs.configure("json", stream=stream)
    config = small_config(telemetry={"log_every_steps": 4})
    train(config, dataset_path=dataset.path, make_store=lambda *_: MemoryStore())
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["step"] for line in lines if line["message"] == "step"] == [4]

"""`giblet launch` as real processes that are killed, stopped and hung for real: what it does, and what it says."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from giblet.storage import LocalStorage
from tests.support.nodes import Node
from tests.support.prepared import make_prepared
from tests.support.training import small_config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_prepared(tmp_path_factory.mktemp("data") / "d").path


def config(url, steps=100_000, *, processes=1, save_every=10, **sections):
    telemetry = {"hang_seconds": 60.0, "save_hang_seconds": 120.0, "log_every_steps": 1, "metrics_port": 0}
    return small_config(
        run={"name": "run"},
        training={"epochs": 1_000_000, "max_steps": steps, "processes": processes, "learning_rate": 1e-3,
                  "validate_every_epochs": 1_000_000},
        checkpoint={"url": str(url), "save_every_epochs": 0, "save_every_steps": save_every, "keep_last": 2,
                    **sections.get("checkpoint", {})},
        telemetry={**telemetry, **sections.get("telemetry", {})},
    )  # fmt: skip


@pytest.fixture
def node(tmp_path, dataset):
    """Makes nodes, and ends what is left of them."""
    made = []

    def make(name, configuration, endpoint=None, **environment):
        made.append(Node(tmp_path, name, configuration, dataset, endpoint, **environment))
        return made[-1]

    yield make
    for one in made:
        one.end()


def records(url, name="*.json"):
    return {path.name: json.loads(path.read_text()) for path in sorted(url.glob(f"runs/run/starts/{name}"))}


def test_a_run_that_ends_says_so(node, tmp_path):
    one = node("one", config(tmp_path, 12, processes=2))
    assert one.exit_code() == 0, one.text()
    assert one.last_words() == {
        "exit_code": 0, "cause": "done", "message": "", "step": 12, "run": "run", "start": 1,
    }  # fmt: skip
    assert records(tmp_path)["1.end.json"]["cause"] == "done"
    kept = LocalStorage(str(tmp_path)).get("runs/run/logs/00001/one.log").decode()
    assert "step=12 of=12" in kept
    assert "cause=done" in kept
    assert one.step() == 12  # and it is printed as well


def test_a_killed_rank_is_replaced_in_place_and_loses_only_what_was_not_saved(node, tmp_path):
    one = node("one", config(tmp_path, processes=2))
    one.until(lambda: one.step() >= 15)
    began = time.monotonic()
    os.kill(one.ranks()[1], signal.SIGKILL)
    one.until(lambda: one.said("INFO resumed "))
    print(f"seconds from SIGKILL to resumed: {time.monotonic() - began:.1f}")
    one.signal(signal.SIGTERM)
    assert one.exit_code() == 143, one.text()
    told = records(tmp_path)
    assert told["1.end.json"]["cause"] == "killed"
    assert "SIGKILL" in told["1.end.json"]["message"]
    assert told["1.end.json"]["exit_code"] == 128
    lost = told["1.end.json"]["step"] - told["2.json"]["resumed_from"]["step"]
    assert 0 <= lost <= 20
    assert told["2.end.json"]["cause"] == "stopped"
    assert one.last_words()["exit_code"] == 143
    newest = max(tmp_path.glob("runs/run/checkpoints/*/*/MANIFEST.json"))
    assert json.loads(newest.read_text())["step"] == told["2.end.json"]["step"] == one.last_words()["step"]


def test_a_rank_that_hangs_ends_with_130_and_the_stacks_of_all(node, tmp_path):
    one = node("one", config(tmp_path, processes=2, telemetry={"hang_seconds": 20.0}))
    one.until(lambda: one.step() >= 5)
    ranks = one.ranks()
    os.kill(ranks[1], signal.SIGSTOP)
    assert one.exit_code() == 130, one.text()
    text = one.text()
    assert "gave no sign of life" in text
    assert "T (stopped)" in text
    assert " in step" in text  # rank 0 stands in a collective: its Python stack is printed all the same
    assert one.last_words()["cause"] == "hung"
    assert records(tmp_path)["1.end.json"]["exit_code"] == 130
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)

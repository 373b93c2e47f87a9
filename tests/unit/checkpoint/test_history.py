"""Totals that outlive a restart: read from the records of starts, and exported so that they only rise."""

from __future__ import annotations

import json

import pytest

from giblet.checkpoint.history import (
    History,
    budget_environment,
    read_history,
    tell_budget,
    tell_commit,
    tell_history,
)
from giblet.checkpoint.layout import CheckpointRef, end_key, run_key, start_key
from giblet.storage import MemoryStorage
from giblet.telemetry.metrics import Metrics


def run_of(*starts: tuple[int, tuple[str, int] | None]) -> MemoryStorage:
    """A run whose starts went on from a step and ended with `(cause, step)`, or without a word."""
    storage = MemoryStorage()
    storage.put(run_key("movie"), json.dumps({"created_unix_seconds": 1000.5}).encode())
    for number, (resumed, end) in enumerate(starts, 1):
        found = {"step": resumed, "attempt": "a"} if resumed else None
        storage.put(start_key("movie", number), json.dumps({"resumed_from": found}).encode())
        if end is not None:
            storage.put(end_key("movie", number), json.dumps({"cause": end[0], "step": end[1]}).encode())
    return storage


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"giblet_{name}", {"run": "movie", **labels})


def test_restarts_are_counted_by_what_ended_the_start_before_and_steps_lost_where_known() -> None:
    storage = run_of((0, ("killed", 7)), (5, ("crashed", 12)), (10, None), (10, ("killed", 30)), (20, None))
    history = read_history(storage, "movie")
    assert history == History(1000.5, 5, {"killed": 2, "crashed": 1, "vanished": 1}, 2 + 2 + 10)


def test_the_first_start_of_a_run_is_no_restart() -> None:
    assert read_history(run_of((0, None)), "movie") == History(1000.5, 1)


def test_totals_only_rise_however_often_they_are_told() -> None:
    metrics = Metrics("movie")
    tell_history(metrics, History(1000.5, 1))
    assert value(metrics, "restarts_total", cause="crashed") == 0
    for _ in range(2):
        tell_history(metrics, History(1000.5, 4, {"killed": 2, "crashed": 1}, 9))
    assert value(metrics, "restarts_total", cause="killed") == 2
    assert value(metrics, "restarts_total", cause="crashed") == 1
    assert value(metrics, "steps_lost_total") == 9
    assert value(metrics, "run_starts") == 4
    assert value(metrics, "run_created_timestamp_seconds") == 1000.5


def test_the_newest_commit_is_known_before_the_first_save() -> None:
    metrics, storage, ref = Metrics("movie"), MemoryStorage(), CheckpointRef(40, "a", "movie")
    tell_commit(metrics, storage, None)
    assert value(metrics, "checkpoint_committed_step") is None
    storage.put(ref.manifest_key, b"{}")
    tell_commit(metrics, storage, ref)
    info = storage.head(ref.manifest_key)
    assert info is not None
    assert value(metrics, "checkpoint_committed_step") == 40
    assert value(metrics, "checkpoint_committed_timestamp_seconds") == info.modified_unix_seconds


def test_the_budget_is_the_launchers_and_a_commit_refills_it(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics("movie")
    tell_budget(metrics, refilled=False)
    assert value(metrics, "restart_budget") is None
    for name, text in budget_environment(10, 3).items():
        monkeypatch.setenv(name, text)
    tell_budget(metrics, refilled=False)
    assert (value(metrics, "restart_budget"), value(metrics, "restart_budget_left")) == (10, 3)
    tell_budget(metrics, refilled=True)
    assert value(metrics, "restart_budget_left") == 10

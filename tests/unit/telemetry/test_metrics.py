"""Metrics: names, kinds, and what a scrape returns."""

from __future__ import annotations

import re

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from giblet.telemetry.metrics import METRICS, Metrics


def test_every_metric_can_be_used_and_is_exported_under_its_name() -> None:
    metrics = Metrics("a-run")
    for metric in METRICS:
        labels = {label: "x" for label in metric.labels if label != "run"}
        {"gauge": metrics.set, "counter": metrics.add, "histogram": metrics.observe}[metric.kind](
            metric.name, 1.0, **labels
        )
    exported = {family.name for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())}
    for metric in METRICS:
        assert metric.full_name.removesuffix("_total" if metric.kind == "counter" else "") in exported


PROMISED = """
    train_step train_samples_total train_loss train_step_seconds train_data_wait_seconds train_grad_norm
    train_learning_rate train_world_size train_tokens_total train_gpu_memory_bytes validation_loss
    checkpoint_committed_step checkpoint_committed_timestamp_seconds checkpoint_save_seconds checkpoint_stall_seconds
    checkpoint_bytes_total checkpoint_failures_total restarts_total steps_lost_total verify_verdict verify_tensors
    verify_elements verify_nan_elements verify_inf_elements verify_zero_tensors verify_bytes_total verify_seconds
    verify_verified_step verify_verified_timestamp_seconds
"""


def test_what_is_promised_has_its_name() -> None:
    """Other people's dashboards depend on these names."""
    assert set(PROMISED.split()) <= {metric.name for metric in METRICS}


def test_names_follow_prometheus_conventions() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"[a-z][a-z_]*[a-z]", metric.name)
        assert (metric.kind == "counter") == metric.name.endswith("_total"), metric.name
        assert metric.help.endswith(".")
        assert metric.labels[0] == "run"


def test_wrong_use_is_an_error() -> None:
    metrics = Metrics("a")
    with pytest.raises(KeyError):
        metrics.set("no_such_metric", 1)
    with pytest.raises(TypeError, match="no counter"):
        metrics.add("train_step")


def test_an_amount_of_zero_makes_a_counter_appear() -> None:
    metrics = Metrics("a")
    metrics.add("checkpoint_failures_total", 0, cause="denied")
    assert 'giblet_checkpoint_failures_total{cause="denied",run="a"} 0.0' in generate_latest(metrics.registry).decode()


def test_histograms_alone_have_buckets() -> None:
    for metric in METRICS:
        assert (metric.kind == "histogram") == bool(metric.buckets), metric.name
        assert list(metric.buckets) == sorted(metric.buckets)

"""The trainer that the loop's and the metrics' benchmarks measure: the demo's model, one process, no checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benches.common import CONFIG, Options
from giblet.config import load_config
from giblet.data.prepare import prepare
from giblet.telemetry import logs
from giblet.telemetry.metrics import Metrics
from giblet.training.heartbeat import Heartbeat
from giblet.training.loop import Trainer
from giblet.training.parallel import join_world
from giblet.training.signals import StopFlag


@contextmanager
def demo_trainer(options: Options, metrics: Metrics) -> Iterator[Trainer]:
    """A trainer at its first step, which trains for as long as it is asked to."""
    logs.configure(level="WARNING")
    overrides = ["training.processes=1", f"data.bids={options.example()}", f"data.cache_dir={options.folder / 'loop'}"]
    config = load_config(CONFIG, [*overrides, "training.epochs=10000", "training.global_batch_samples=2"])
    dataset = prepare(config.data)
    with StopFlag() as stop, join_world(config) as world:
        yield Trainer(config, dataset, world, metrics, stop, Heartbeat())

"""Where a drill plays: one Prometheus for all of them, and for each a run that is really trained and really judged."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from giblet.config import GibletConfig
from giblet.storage import Storage, open_storage
from giblet.storage.embedded import EmbeddedServer
from giblet.telemetry.exporter import Exporter
from giblet.telemetry.metrics import Metrics
from giblet.verify.gate import Gate, GateResult
from giblet.verify.jobs import Job, MemoryJobs
from tests.alertdrill.scaled import scaled_rules
from tests.support.monitoring import RULES, Prometheus, Target, free_port
from tests.support.nodes import SLOW_STEPS, Node
from tests.support.training import small_config

NAMESPACE = "drill"
LOOKBACK_SECONDS = 300.0
"""Prometheus's own; it is a time of the rules too."""
PATIENCE_SECONDS = 900.0
STEP_SECONDS = 0.25
"""A pause in each step, so that several runs fit beside each other on two cores."""


@dataclass
class Outcome:
    """What became of one alert."""

    alert: str
    run: str
    cause: str
    fired_seconds: float | None = None
    resolved_seconds: float | None = None
    fault: str | None = None


@dataclass
class Ground:
    """What all drills share. `ports`: run → (its trainer's, its verifier's, somebody else's exporter's)."""

    folder: Path
    dataset: Path
    server: EmbeddedServer
    scale: float
    ports: dict[str, tuple[int, int, int]]
    prometheus: Prometheus


@contextlib.contextmanager
def ground(folder: Path, dataset: Path, server: EmbeddedServer, scale: float, runs: list[str]) -> Iterator[Ground]:
    """A Prometheus with the scaled rules that scrapes the ports of `runs`, whoever will listen there."""
    rules = folder / "rules.yaml"
    rules.write_text(scaled_rules(RULES.read_text(), scale))
    ports = {run: (free_port(), free_port(), free_port()) for run in runs}
    targets = [
        Target(f"{run}-{who}", port, {"namespace": NAMESPACE, "pod": f"{run}-{who}"})
        for run, three in ports.items()
        for who, port in zip(("worker-0", "verify", "other"), three, strict=True)
    ]
    prometheus = Prometheus(folder / "prometheus", targets, rules=rules, lookback_seconds=LOOKBACK_SECONDS / scale)
    try:
        prometheus.wait_until_ready()
        yield Ground(folder, dataset, server, scale, ports, prometheus)
    finally:
        prometheus.close()


@dataclass
class Stage:
    """One drill's: trains, judges, waits for the drill's alerts, and keeps the times."""

    ground: Ground
    run: str
    outcomes: list[Outcome]
    _nodes: list[Node] = field(default_factory=list)
    _since: float = 0.0

    # ------------------------------------------------------------------ runs

    def config(self, **sections: dict[str, Any]) -> GibletConfig:
        """A tiny run that saves into a folder, and goes on until it is stopped."""
        trainer, _, _ = self.ground.ports[self.run]
        tree: dict[str, dict[str, Any]] = {
            "run": {"name": self.run},
            "training": {"epochs": 1_000_000, "learning_rate": 1e-3, "validate_every_epochs": 1_000_000},
            "checkpoint": {"url": str(self.ground.folder / "store"), "save_every_epochs": 0, "save_every_steps": 100,
                           "keep_last": 2},
            "telemetry": {"metrics_port": trainer, "last_scrape_seconds": 5.0, "log_every_steps": 5},
            "verify": {"restore": False, "poll_seconds": 0.5, "patience_seconds": 3600.0},
        }  # fmt: skip
        for name, values in sections.items():
            tree[name] = {**tree.get(name, {}), **values}
        return small_config(**tree)

    def s3(self) -> dict[str, Any]:
        """`checkpoint` for a run that saves into the real S3 server, in haste."""
        return {
            "url": f"s3://giblet/{self.run}", "endpoint_url": self.ground.server.endpoint_url, "region": "us-east-1",
            "connect_timeout_seconds": 1.0, "read_timeout_seconds": 1.0, "max_attempts": 2, "save_every_steps": 40,
        }  # fmt: skip

    def train(self, config: GibletConfig, **environment: str) -> Node:
        """`giblet launch`, at work: it has done some steps."""
        folder = self.ground.folder / self.run
        folder.mkdir(exist_ok=True)
        name = f"{self.run}-worker-{len(self._nodes)}"
        environment = {**self.ground.server.environment(), SLOW_STEPS: str(STEP_SECONDS), **environment}
        del environment["AWS_ENDPOINT_URL"]
        node = Node(folder, name, config, self.ground.dataset, **environment)
        self._nodes.append(node)
        return node

    @contextlib.contextmanager
    def gate(self, config: GibletConfig, phase: str = "Running") -> Iterator[tuple[MemoryJobs, Future[GateResult]]]:
        """The gate in this process, with its exporter, and a job in memory whose phase the drill sets."""
        storage, metrics = self.storage(config), Metrics(self.run)
        jobs = MemoryJobs(self.run, NAMESPACE, Job("one", phase))  # type: ignore[arg-type]
        port = self.ground.ports[self.run][1]
        with Exporter(metrics, port, "127.0.0.1"), ThreadPoolExecutor(1) as pool:
            future = pool.submit(Gate(config, storage, jobs, metrics).run)
            try:
                yield jobs, future
            finally:
                jobs.job = Job("one", "Succeeded")

    def storage(self, config: GibletConfig) -> Storage:
        """The run's store, seen from here."""
        if config.checkpoint.url.startswith("s3://"):
            from giblet.storage.s3 import S3Storage

            credentials = self.ground.server.credentials()
            return S3Storage.open(config.checkpoint.url, config.checkpoint, credentials=credentials)
        return open_storage(config.checkpoint.url, config.checkpoint)

    def end(self) -> None:
        """Leave no process behind."""
        for node in self._nodes:
            node.end()

    # ------------------------------------------------------------------ time

    def pause(self, minutes: float) -> None:
        """So many of the rules' minutes."""
        time.sleep(minutes * 60 / self.ground.scale)

    @contextlib.contextmanager
    def cause(self) -> Iterator[None]:
        """In it the fault is done; behind it every alert of the drill fires."""
        early = [outcome.alert for outcome in self.outcomes if self._firing(outcome)]
        assert not early, f"{self.run}: {', '.join(early)} fired before there was a cause"
        self._since = time.monotonic()
        yield
        self._wait("fired_seconds", True)

    @contextlib.contextmanager
    def remedy(self) -> Iterator[None]:
        """In it the fault is mended; behind it every alert of the drill is silent."""
        self._since = time.monotonic()
        yield
        self._wait("resolved_seconds", False)

    def _wait(self, what: str, firing: bool) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while waiting := [outcome for outcome in self.outcomes if getattr(outcome, what) is None]:
            for outcome in waiting:
                if self._firing(outcome) == firing:
                    setattr(outcome, what, time.monotonic() - self._since)
            names = ", ".join(outcome.alert for outcome in waiting)
            assert time.monotonic() < deadline, f"{self.run}: {names} did not {'fire' if firing else 'resolve'}"
            time.sleep(0.2)

    def _firing(self, outcome: Outcome) -> bool:
        labels = f'alertname="{outcome.alert}",alertstate="firing"'
        if outcome.alert != "GibletGpuXid":
            labels += f',run="{self.run}"'
        return bool(self.ground.prometheus.samples(f"ALERTS{{{labels}}}"))


@contextlib.contextmanager
def stuttering(pids: list[int], idle_seconds: float, busy_seconds: float, signals: tuple[int, int]) -> Iterator[None]:
    """Processes that get only a share of the time, as on a node that throttles them."""
    import os

    over = threading.Event()

    def stutter() -> None:
        while not over.is_set():
            for pid in pids:
                os.kill(pid, signals[0])
            over.wait(idle_seconds)
            for pid in pids:
                os.kill(pid, signals[1])
            over.wait(busy_seconds)

    thread = threading.Thread(target=stutter)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

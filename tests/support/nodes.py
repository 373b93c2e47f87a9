"""Nodes of a job on this machine, each a real `giblet launch` in processes of its own, forked from one that has
imported everything: importing torch once is enough.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from giblet.config import GibletConfig, load_config_data
from tests.support.forked import children, forked, grandchildren, write_to

DEADLINE_SECONDS: float = 250
"""Generous: it only bounds what hangs."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Node:
    """One `giblet launch`; its output is in `log`, its termination message in `termination`.

    `before` is called in it before it launches. `fresh`: not a fork but an interpreter of its own, for what a process
    is told when it begins (`LD_PRELOAD`).
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        config: GibletConfig,
        dataset: Path,
        endpoint: str | None = None,
        *,
        before: Callable[[], object] | None = None,
        fresh: bool = False,
        **environ: str,
    ) -> None:
        self.log, self.termination = folder / f"{name}.log", folder / f"{name}.termination"
        self.environment = {
            "GIBLET_POD": name, "GIBLET_TERMINATION_LOG": str(self.termination), "OMP_NUM_THREADS": "1",
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "60", **environ,
        }  # fmt: skip
        if endpoint is not None:
            self.environment |= {
                "PET_RDZV_ENDPOINT": endpoint, "PET_NNODES": "1:2", "PET_NPROC_PER_NODE": "1",
                "PET_RDZV_CONF": "is_host=0,last_call_timeout=10,keep_alive_interval=1,keep_alive_max_attempt=8",
            }  # fmt: skip
        arguments = (config.model_dump(mode="json"), str(dataset), self.log, self.environment, before)
        self.process = _spawned(*arguments) if fresh else forked(_node, *arguments)
        with _environment(self.environment if fresh else {}):
            self.process.start()

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def step(self) -> int:
        return max((int(n) for n in re.findall(r"INFO step .*?\bstep=(\d+) of", self.text())), default=0)

    def until(self, what: Callable[[], Any], *, alive: bool = True) -> Any:
        """Wait for something to become true; its value."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (found := what()):
            assert not alive or self.process.is_alive(), self.text()[-6000:]
            assert time.monotonic() < deadline, self.text()[-6000:]
            time.sleep(0.02)
        return found

    def said(self, pattern: str, times: int = 1) -> bool:
        return len(re.findall(pattern, self.text())) >= times

    def ranks(self) -> list[int]:
        """Process ids of its ranks."""
        return grandchildren(self.process.pid)

    def everything(self) -> list[int]:
        """Process ids of all that it started."""
        return [*children(self.process.pid), *self.ranks()]

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def exit_code(self) -> int:
        self.process.join(DEADLINE_SECONDS)
        assert self.process.exitcode is not None, self.text()[-6000:]
        return self.process.exitcode

    def last_words(self) -> dict[str, Any]:
        assert self.termination.stat().st_size <= 4096
        return json.loads(self.termination.read_text())

    def end(self) -> None:
        """End it and everything it started, whatever state it is in."""
        if self.process.is_alive() and self.process.pid is not None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()


class Rendezvous:
    """A `giblet rendezvous`, which can be killed and started again at its port."""

    def __init__(self, folder: Path) -> None:
        self.port, self.log = free_port(), folder / "rendezvous.log"
        self.endpoint = f"127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self.process = forked(_rendezvous, self.port, self.log)
        self.process.start()

    def kill(self, number: int = signal.SIGKILL) -> int | None:
        if self.process.is_alive() and self.process.pid is not None:
            os.kill(self.process.pid, number)
        self.process.join(DEADLINE_SECONDS)
        return self.process.exitcode


def _spawned(*arguments: Any) -> Any:
    return multiprocessing.get_context("spawn").Process(target=_node, args=arguments)


@contextlib.contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


SLOW_READS, SLOW_STEPS = "GIBLET_TEST_SLOW_READS", "GIBLET_TEST_SLOW_STEPS"
"""In a node's environment: seconds that each read of a video takes longer, as from a file system that is far away; and
seconds that each step takes longer, as if a GPU worked meanwhile: this machine's processors are free then."""


def _make_reads_slow(seconds: float) -> None:
    class Slow(np.memmap):  # type: ignore[type-arg]
        def __getitem__(self, index: Any) -> Any:
            time.sleep(seconds)
            return super().__getitem__(index)

    load = np.load

    def slow_load(*words: Any, **named: Any) -> Any:
        array = load(*words, **named)
        return array.view(Slow) if isinstance(array, np.memmap) and array.ndim == 5 else array

    np.load = slow_load


def _make_steps_slow(seconds: float) -> None:
    from giblet.training.step import TrainStep

    step = TrainStep.__call__

    def slow_step(*words: Any, **named: Any) -> Any:
        time.sleep(seconds)
        return step(*words, **named)

    TrainStep.__call__ = slow_step  # type: ignore[method-assign]


def _node(
    config: dict[str, Any], dataset: str, log: Path, environment: dict[str, str], before: Callable[[], object] | None
) -> None:
    from giblet.launch.run import launch
    from giblet.launch.settings import read_settings
    from giblet.telemetry import logs

    write_to(log)
    os.environ.update(environment)
    if seconds := os.environ.get(SLOW_READS):
        _make_reads_slow(float(seconds))
    if seconds := os.environ.get(SLOW_STEPS):
        _make_steps_slow(float(seconds))
    loaded = load_config_data(config)
    logs.configure(run=loaded.run.name)
    settings = read_settings({}, os.environ, run=loaded.run.name)
    if before is not None:
        before()
    sys.exit(launch(loaded, settings, dataset_path=Path(dataset)).exit_code)


def _rendezvous(port: int, log: Path) -> None:
    from giblet.launch.server import serve_rendezvous
    from giblet.telemetry import logs

    write_to(log)
    logs.configure()
    sys.exit(serve_rendezvous(port))

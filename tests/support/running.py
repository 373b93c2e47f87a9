"""`giblet train` in processes of its own, for tests to kill."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from giblet.config import GibletConfig, load_config_data
from giblet.errors import GibletError
from giblet.telemetry import logs
from giblet.training import TrainResult, launch_processes, train
from giblet.training.zygote import Zygote
from tests.support.forked import forked, grandchildren, write_to

DEADLINE_SECONDS = 400.0
"""Generous: it only bounds what hangs."""


class Running:
    """A run in progress; its output is in `log`."""

    def __init__(self, folder: Path, config: GibletConfig, dataset: Path, *, nice: int = 0, **environ: str) -> None:
        self.log = folder / f"{time.monotonic_ns()}.log"
        self.log.touch()
        self._result, theirs = multiprocessing.Pipe(duplex=False)
        told = {"OMP_NUM_THREADS": "1", **environ}
        self.process = forked(_run, config.model_dump(mode="json"), dataset, self.log, nice, told, theirs)
        self.process.start()
        theirs.close()

    def step(self) -> int:
        """The newest step that it told of; 0 before."""
        return max((int(n) for n in re.findall(r"INFO step .*?\bstep=(\d+) of", self.log.read_text())), default=0)

    def until_said(self, pattern: str) -> None:
        """Wait for a line of its output."""
        self._until(lambda: re.search(pattern, self.log.read_text()) is not None)

    def until_step(self, step: int) -> None:
        """Wait for a step."""
        self._until(lambda: self.step() >= step)

    def ranks(self) -> list[int]:
        """Process ids of its ranks, where it has more than one."""
        return grandchildren(self.process.pid)

    def send(self, number: int) -> int:
        """Send a signal; the exit code."""
        os.kill(self.process.pid, number)
        return self.exit_code()

    def stop(self) -> None:
        """Ask it to stop, as Kubernetes does, if it still runs."""
        if self.process.is_alive():
            self.send(signal.SIGTERM)

    def exit_code(self) -> int:
        """Wait for its end; negative for a signal."""
        self.process.join(DEADLINE_SECONDS)
        assert self.process.exitcode is not None, self.log.read_text()[-6000:]
        return int(self.process.exitcode)

    def result(self) -> TrainResult:
        """Wait for its end; what `launch_processes` returned or raised."""
        self.exit_code()
        assert self._result.poll(), self.log.read_text()[-6000:]
        found = self._result.recv()
        if isinstance(found, TrainResult):
            return found
        kind, message, remedy = found
        raise kind(message, remedy=remedy)

    def _until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not condition():
            assert self.process.is_alive(), self.log.read_text()[-6000:]
            assert time.monotonic() < deadline, self.log.read_text()[-6000:]
            time.sleep(0.005)


def _run(
    data: dict[str, object], dataset: Path, log: Path, nice: int, environment: dict[str, str], result: Connection
) -> None:
    write_to(log)
    os.nice(nice)
    os.environ.update(environment)
    config = load_config_data(data)
    logs.configure(run=config.run.name)
    code = 0
    try:
        result.send(_train(config, dataset))
    except GibletError as error:
        print(f"error: {error}", file=sys.stderr)
        result.send((type(error), error.message, error.remedy))
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.exit(code)


def _train(config: GibletConfig, dataset: Path) -> TrainResult:
    if config.training.processes == 1:
        return train(config, dataset_path=dataset)
    with Zygote() as zygote:
        return launch_processes(config, dataset_path=dataset, zygote=zygote)

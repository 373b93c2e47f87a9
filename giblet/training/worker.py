"""One rank, as `giblet.training.zygote` forks it.

Reads the job from `FOLDER/job.json`, shows that it is alive in `FOLDER/beat-<rank>.json`, and leaves what came of it in
`FOLDER/outcome-<rank>.json`. SIGUSR1 prints the stacks of all its threads, even while it stands in a collective.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

from giblet.checkpoint import CheckpointStore, Start
from giblet.config import GibletConfig, load_config_data
from giblet.errors import GibletError
from giblet.storage import open_storage
from giblet.telemetry import logs
from giblet.telemetry.metrics import Metrics
from giblet.training.heartbeat import Heartbeat
from giblet.training.loop import train
from giblet.training.outcome import Outcome, of_error
from giblet.training.ranks import beat_path

_PR_SET_PDEATHSIG = 1


class WatchedStore(CheckpointStore):
    """Tells the launcher which start this is. The launcher knows the end of a start better than any rank."""

    heartbeat: Heartbeat

    def begin(self, config: GibletConfig) -> Start:
        """As the store's, and the heartbeat says so."""
        start = super().begin(config)
        self.heartbeat.started(start.number, start.resumed_step)
        return start

    def end(self, cause: str, exit_code: int, step: int, message: str = "") -> None:
        """Left to the launcher: this rank may only have seen a connection break."""


def main(folder: Path) -> int:
    """Train as the environment's rank; the exit code."""
    _die_with_parent()
    faulthandler.register(signal.SIGUSR1, all_threads=True, chain=False)
    rank = int(os.environ["RANK"])
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    config = load_config_data(job["config"])
    logs.configure(config.telemetry.log_format, level=job["log_level"], run=config.run.name, rank=rank)
    heartbeat = Heartbeat(beat_path(folder, rank))

    def make_store(config: GibletConfig, metrics: Metrics) -> CheckpointStore:
        storage = open_storage(config.checkpoint.url, config.checkpoint)
        store = WatchedStore(storage, config.run.name, config.checkpoint, metrics)
        store.heartbeat = heartbeat
        return store

    try:
        result = train(config, dataset_path=job["dataset_path"], make_store=make_store, heartbeat=heartbeat)
        outcome = Outcome(rank, result=asdict(result), unix_seconds=time.time())
    except Exception as error:
        outcome = of_error(rank, error, time.time())
        if not isinstance(error, GibletError):
            traceback.print_exc()
    outcome.write(folder)
    return outcome.exit_code


def _die_with_parent() -> None:
    """Do not outlive the launcher: an orphaned rank would train on beside the run that is started next."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

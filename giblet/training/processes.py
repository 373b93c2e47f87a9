"""`giblet train` for more than one process on this machine: starts the ranks, and tells what came of them."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from giblet.checkpoint import starts
from giblet.config import GibletConfig
from giblet.errors import EXIT_CRASHED, EXIT_OK, CrashedError, GibletError, StoppedError
from giblet.storage import open_storage
from giblet.telemetry.logs import get_logger
from giblet.training.loop import TrainResult
from giblet.training.outcome import Outcome, first_cause
from giblet.training.parallel import check_world_size
from giblet.training.ranks import POLL_SECONDS, Place, Ranks, asked_to_stop, host_store
from giblet.training.state import Best
from giblet.training.zygote import Zygote

SHUTDOWN_SECONDS = 900
"""How long ranks may take to save after SIGTERM before they are killed, unless the environment says otherwise."""
SETTLE_SECONDS = 5.0
"""How long the peers of a rank that failed may take to notice and say so."""
LOOPBACK = "127.0.0.1"
log = get_logger(__name__)


def launch_processes(config: GibletConfig, *, dataset_path: str | Path, zygote: Zygote) -> TrainResult:
    """Train in `training.processes` processes on this machine; like `train` in what it returns and raises.

    `zygote` forks them: it was made when this process had no threads yet, and has seen no GPU.
    SIGTERM and Ctrl-C are passed on. A rank that crashed or was killed raises `CrashedError`, and so
    does a second Ctrl-C.
    """
    processes = config.training.processes
    check_world_size(processes, config.training)
    with tempfile.TemporaryDirectory(prefix="giblet-") as name, asked_to_stop() as signals:
        store = host_store(LOOPBACK)
        place = Place(LOOPBACK, store.port, processes=processes)
        ranks = Ranks.start(Path(name), place, config, dataset_path, rank_environment(LOOPBACK), zygote)
        try:
            outcomes = _wait(ranks, signals)
        finally:
            ranks.kill()
        cause = first_cause(outcomes)
        _record(config, ranks, cause)
    return _result(outcomes, cause, stopped=bool(signals))


def rank_environment(address: str) -> dict[str, str]:
    """What ranks get unless the environment says otherwise; collectives stay on this machine where the address does."""
    wanted = {"OMP_NUM_THREADS": "1"}
    if sys.platform == "linux" and address == LOOPBACK:
        wanted["GLOO_SOCKET_IFNAME"] = "lo"
    return {name: value for name, value in wanted.items() if name not in os.environ}


def shutdown_seconds() -> float:
    """How long ranks may take to save after SIGTERM."""
    return float(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", SHUTDOWN_SECONDS))


def _wait(ranks: Ranks, signals: list[int]) -> list[Outcome]:
    """Until every rank has ended; signals are passed on, and a second Ctrl-C leaves at once (`CrashedError`)."""
    passed_on, deadline = 0, float("inf")
    while ranks.running:
        time.sleep(POLL_SECONDS)
        if signals.count(signal.SIGINT) > 1:
            raise CrashedError(
                "second interrupt: left without saving", remedy="start it again: it goes on from the newest checkpoint"
            )
        if len(signals) > passed_on:
            ranks.signal(signals[-1])
            deadline = min(deadline, time.monotonic() + shutdown_seconds())
            passed_on = len(signals)
        failed = [outcome for outcome in ranks.poll() if outcome.exit_code != EXIT_OK]
        if failed and first_cause(failed).exit_code != StoppedError.exit_code:
            deadline = min(deadline, time.monotonic() + SETTLE_SECONDS)
        if time.monotonic() > deadline:
            outcomes = ranks.poll()
            ranks.kill()
            return outcomes or [Outcome(0, EXIT_CRASHED, "Killed", "did not end in time", signal="SIGKILL")]
    return ranks.poll()


def _record(config: GibletConfig, ranks: Ranks, cause: Outcome) -> None:
    beat = max(ranks.beats().values(), key=lambda beat: (beat.start, beat.step))
    if not beat.start:
        return
    try:
        storage = open_storage(config.checkpoint.url, config.checkpoint)
        starts.record_end(
            storage, config.run.name, beat.start,
            cause=cause.cause, exit_code=cause.exit_code, step=beat.step, message=cause.message,
        )  # fmt: skip
    except GibletError as error:
        log.warning("how this start ended could not be recorded", error=error.message)


def _result(outcomes: list[Outcome], cause: Outcome, *, stopped: bool) -> TrainResult:
    if cause.exit_code == EXIT_OK:
        result = next(outcome.result for outcome in outcomes if outcome.rank == 0 and outcome.result is not None)
        best = None if result["best"] is None else Best(**result["best"])
        return TrainResult(**{**result, "best": best})
    if stopped and cause.signal in ("SIGTERM", "SIGINT"):  # it came before any rank could catch it
        raise StoppedError(
            "stopped as asked, while the ranks were starting", remedy="start the same run again to go on"
        )
    if cause.known is not None:
        raise cause.known(cause.message, remedy=cause.remedy)
    raise CrashedError(
        f"training crashed: {cause.message if cause.signal else cause.told}",
        remedy="start it again: it goes on from the newest checkpoint",
    )

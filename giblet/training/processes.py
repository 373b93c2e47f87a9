"""`giblet train` for more than one process on this machine: starts torchrun, and tells what came of it.

torchrun's own exit code only says that some process failed. Each rank leaves its outcome in a file; the first one that
went wrong is raised here as the error it was.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from giblet import errors
from giblet.config import GibletConfig
from giblet.errors import EXIT_CRASHED, EXIT_OK, GibletError, StoppedError
from giblet.training.loop import TrainResult
from giblet.training.parallel import check_world_size
from giblet.training.state import Best

SHUTDOWN_SECONDS = 900
"""How long ranks may take to save after SIGTERM before torchrun kills them, unless the environment says otherwise."""


def launch_processes(config: GibletConfig, *, dataset_path: str | Path) -> TrainResult:
    """Train in `training.processes` processes on this machine; like `train` in what it returns and raises.

    SIGTERM and Ctrl-C are passed on. A rank that crashed or was killed raises a `GibletError` of exit code 128.
    """
    processes = config.training.processes
    check_world_size(processes, config.training)
    with tempfile.TemporaryDirectory(prefix="giblet-") as name:
        folder = Path(name)
        job = {
            "config": config.model_dump(mode="json"),
            "dataset_path": str(dataset_path),
            "log_level": logging.getLogger("giblet").getEffectiveLevel(),
        }
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        # Handled signals arrive here as torchrun's SignalException, after every rank has ended.
        agent = elastic_launch(_launch_config(processes), sys.executable)
        killed, stopped = "", False
        with _environment(), _quiet_torchrun():
            try:
                agent("-m", "giblet.training.worker", str(folder))
            except ChildFailedError as error:
                rank, failure = error.get_first_failure()
                killed = f"rank {rank} ended with {failure.signal_name() or f'exit code {failure.exitcode}'}"
            except SignalException as error:
                killed, stopped = str(error), True
        return _result(folder, killed, stopped=stopped)


def _launch_config(processes: int) -> LaunchConfig:
    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
    )


@contextmanager
def _environment() -> Iterator[None]:
    """What the agent and the ranks inherit: time to save, and collectives that stay on this machine."""
    wanted = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_SECONDS), "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        wanted["GLOO_SOCKET_IFNAME"] = "lo"
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _quiet_torchrun() -> Iterator[None]:
    """torchrun's own log repeats what the ranks say better."""
    names = [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _result(folder: Path, killed: str, *, stopped: bool) -> TrainResult:
    outcomes = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("outcome-*.json")}
    failed = [outcome for outcome in outcomes.values() if outcome["exit_code"] != EXIT_OK]
    if not failed and "outcome-0" in outcomes and (stopped or not killed):  # a signal may come after the work is done
        result = outcomes["outcome-0"]["result"]
        best = None if result["best"] is None else Best(**result["best"])
        return TrainResult(**{**result, "best": best})
    if stopped and not failed:  # the signal came before any rank could catch it: nothing was trained yet
        raise StoppedError(
            "stopped as asked, while the ranks were starting", remedy="start the same run again to go on"
        )
    # A peer of a rank that failed sees a broken connection and says so, later.
    failed.sort(key=lambda outcome: (outcome["exit_code"] == EXIT_CRASHED, outcome["unix_seconds"]))
    raise _error(failed[0] if failed else None, killed)


def _error(outcome: dict[str, Any] | None, killed: str) -> GibletError:
    kind = getattr(errors, outcome["kind"], None) if outcome is not None else None
    if outcome is not None and isinstance(kind, type) and issubclass(kind, GibletError):
        return kind(outcome["message"], remedy=outcome["remedy"])
    told = f"{outcome['kind']}: {outcome['message']}" if outcome is not None else killed
    crashed = GibletError(f"training crashed: {told}", remedy="start it again: it goes on from the newest checkpoint")
    crashed.exit_code = EXIT_CRASHED
    return crashed

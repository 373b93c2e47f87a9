"""Puts a node together from its settings and configuration, and ends it with one exit code and one message."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable
from pathlib import Path

from giblet.config import GibletConfig
from giblet.data.ensure import ensure_prepared
from giblet.errors import EXIT_CRASHED, GibletError, OutOfSpaceError
from giblet.launch.budget import RestartBudget
from giblet.launch.ending import Ending, of_error, write_termination
from giblet.launch.launcher import Launcher
from giblet.launch.logs import KeptLogs
from giblet.launch.meeting import Alone, Elastic
from giblet.launch.settings import LaunchSettings, grace_warnings
from giblet.launch.torch_rendezvous import quiet_torchrun
from giblet.storage import open_storage
from giblet.telemetry.logs import get_logger
from giblet.training.ranks import asked_to_stop
from giblet.training.zygote import Zygote, import_for_ranks

GRACE_MARGIN_SECONDS = 20.0
"""For what follows the save: the record of the end, the logs, and the way out."""
log = get_logger(__name__)


def launch(config: GibletConfig, settings: LaunchSettings, *, dataset_path: Path | None = None) -> Ending:
    """Train on this node until the job ends here; how it did. The termination message is written.

    Call it early in a process's life, from its main thread: it forks.
    """
    import_for_ranks()  # while SIGTERM still ends this process at once
    quiet_torchrun()
    logs = KeptLogs(lambda: open_storage(config.checkpoint.url, config.checkpoint), config.run.name, settings.pod)
    with logs.piped(), asked_to_stop() as signals:
        zygote = Zygote()  # after the pipe, which its ranks write to, and before any thread
        with logs, zygote:
            for warning in grace_warnings(settings, margin_seconds=GRACE_MARGIN_SECONDS):
                log.warning(warning)
            try:
                path = dataset_path if dataset_path is not None else ensure_prepared(config).path
                ending = _launcher(config, settings, path, signals, zygote, logs).run()
            except Exception as error:
                ending = _of_exception(error)
                log.error(
                    "ended", cause=ending.cause, exit_code=ending.exit_code, reason=ending.message, **ending.what_to_do
                )
    write_termination(settings.termination_log, ending, run=config.run.name)
    return ending


def _of_exception(error: Exception) -> Ending:
    """The launcher's own failure. What nobody foresaw is worth a retry."""
    if isinstance(error, GibletError):
        return of_error(error)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return of_error(OutOfSpaceError(str(error), remedy="free some space; what was whole is still whole"))
    traceback.print_exc()
    return Ending("crashed", EXIT_CRASHED, f"the launcher failed: {type(error).__name__}: {error}")


def _launcher(
    config: GibletConfig,
    settings: LaunchSettings,
    dataset_path: Path,
    signals: list[int],
    zygote: Zygote,
    logs: KeptLogs,
) -> Launcher:
    storage = open_storage(config.checkpoint.url, config.checkpoint)
    processes = settings.processes or config.training.processes
    budget = RestartBudget(
        storage, config.run.name, settings.max_restarts, patience_seconds=config.telemetry.hang_seconds
    )
    stopping: Callable[[], bool] = lambda: bool(signals)  # noqa: E731
    meeting = Alone(processes) if settings.endpoint is None else Elastic(settings, processes, stopping)
    return Launcher(config, dataset_path, settings, meeting, budget, storage, signals, zygote, logs)

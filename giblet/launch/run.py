"""Puts a node together from its settings and configuration, and ends it with one exit code and one message."""

from __future__ import annotations

from pathlib import Path

from giblet.config import GibletConfig
from giblet.data.ensure import ensure_prepared
from giblet.errors import GibletError
from giblet.launch.budget import RestartBudget
from giblet.launch.ending import Ending, of_error, write_termination
from giblet.launch.launcher import Launcher
from giblet.launch.meeting import Alone, Elastic, quiet_torchrun
from giblet.launch.settings import LaunchSettings, grace_warnings
from giblet.storage import open_storage
from giblet.telemetry.logs import get_logger
from giblet.training.ranks import asked_to_stop

GRACE_MARGIN_SECONDS = 20.0
"""For what follows the save: the record of the end, the logs, and the way out."""
log = get_logger(__name__)


def launch(config: GibletConfig, settings: LaunchSettings, *, dataset_path: Path | None = None) -> Ending:
    """Train on this node until the job ends here; how it did. The termination message is written."""
    quiet_torchrun()
    for warning in grace_warnings(settings, margin_seconds=GRACE_MARGIN_SECONDS):
        log.warning(warning)
    with asked_to_stop() as signals:
        try:
            ending = _run(config, settings, signals, dataset_path)
        except GibletError as error:
            ending = of_error(error)
    write_termination(settings.termination_log, ending, run=config.run.name)
    return ending


def _run(config: GibletConfig, settings: LaunchSettings, signals: list[int], dataset_path: Path | None) -> Ending:
    path = dataset_path if dataset_path is not None else ensure_prepared(config).path
    storage = open_storage(config.checkpoint.url, config.checkpoint)
    processes = settings.processes or config.training.processes
    budget = RestartBudget(
        storage, config.run.name, settings.max_restarts, patience_seconds=config.telemetry.hang_seconds
    )  # fmt: skip
    meeting = Alone(processes) if settings.endpoint is None else Elastic(settings, processes, lambda: bool(signals))
    return Launcher(config, path, settings, meeting, budget, storage, signals).run()

"""`python -m tests.support.run_training CONFIG.json DATASET` trains as `giblet train` would, for tests to kill it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from giblet.config import load_config_data
from giblet.errors import GibletError
from giblet.telemetry import logs
from giblet.training import launch_processes, train

if __name__ == "__main__":
    config = load_config_data(json.loads(Path(sys.argv[1]).read_text()))
    logs.configure(run=config.run.name)
    run = launch_processes if config.training.processes > 1 else train
    try:
        run(config, dataset_path=sys.argv[2])
    except GibletError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)

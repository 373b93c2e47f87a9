"""`python -m tests.support.node CONFIG.json DATASET` is a node: `giblet launch` with a dataset that is prepared."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from giblet.config import load_config_data
from giblet.launch import launch, read_settings
from giblet.telemetry import logs

if __name__ == "__main__":
    config = load_config_data(json.loads(Path(sys.argv[1]).read_text()))
    logs.configure(run=config.run.name)
    settings = read_settings({}, os.environ, run=config.run.name)
    sys.exit(launch(config, settings, dataset_path=Path(sys.argv[2])).exit_code)

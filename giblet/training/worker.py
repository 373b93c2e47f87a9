"""One rank of `launch_processes`: `python -m giblet.training.worker FOLDER`, started by torchrun's agent.

Reads the job from `FOLDER/job.json` and leaves what came of it in `FOLDER/outcome-<rank>.json`, because torchrun
itself only tells that something failed.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path

from giblet.config import load_config_data
from giblet.errors import EXIT_CRASHED, EXIT_OK, GibletError
from giblet.telemetry import logs
from giblet.training.loop import train

_PR_SET_PDEATHSIG = 1


def main(folder: Path) -> int:
    """Train as the environment's rank; the exit code."""
    _die_with_parent()
    rank = os.environ["RANK"]
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    config = load_config_data(job["config"])
    logs.configure(config.telemetry.log_format, level=job["log_level"], run=config.run.name, rank=int(rank))
    outcome: dict[str, object] = {"exit_code": EXIT_OK}
    try:
        outcome["result"] = asdict(train(config, dataset_path=job["dataset_path"]))
    except GibletError as error:
        outcome = {
            "exit_code": error.exit_code, "kind": type(error).__name__, "message": error.message,
            "remedy": error.remedy,
        }  # fmt: skip
    except Exception as error:
        traceback.print_exc()
        outcome = {"exit_code": EXIT_CRASHED, "kind": type(error).__name__, "message": str(error), "remedy": None}
    outcome["unix_seconds"] = time.time()
    (folder / f"outcome-{rank}.json").write_text(json.dumps(outcome), encoding="utf-8")
    code = outcome["exit_code"]
    assert isinstance(code, int)
    return code


def _die_with_parent() -> None:
    """Do not outlive torchrun's agent: an orphaned rank would train on beside the run that is started next."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

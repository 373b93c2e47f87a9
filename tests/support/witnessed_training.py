"""Trains as one rank and writes down what each step really saw, so that a ledger can be compared with a witness.

    [torchrun …] -m tests.support.witnessed_training CONFIG.json DATASET WITNESS_FOLDER

A line a step, written after it: `step digest…`, a digest of each sample's own numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from giblet.config import load_config_data
from giblet.data.batches import Batch
from giblet.errors import GibletError
from giblet.telemetry import logs
from giblet.training import train
from giblet.training.step import TrainStep


def digest(batch: Batch) -> str:
    """Names a batch of one sample by its content."""
    parts = (batch.bold, batch.text, batch.video, batch.row_mask)
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:16]


def witness(folder: Path) -> None:
    """Make every optimizer step of this process leave a line."""
    original = TrainStep.__call__
    lines = (folder / f"{os.getpid()}.txt").open("w", buffering=1)

    def step(self: TrainStep, number: int, batches: Sequence[Batch], **named: Any) -> Any:
        result = original(self, number, batches, **named)
        lines.write(f"{number + 1} {' '.join(map(digest, batches))}\n")
        return result

    TrainStep.__call__ = step  # type: ignore[method-assign]


if __name__ == "__main__":
    config = load_config_data(json.loads(Path(sys.argv[1]).read_text()))
    logs.configure(run=config.run.name)
    witness(Path(sys.argv[3]))
    try:
        train(config, dataset_path=sys.argv[2])
    except GibletError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)

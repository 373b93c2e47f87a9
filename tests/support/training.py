"""A small configuration, and a checkpoint store in memory, for tests of training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

from giblet.checkpoint import CheckpointRef
from giblet.config import GibletConfig, load_config_data
from tests.support.model import WIDTHS


def small_config(**sections: dict[str, Any]) -> GibletConfig:
    """A configuration for `tests.support.prepared.make_prepared`'s dataset; `sections` override."""
    tree: dict[str, Any] = {
        "run": {"name": "small", "seed": 3},
        "data": {"segment_trs": 8},
        "model": dict(WIDTHS),
        "training": {
            "epochs": 3, "device": "cpu", "precision": "fp32", "global_batch_samples": 4, "micro_batch_samples": 1,
            "learning_rate": 3e-3, "warmup_steps": 2, "patience_epochs": 0,
        },
        "checkpoint": {"save_every_epochs": 1, "save_best": False},
        "telemetry": {"metrics_port": 0},
    }  # fmt: skip
    for name, values in sections.items():
        tree[name] = {**tree.get(name, {}), **values}
    return load_config_data(tree)


@dataclass
class MemoryStart:
    resumed_from: CheckpointRef | None
    steps_lost: int = 0


class MemoryStore:
    """Checkpoints of one process in memory: `kept[step] = (tensors, state as JSON)`."""

    def __init__(self, kept: dict[int, tuple[dict[str, torch.Tensor], str]] | None = None) -> None:
        self.kept = {} if kept is None else kept
        self.saves: list[tuple[int, bool, bool]] = []
        self.ends: list[tuple[str, int, int]] = []

    def latest(self) -> CheckpointRef | None:
        return CheckpointRef(max(self.kept), "a", "small") if self.kept else None

    def begin(self, config: GibletConfig) -> MemoryStart:
        return MemoryStart(self.latest())

    def save(
        self, step: int, tensors: dict[str, torch.Tensor], state: Any, wait: bool = False, *, best: bool = False
    ) -> None:
        self.kept[step] = ({name: value.clone() for name, value in tensors.items()}, json.dumps(state))
        self.saves.append((step, wait, best))

    def load(self, ref: CheckpointRef, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        saved, state = self.kept[ref.step]
        assert saved.keys() == tensors.keys()
        for name, value in saved.items():
            tensors[name].copy_(value)
        return json.loads(state)

    def end(self, cause: str, exit_code: int, step: int, message: str = "") -> None:
        self.ends.append((cause, exit_code, step))

    def wait(self) -> None:
        pass

    def close(self) -> None:
        pass

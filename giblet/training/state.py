"""The whole resume contract: everything a run must remember that is not a tensor.

What is not here can be computed: the order of samples, the schedule and the seeds of dropout are pure functions of the
configuration and the step.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from giblet.errors import CheckpointError

Curves = dict[str, list[float]]


@dataclass
class Best:
    """The best validation so far."""

    step: int
    epoch: int
    score: float


@dataclass
class TrainState:
    """Where a run stands. `step` optimizer steps are done, `epoch` whole epochs, `samples_consumed` samples.

    `epoch_totals` sums the loss terms of the current epoch's steps; `validation` is the newest one, with its step;
    `history` has a row an epoch under `train` and one a validation under `validation`, as parallel arrays.
    """

    step: int = 0
    epoch: int = 0
    samples_consumed: int = 0
    best: Best | None = None
    validation: dict[str, float] | None = None
    epoch_totals: dict[str, float] = field(default_factory=dict)
    history: dict[str, Curves] = field(default_factory=lambda: {"train": {}, "validation": {}})

    def advance(self, samples: int, steps_per_epoch: int, terms: dict[str, float]) -> None:
        """One optimizer step is done; at an epoch's end its mean losses enter the history."""
        self.step += 1
        self.samples_consumed += samples
        for name, value in terms.items():
            self.epoch_totals[name] = self.epoch_totals.get(name, 0.0) + value
        if self.step % steps_per_epoch == 0:
            self.epoch += 1
            means = {name: total / steps_per_epoch for name, total in self.epoch_totals.items()}
            self._append("train", means)
            self.epoch_totals = {}

    def validated(self, scores: dict[str, float], minimum_improvement: float) -> bool:
        """Remember a validation, whose `loss` decides. True if it is the best so far."""
        self.validation = {"step": float(self.step), "epoch": float(self.epoch), **scores}
        self._append("validation", scores)
        improved = self.best is None or scores["loss"] < self.best.score - minimum_improvement
        if improved:
            self.best = Best(self.step, self.epoch, scores["loss"])
        return improved

    def epochs_since_best(self) -> int:
        """Epochs trained since validation was best; 0 before the first validation."""
        return 0 if self.best is None else self.epoch - self.best.epoch

    def _append(self, split: str, row: dict[str, float]) -> None:
        for name, value in {"step": float(self.step), "epoch": float(self.epoch), **row}.items():
            self.history[split].setdefault(name, []).append(value)

    def to_json(self) -> dict[str, Any]:
        """As it stands in a checkpoint's manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> TrainState:
        """Out of a checkpoint's manifest, whatever else it holds. Raises `CheckpointError` if something is missing."""
        missing = [f.name for f in fields(cls) if f.name not in saved]
        if missing:
            raise CheckpointError(
                f"the checkpoint's state lacks {', '.join(missing)}",
                remedy="it was not written by this trainer; start a run of another name",
            )
        values = {f.name: saved[f.name] for f in fields(cls)}
        if values["best"] is not None:
            values["best"] = Best(**values["best"])
        return cls(**values)

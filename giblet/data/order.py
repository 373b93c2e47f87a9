"""The order of samples: a pure function of (seed, epoch, position), the same whatever the world size.

The position in the data is one integer, `samples_consumed`. An epoch has `floor(samples / global batch)` steps;
what an epoch's order leaves over is not used in it. Micro-batch m of a step goes to rank `m mod world`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from giblet.errors import ConfigError

Indices = npt.NDArray[np.int64]


def epoch_order(seed: int, epoch: int, samples: int) -> Indices:
    """A permutation of `0..samples-1` for an epoch, int64 (samples,).

    numpy's PCG64 seeded by (seed, epoch) through SeedSequence, whose streams numpy keeps stable between versions; the
    permutation sorts raw 64-bit draws, because `Generator.permutation` carries no such promise.
    """
    draws = np.random.PCG64(np.random.SeedSequence((seed, epoch))).random_raw(samples)
    return np.argsort(np.atleast_1d(draws), kind="stable").astype(np.int64)


@dataclass(frozen=True, slots=True)
class Position:
    """Where in the data a step begins. `step` counts from 0 over the run, `step_in_epoch` within `epoch`."""

    step: int
    epoch: int
    step_in_epoch: int


@dataclass(frozen=True, slots=True)
class SampleOrder:
    """The fixed sequence of global batches and micro-batches of a run."""

    seed: int
    samples: int
    global_batch_samples: int
    micro_batch_samples: int

    def __post_init__(self) -> None:
        if self.global_batch_samples % self.micro_batch_samples:
            raise ConfigError(
                f"training.global_batch_samples {self.global_batch_samples} is no multiple of "
                f"training.micro_batch_samples {self.micro_batch_samples}",
                remedy="change either, so that every step is whole",
            )
        if self.samples < self.global_batch_samples:
            raise ConfigError(
                f"the dataset has {self.samples} training samples, fewer than training.global_batch_samples "
                f"{self.global_batch_samples}: an epoch would have no step",
                remedy="lower training.global_batch_samples or data.segment_trs",
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch."""
        return self.samples // self.global_batch_samples

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of a step, over all ranks."""
        return self.global_batch_samples // self.micro_batch_samples

    def position(self, samples_consumed: int) -> Position:
        """Which step comes next. Raises `ValueError` if `samples_consumed` is not at a step's beginning."""
        step, within = divmod(samples_consumed, self.global_batch_samples)
        if within or samples_consumed < 0:
            raise ValueError(
                f"samples_consumed {samples_consumed} is not a multiple of the global batch {self.global_batch_samples}"
            )
        return Position(step, *divmod(step, self.steps_per_epoch))

    def step_indices(self, step: int) -> Indices:
        """Sample indices of step `step` (from 0), int64 (micro_batches_per_step, micro_batch_samples)."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        first = step_in_epoch * self.global_batch_samples
        order = epoch_order(self.seed, epoch, self.samples)
        return order[first : first + self.global_batch_samples].reshape(-1, self.micro_batch_samples)

    def rank_indices(self, step: int, rank: int, world_size: int) -> Indices:
        """The micro-batches of a step that a rank has, int64 (its micro-batches, micro_batch_samples)."""
        return self.step_indices(step)[rank::world_size]

"""What training asks of a checkpoint store, and the flat tensors that it hands over."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from giblet.config.schema import CheckpointConfig, GibletConfig
from giblet.errors import CheckpointError
from giblet.training.optimizer import optimizer_tensors

State = dict[str, Any]


class Start(Protocol):
    """What `begin` found."""

    @property
    def resume(self) -> Any | None:
        """The checkpoint to go on from, or None for a fresh run."""
        ...


class Store(Protocol):
    """The part of `giblet.checkpoint.CheckpointStore` that training uses. Every call is made on all ranks."""

    def begin(self, config: GibletConfig) -> Start: ...
    def save(self, step: int, tensors: dict[str, Tensor], state: State, wait: bool = False) -> object: ...
    def load(self, ref: Any, tensors: dict[str, Tensor]) -> State: ...
    def wait(self) -> object: ...
    def close(self) -> object: ...


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Everything of a run that is a tensor: `model.<name>` and `optimizer.<state>.<parameter>`, sharded where it is.

    The tensors themselves, so that loading into them restores the run.
    """
    model_state = {f"model.{name}": value.detach() for name, value in model.state_dict().items()}
    return model_state | {f"optimizer.{name}": value for name, value in optimizer_tensors(model, optimizer).items()}


def save_due(settings: CheckpointConfig, step: int, steps_per_epoch: int, *, improved: bool) -> bool:
    """Whether step `step`, just done, is to be saved: by step, by epoch, or as the best so far."""
    epoch, within = divmod(step, steps_per_epoch)
    by_step = settings.save_every_steps > 0 and step % settings.save_every_steps == 0
    by_epoch = settings.save_every_epochs > 0 and within == 0 and epoch % settings.save_every_epochs == 0
    return by_step or by_epoch or (improved and settings.save_best)


def check_same_data(saved: State, content_hash: str) -> None:
    """Raise `CheckpointError` if a checkpoint was trained on other data than this."""
    trained_on = saved.get("dataset", {}).get("content_hash")
    if trained_on != content_hash:
        raise CheckpointError(
            f"the checkpoint was trained on the prepared dataset {trained_on}, not on {content_hash}",
            remedy="name that dataset in data.prepared, or start a run of another name",
        )

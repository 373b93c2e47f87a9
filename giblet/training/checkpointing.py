"""What training asks of a checkpoint store, and the flat tensors that it hands over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from giblet.checkpoint import CheckpointRef
from giblet.config.schema import CheckpointConfig, GibletConfig
from giblet.errors import CheckpointError
from giblet.telemetry.logs import get_logger
from giblet.training.optimizer import optimizer_tensors

State = dict[str, Any]
log = get_logger(__name__)


class Start(Protocol):
    """What `begin` found."""

    @property
    def resumed_from(self) -> CheckpointRef | None:
        """The checkpoint to go on from, or None for a fresh run."""
        ...

    @property
    def steps_lost(self) -> int:
        """Steps that all starts before are known to have done in vain."""
        ...


class Store(Protocol):
    """The part of `giblet.checkpoint.CheckpointStore` that training uses. Every call but `end` is made on all ranks."""

    def begin(self, config: GibletConfig) -> Start: ...
    def save(
        self, step: int, tensors: Mapping[str, Tensor], state: Any = None, wait: bool = False, *, best: bool = False
    ) -> object: ...
    def latest(self) -> CheckpointRef | None: ...
    def load(self, ref: CheckpointRef, tensors: Mapping[str, Tensor]) -> Any: ...
    def wait(self) -> None: ...
    def end(self, cause: str, exit_code: int, step: int, message: str = "") -> None: ...
    def close(self) -> None: ...


def load_newest(store: Store, ref: CheckpointRef, tensors: Mapping[str, Tensor]) -> State:
    """Load `ref`, or, where it proves damaged, the newest one before it that is not.

    Raises `CheckpointError` if none is left: a run that lost everything is for a person to look at.
    """
    while True:
        try:
            state: State = store.load(ref, tensors)
            return state
        except CheckpointError as error:
            before = store.latest()
            if before is None or before >= ref:  # not damaged but unfit, or nothing left
                raise
            log.warning("checkpoint cannot be used, taking the one before", error=error.message, step=before.step)
            ref = before


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


def save_interval_steps(settings: CheckpointConfig, steps_per_epoch: int) -> int:
    """The most steps between two saves that are due by step or by epoch."""
    return min(n for n in (settings.save_every_steps, settings.save_every_epochs * steps_per_epoch) if n > 0)


def check_same_data(saved: State, content_hash: str) -> None:
    """Raise `CheckpointError` if a checkpoint was trained on other data than this."""
    trained_on = saved.get("dataset", {}).get("content_hash")
    if trained_on != content_hash:
        raise CheckpointError(
            f"the checkpoint was trained on the prepared dataset {trained_on}, not on {content_hash}",
            remedy="name that dataset in data.prepared, or start a run of another name",
        )

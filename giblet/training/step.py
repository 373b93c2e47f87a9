"""One optimizer step: forward and backward over this rank's micro-batches, one exchange, one update.

Nothing in it depends on the world size but the order of floating-point sums: losses are divided by counts of the whole
global batch, dropout is seeded by (seed, step, micro-batch), batch statistics belong to micro-batches.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from giblet.config.schema import GibletConfig
from giblet.data.batches import Batch
from giblet.errors import DivergedError
from giblet.models.losses import TERMS, Losses, scaled_video
from giblet.models.norm import NormStatistics
from giblet.training.optimizer import learning_rate, set_learning_rate
from giblet.training.parallel import ParallelModel, World, full


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step did, alike on every rank. `terms` are ratios, and `loss` their weighted sum."""

    terms: dict[str, float]
    grad_norm: float
    learning_rate: float
    tokens: int
    stop_requested: bool


class TrainStep:
    """Does optimizer steps. Holds nothing that a resume would need."""

    def __init__(
        self,
        parallel: ParallelModel,
        optimizer: torch.optim.Optimizer,
        losses: Losses,
        config: GibletConfig,
        world: World,
        total_steps: int,
    ) -> None:
        self._parallel, self._optimizer, self.losses, self._world = parallel, optimizer, losses, world
        self._settings, self._seed, self._total_steps = config.training, config.run.seed, total_steps
        self._bf16 = config.training.precision == "bf16"
        self._micro_batches = config.training.global_batch_samples // config.training.micro_batch_samples
        self._statistics = NormStatistics(parallel.module, self._micro_batches, world.device)
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def __call__(self, step: int, batches: Sequence[Batch], *, stop_requested: bool = False) -> StepResult:
        """Step number `step` (from 0) on this rank's micro-batches of it.

        Raises `DivergedError`, on all ranks alike and before the weights are touched, if loss or gradient is no longer
        finite.
        """
        self._parallel.module.train()
        counts = torch.stack([self.losses.counts(batch) for batch in batches]).sum(dim=0).to(self._world.device)
        self._world.sum(counts)
        terms = self._backward(step, batches, counts)
        shared = torch.cat((terms, terms.new_tensor([float(stop_requested)]), self._statistics.slots.flatten()))
        self._world.sum(shared)
        self._statistics.slots.copy_(shared[len(TERMS) + 1 :].view_as(self._statistics.slots))
        norm = full(torch.nn.utils.get_total_norm([p.grad for p in self._parameters if p.grad is not None]))
        # The only place where the host waits for the device.
        *values, stop, norm_value = torch.cat((shared[: len(TERMS) + 1], norm.reshape(1))).tolist()
        named = dict(zip(TERMS, values, strict=True))
        named["loss"] = sum(self.losses.weights[name] * named[name] for name in TERMS)
        self._check_finite(step, named["loss"], norm_value)
        rate = self._update(step, norm_value)
        return StepResult(named, norm_value, rate, int(counts[TERMS.index("audio")].item()), stop > 0)

    def _backward(self, step: int, batches: Sequence[Batch], counts: Tensor) -> Tensor:
        """Gradients of all micro-batches of this rank; returns its share of each term, (4,)."""
        total = torch.zeros(len(TERMS), device=self._world.device)
        passes = math.ceil(self._micro_batches / self._world.size)
        for position in range(passes):
            index = self._world.rank + position * self._world.size
            # Every rank makes as many passes, for a sharded model gathers its weights in each: one that has run out
            # repeats a micro-batch whose loss and statistics do not count.
            counted = float(index < self._micro_batches)
            _seed_dropout(self._seed, step, index)
            with self._parallel.accumulate(position == passes - 1), self._statistics.micro_batch(index):
                batch = batches[position if counted else 0]
                terms = forward_pass(self._parallel, batch, self.losses, counts, self._bf16).terms
                # DDP and FSDP take the mean over ranks; the counts are of all ranks, so the sum is meant.
                (self.losses.total(terms) * (counted * self._world.size)).backward()  # type: ignore[no-untyped-call]
            total += counted * torch.stack([terms[name].detach() for name in TERMS])
        return total

    def _check_finite(self, step: int, loss: float, norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            error = DivergedError(
                f"step {step + 1}: loss {loss:g}, gradient norm {norm:g}: training has diverged",
                remedy="lower training.learning_rate, lengthen training.warmup_steps, or look at the data",
            )
            error.loss, error.grad_norm = loss, norm
            raise error

    def _update(self, step: int, norm: float) -> float:
        limit = self._settings.clip_grad_norm
        if limit and norm > limit:
            torch._foreach_mul_([p.grad for p in self._parameters if p.grad is not None], limit / (norm + 1e-6))
        rate = learning_rate(step, self._total_steps, self._settings)
        set_learning_rate(self._optimizer, rate)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._statistics.commit()
        return rate


class Pass(NamedTuple):
    """A forward pass: loss terms, the model's outputs, and the batch on the model's device."""

    terms: dict[str, Tensor]
    outputs: dict[str, Tensor]
    batch: Batch


def forward_pass(parallel: ParallelModel, batch: Batch, losses: Losses, counts: Tensor, bf16: bool) -> Pass:
    """Move a micro-batch to the device of `counts`, run the model, take the loss terms relative to `counts`."""
    device = counts.device
    row_mask, decode_mask = batch.row_mask, batch.target_mask  # on the host, where looking at them costs nothing
    target_rows = decode_mask.nonzero().squeeze(1).to(device, non_blocking=True)
    batch = batch if device.type == "cpu" else batch.to(device, non_blocking=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        outputs = parallel.forward(
            scaled_video(batch.video),
            batch.audio,
            batch.text,
            trs=batch.trs,
            row_mask=row_mask,
            decode_mask=decode_mask,
        )
    return Pass(losses.terms(outputs, batch, counts, target_rows=target_rows), outputs, batch)


def _seed_dropout(seed: int, step: int, micro_batch: int) -> None:
    digest = hashlib.sha256(f"{seed}:{step}:{micro_batch}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "big"))

"""Batch normalisation whose result does not depend on how many ranks train, and the Linear that stands before it.

A micro-batch is normalised by its own mean and variance, on whichever rank it runs ("ghost" batch normalisation,
Hoffer et al. 2017, arXiv:1705.08741). The running statistics move once per optimizer step, by the mean over all
micro-batches of all ranks in the order of the global batch. So two samples on a GPU are never all that a statistic
sees twice, recomputation under activation checkpointing counts once, and a run of 8 ranks equals a run of 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NormKind = Literal["batch", "layer"]


class _ZeroGradient(torch.autograd.Function):
    """The identity, whose gradient is exactly zero."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.zeros_like(gradients[0])


def without_gradient(parameter: Tensor) -> Tensor:
    """`parameter`, for a place where its true gradient is zero but rounding would give some other number.

    A shift right before a batch norm is subtracted again with the batch mean. What autograd would deliver there is
    rounding error, which AdamW scales up to full steps: the bias would wander, differently at each world size, and
    take the running mean with it.
    """
    result = _ZeroGradient.apply(parameter)  # type: ignore[no-untyped-call]
    assert isinstance(result, Tensor)
    return result


class LinearBeforeBatchNorm(nn.Linear):
    """A Linear whose bias stays as it was initialised, for the norm after it removes any shift."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, in) → (N, out)."""
        return F.linear(input, self.weight, without_gradient(self.bias))


class BatchNorm(nn.Module):
    """BatchNorm1d over the rows of a micro-batch, with the names and the defaults of `nn.BatchNorm1d`.

    On its own it updates its running statistics in each training pass, as `nn.BatchNorm1d` does, but not again when a
    pass is recomputed within backward. Under `NormStatistics` it only reports them, and the step folds them in.

    `shift_removed` says that whatever follows removes a constant shift (the bottleneck feeds batch-normalised layers
    only), so that the gradient of `bias` is structurally zero.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, features: int, *, eps: float = 1e-5, momentum: float = 0.1, shift_removed: bool = False) -> None:
        super().__init__()
        self.features, self.eps, self.momentum, self.shift_removed = features, eps, momentum, shift_removed
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("running_mean", torch.zeros(features))
        self.register_buffer("running_var", torch.ones(features))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.int64))
        self.report_to: Callable[[Tensor, Tensor], None] | None = None

    def extra_repr(self) -> str:
        """As `nn.BatchNorm1d` prints itself."""
        return f"{self.features}, eps={self.eps}, momentum={self.momentum}"

    def forward(self, input: Tensor) -> Tensor:
        """(N, features) → the same, normalised; at least 2 rows in training, else `ValueError`."""
        weight, bias = self.weight.float(), self.bias.float()
        if self.shift_removed:
            bias = without_gradient(bias)
        if not self.training:
            return F.batch_norm(input, self.running_mean, self.running_var, weight, bias, False, 0.0, self.eps)
        rows = input.shape[0]
        if rows < 2:
            raise ValueError(
                f"batch norm over {rows} row(s): its statistics need at least 2, better 8; "
                "raise training.micro_batch_samples or data.segment_trs, or set model.norm to layer"
            )
        output, mean, inverse_std = torch.native_batch_norm(input, weight, bias, None, None, True, 0.0, self.eps)
        with torch.no_grad():
            biased = (inverse_std.float().pow(-2) - self.eps).clamp_(min=0.0)
            self._report(mean.detach().float(), biased * (rows / (rows - 1)))
        return output

    def _report(self, mean: Tensor, variance: Tensor) -> None:
        if self.report_to is not None:
            self.report_to(mean, variance)
        elif torch._C._current_graph_task_id() == -1:  # not a recomputation within backward
            self.update(mean, variance)

    def update(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards a batch's mean and unbiased variance, both (features,)."""
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)


class NormStatistics:
    """The batch statistics of one optimizer step, of every `BatchNorm` in a model.

    One slot a micro-batch of the *global* batch: a rank fills the slots of its own, the sum over ranks fills the
    rest, and the mean over slots is taken in the same order everywhere.
    """

    def __init__(self, model: nn.Module, micro_batches: int, device: torch.device) -> None:
        self._norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
        self._micro_batches = micro_batches
        width = 2 * sum(norm.features for norm in self._norms)
        self.slots = torch.zeros(micro_batches, width, device=device)

    @contextmanager
    def micro_batch(self, index: int) -> Iterator[None]:
        """Within this, training passes fill the slot of micro-batch `index`; the last of several wins.

        Beyond the last micro-batch there is no slot, and a pass leaves nothing.
        """
        start = 0
        for norm in self._norms:
            norm.report_to = self._writer(index, start, norm.features) if index < self._micro_batches else _forget
            start += 2 * norm.features
        try:
            yield
        finally:
            for norm in self._norms:
                norm.report_to = None

    def _writer(self, index: int, start: int, features: int) -> Callable[[Tensor, Tensor], None]:
        mean_slot = self.slots[index, start : start + features]
        variance_slot = self.slots[index, start + features : start + 2 * features]

        def write(mean: Tensor, variance: Tensor) -> None:
            mean_slot.copy_(mean)
            variance_slot.copy_(variance)

        return write

    @torch.no_grad()
    def commit(self) -> None:
        """Fold the step's statistics, already summed over ranks, into the running ones; then forget them."""
        if self._norms:
            widths = [norm.features for norm in self._norms for _ in ("mean", "variance")]
            means = torch.split(self.slots.mean(dim=0), widths)
            for norm, mean, variance in zip(self._norms, means[::2], means[1::2], strict=True):
                norm.update(mean, variance)
        self.slots.zero_()


def _forget(mean: Tensor, variance: Tensor) -> None:
    """For a pass that does not count."""


def make_norm(features: int, kind: NormKind, *, shift_removed: bool = False) -> nn.Module:
    """The norm after a Linear of width `features`."""
    if kind == "batch":
        return BatchNorm(features, shift_removed=shift_removed)
    return nn.LayerNorm(features)


def make_linear(inputs: int, outputs: int, kind: NormKind) -> nn.Linear:
    """The Linear before a norm of this kind."""
    return LinearBeforeBatchNorm(inputs, outputs) if kind == "batch" else nn.Linear(inputs, outputs)


def block(inputs: int, outputs: int, dropout: float, kind: NormKind) -> list[nn.Module]:
    """Linear, norm, ReLU, dropout."""
    return [make_linear(inputs, outputs, kind), make_norm(outputs, kind), nn.ReLU(inplace=True), nn.Dropout(dropout)]

"""What the tensors of a model must look like, known without building its weights. For verification.

Nothing here touches a checkpoint: it is the independent side of the comparison.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from giblet.config import GibletConfig
from giblet.models.build import Dimensions, build_model
from giblet.models.norm import BatchNorm, LinearBeforeBatchNorm


class ExpectedTensor(NamedTuple):
    """A tensor of the state dict: name, global shape, dtype as in `torch.float32` without the prefix."""

    name: str
    shape: tuple[int, ...]
    dtype: str


def meta_model(
    config: GibletConfig, dimensions: Dimensions | None = None, *, hrf_kernel: Tensor | None = None
) -> nn.Module:
    """The configuration's model on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return build_model(config, dimensions, hrf_kernel=hrf_kernel)


def expected_tensors(
    config: GibletConfig, dimensions: Dimensions | None = None, *, hrf_kernel: Tensor | None = None
) -> list[ExpectedTensor]:
    """Every state-dict entry of the configuration's model, in its order."""
    state = meta_model(config, dimensions, hrf_kernel=hrf_kernel).state_dict()
    return [
        ExpectedTensor(name, tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in state.items()
    ]


def zero_gradient_parameters(model: nn.Module) -> list[str]:
    """Parameters whose gradient is structurally zero, so that they stay as initialised: AdamW's moments stay zero.

    These are shifts that a batch norm right behind them subtracts again.
    """
    names = []
    for name, module in model.named_modules():
        if isinstance(module, LinearBeforeBatchNorm) or (isinstance(module, BatchNorm) and module.shift_removed):
            names.append(f"{name}.bias")
    return names


def explained_zero_tensors(
    config: GibletConfig,
    dimensions: Dimensions | None = None,
    *,
    hrf_kernel: Tensor | None = None,
    trained_steps: int = 1,
) -> set[str]:
    """State-dict entries that may be all zero in a healthy model after `trained_steps` optimizer steps.

    - Biases that start at zero and have no gradient (`zero_gradient_parameters` of the decoder and the bottleneck's).
    - `decoder.layer8.1.running_mean`: the batch mean of the bottleneck is its norm's bias, zero, and layer 8 adds a
      zero bias to it.
    - Before the first step everything that starts at zero.
    """
    model = meta_model(config, dimensions, hrf_kernel=hrf_kernel)
    zero = {name for name in zero_gradient_parameters(model) if not _starts_random(name)}
    if isinstance(model.get_submodule("decoder.layer8.1"), BatchNorm):
        zero.add("decoder.layer8.1.running_mean")
    if trained_steps == 0:
        for name, module in model.named_modules():
            norm = isinstance(module, BatchNorm | nn.LayerNorm)
            if (
                norm
                or name == "decoder.audio_codebook"
                or (isinstance(module, nn.Linear) and name.startswith("decoder."))
            ):
                zero.add(f"{name}.bias")
            if isinstance(module, BatchNorm):
                zero |= {f"{name}.running_mean", f"{name}.num_batches_tracked"}
    return zero


def _starts_random(bias: str) -> bool:
    """Encoder Linears have random biases; decoder Linears and all norms start at zero."""
    return bias.startswith("encoder.") and bias != "encoder.layer7_bottleneck.1.bias"

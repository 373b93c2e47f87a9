"""Initial values as a pure function of (seed, parameter name).

A model that is too large for one device is built on the meta device and filled one part at a time before each part is
sharded. Since no value depends on the order of construction, every rank and every world size starts alike.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import nn

from giblet.models.decoders import AudioCodebook
from giblet.models.dimensions import CODE_FEATURES
from giblet.models.encoders import VoxelHead
from giblet.models.norm import BatchNorm


@torch.no_grad()
def initialise(part: nn.Module, seed: int, prefix: str = "") -> None:
    """Fill every parameter and buffer of `part`, which is called `prefix` in the model, in place.

    Encoder Linears get PyTorch's defaults (uniform in ±1/√fan_in, weight and bias), decoder Linears Kaiming normal
    with fan_out (He et al. 2015, arXiv:1502.01852) and zero biases, norms the identity.
    """
    for name, module in part.named_modules(prefix=prefix):
        if isinstance(module, nn.Linear) and name.startswith("decoder."):
            module.weight.normal_(0.0, math.sqrt(2.0 / module.out_features), generator=_generator(module, name, seed))
            module.bias.zero_()
        elif isinstance(module, nn.Linear):
            generator, bound = _generator(module, name, seed), 1.0 / math.sqrt(module.in_features)
            module.weight.uniform_(-bound, bound, generator=generator)
            module.bias.uniform_(-bound, bound, generator=generator)
        elif isinstance(module, BatchNorm | nn.LayerNorm):
            module.weight.fill_(1.0)
            module.bias.zero_()
            if isinstance(module, BatchNorm):
                module.running_mean.zero_()
                module.running_var.fill_(1.0)
                module.num_batches_tracked.zero_()
        elif isinstance(module, AudioCodebook):
            module.weight.normal_(0.0, CODE_FEATURES**-0.5, generator=_generator(module, name, seed))
            module.bias.zero_()
        elif isinstance(module, VoxelHead) and module.hrf_taps is not None:
            module.hrf_taps.copy_(torch.tensor(module.canonical_taps))
            if module.hrf == "fir":
                module.hrf_kernel.copy_(module.hrf_taps.expand_as(module.hrf_kernel))


def _generator(module: nn.Module, name: str, seed: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator(next(module.parameters()).device).manual_seed(int.from_bytes(digest[:7], "big"))

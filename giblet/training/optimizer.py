"""AdamW, and its learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from giblet.config.schema import TrainingConfig

STATES = ("exp_avg", "exp_avg_sq", "step")


def learning_rate(step: int, total_steps: int, settings: TrainingConfig) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up, then half a cosine down to the minimum at the end.

    Loshchilov & Hutter 2017 (arXiv:1608.03983), without restarts. A pure function, so a schedule has no state.
    """
    peak, low, warmup = settings.learning_rate, settings.minimum_learning_rate, settings.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    return low + (peak - low) * 0.5 * (1.0 + math.cos(math.pi * progress))


def build_optimizer(model: nn.Module, settings: TrainingConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101); its state is made at once, to be loaded in place.

    Decay is for matrices that multiply features: not for biases, norms, or haemodynamic kernels.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (decayed if decays(name, parameter) else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        fused=True,
    )
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
    return optimizer


def decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay acts on a parameter: a matrix that multiplies features."""
    return parameter.ndim >= 2 and not name.endswith(("hrf_kernel", "bias"))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The rate of the next step, in every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state under flat names, `<state>.<parameter name>`. The tensors themselves, no copies."""
    return {
        f"{state}.{name}": optimizer.state[parameter][state]
        for state in STATES
        for name, parameter in model.named_parameters()
    }

"""The schedule and AdamW against torch's own."""

import pytest
import torch

from giblet.config.schema import TrainingConfig
from giblet.models import MultimodalAutoencoder
from giblet.training.optimizer import build_optimizer, learning_rate, optimizer_tensors, set_learning_rate
from tests.support.model import SMALL, inputs


def test_the_rate_warms_up_and_falls_as_torch_s_schedulers_do():
    settings = TrainingConfig(learning_rate=1e-3, minimum_learning_rate=1e-5, warmup_steps=4)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1e-3)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 4, 1.0, total_iters=3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=16, eta_min=1e-5)
    for step in range(21):
        assert learning_rate(step, 20, settings) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        (warmup if step < 3 else cosine).step() if step != 3 else None
    assert learning_rate(0, 20, settings) == pytest.approx(2.5e-4)
    assert learning_rate(4, 20, settings) == pytest.approx(1e-3)
    assert learning_rate(20, 20, settings) == learning_rate(99, 20, settings) == pytest.approx(1e-5)


def test_without_warm_up_it_starts_at_the_peak():
    settings = TrainingConfig(learning_rate=1e-3, warmup_steps=0)
    assert learning_rate(0, 10, settings) == 1e-3


def test_biases_norms_and_kernels_do_not_decay():
    model = MultimodalAutoencoder(**SMALL, hrf="fir", hrf_kernel=torch.ones(3), audio_objective="classify")
    decayed, plain = build_optimizer(model, TrainingConfig(weight_decay=0.1)).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(parameter)] for parameter in decayed["params"]}
    layers = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert found == layers | {"decoder.audio_codebook.weight"}
    assert len(found) + len(plain["params"]) == len(names)


def test_state_made_at_once_is_adamw_s_own_state():
    torch.manual_seed(0)
    ours, theirs = MultimodalAutoencoder(**SMALL), MultimodalAutoencoder(**SMALL)
    theirs.load_state_dict(ours.state_dict())
    settings = TrainingConfig(learning_rate=1e-2, weight_decay=0.0, beta1=0.8, beta2=0.9)
    mine = build_optimizer(ours, settings)
    reference = torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=(0.8, 0.9), weight_decay=0.0)
    before = optimizer_tensors(ours, mine)
    assert not any(value.any() for value in before.values())
    for _ in range(3):
        sum(value.float().square().mean() for value in ours(*inputs()).values()).backward()
        for parameter, twin in zip(ours.parameters(), theirs.parameters(), strict=True):
            twin.grad = parameter.grad.clone()
        for optimizer in (mine, reference):
            optimizer.step()
            optimizer.zero_grad()
    after = optimizer_tensors(ours, mine)
    for name, parameter in theirs.named_parameters():
        for state in ("exp_avg", "exp_avg_sq", "step"):
            mine_state, expected = after[f"{state}.{name}"], reference.state[parameter][state]
            torch.testing.assert_close(mine_state, expected, rtol=1e-5, atol=1e-8)
            assert mine_state is before[f"{state}.{name}"]  # in place, so that it can be loaded in place
        torch.testing.assert_close(dict(ours.named_parameters())[name], parameter, rtol=1e-5, atol=1e-6)
    set_learning_rate(mine, 0.5)
    assert {group["lr"] for group in mine.param_groups} == {0.5}

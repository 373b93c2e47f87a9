"""Batch norm against torch's own, its statistics over micro-batches, and what may stay zero."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from giblet.models import MultimodalAutoencoder
from giblet.models.norm import BatchNorm, NormStatistics
from giblet.models.structure import Structure
from tests.support.model import DIMENSIONS, SMALL, inputs
from tests.support.training import small_config

CPU = torch.device("cpu")


def pair(features=7):
    ours, theirs = BatchNorm(features), nn.BatchNorm1d(features)
    with torch.no_grad():
        theirs.weight.normal_()
        theirs.bias.normal_()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def test_it_is_batchnorm1d():
    ours, theirs = pair()
    for step in range(3):
        x = torch.randn(9, 7, generator=torch.Generator().manual_seed(step)) * 3 + 1
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        torch.testing.assert_close(ours(a), theirs(b))
        ours(a.detach().requires_grad_())  # a second pass
        theirs(b)
        ours(a).square().sum().backward()
        theirs(b).square().sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-5)
    x = torch.randn(4, 7)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_recomputation_in_backward_does_not_update_twice():
    ours, theirs = pair()
    x = torch.randn(9, 7, requires_grad=True)
    checkpoint(ours, x, use_reentrant=False).sum().backward()
    theirs(x)
    assert ours.num_batches_tracked == 1
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)


def test_a_step_s_statistics_are_the_mean_over_its_micro_batches_whatever_their_number_of_passes():
    norm = BatchNorm(5)
    model = nn.Sequential(norm)
    statistics = NormStatistics(model, 3, CPU)
    batches = [torch.randn(n, 5) * n for n in (4, 6, 9)]
    for index in (2, 0, 1):  # in any order
        with statistics.micro_batch(index):
            x = batches[index].requires_grad_()
            checkpoint(model, x, use_reentrant=False).sum().backward()  # recomputes
    assert norm.num_batches_tracked == 0
    statistics.commit()
    assert norm.num_batches_tracked == 1
    mean = torch.stack([b.mean(0) for b in batches]).mean(0)
    variance = torch.stack([b.var(0) for b in batches]).mean(0)
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * variance)
    assert statistics.slots.eq(0).all()


def test_one_row_has_no_statistics():
    with pytest.raises(ValueError, match="statistics need at least 2"):
        BatchNorm(3)(torch.randn(1, 3))


def test_rows_that_do_not_exist_change_nothing():
    torch.manual_seed(0)
    model = MultimodalAutoencoder(**SMALL, dropout_scale=0.0)
    video, audio, text = inputs()
    mask = torch.ones(12, dtype=torch.bool)
    mask[[0, 1, 7]] = False
    plain = model(video[mask], audio[mask], text[mask])
    first = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict({**MultimodalAutoencoder(**SMALL).state_dict(), **dict(model.named_parameters())})
    video[~mask] = 1e6
    padded = model(video, audio, text, row_mask=mask)
    for name in plain:
        torch.testing.assert_close(padded[name][mask], plain[name])
        assert padded[name][~mask].eq(0).all()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, first[name], msg=name)


def test_structurally_zero_gradients_are_exactly_zero_and_these_tensors_stay_zero():
    torch.manual_seed(0)
    model = MultimodalAutoencoder(**SMALL)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    structure = Structure(small_config(model={**DIMENSIONS, "audio_objective": "regress"}))
    names = structure.still
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for _ in range(5):
        outputs = model(*inputs())
        sum(value.square().mean() for value in outputs.values()).backward()
        gradients = {name: p.grad.abs().max().item() for name, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
    assert {name for name, size in gradients.items() if size == 0} == set(names)
    after = dict(model.named_parameters())
    for name in names:
        assert after[name].detach().sub(before[name]).abs().max() < 1e-2 * 1e-2 * 6, name  # at most its decay
    explained = structure.zero()
    zero = {n for n, v in model.state_dict().items() if v.dtype.is_floating_point and v.abs().max() < 1e-6}
    assert zero == explained
    reported = {
        "encoder.layer7_bottleneck.1.bias", "decoder.layer8.0.bias", "decoder.layer8.1.running_mean",
        "decoder.layer12_video.0.bias", "decoder.layer12_text.4.bias",
    }  # fmt: skip
    assert reported <= explained


def test_before_the_first_step_all_that_starts_at_zero_is_explained():
    model = MultimodalAutoencoder(**SMALL)
    zero = {name for name, value in model.state_dict().items() if not value.any()}
    config = small_config(model={**DIMENSIONS, "audio_objective": "regress"})
    assert zero == Structure(config).zero(trained_steps=0)
    layered = MultimodalAutoencoder(**SMALL, norm="layer", audio_objective="classify")
    config = small_config(model={**DIMENSIONS, "norm": "layer"})
    zero = {name for name, value in layered.state_dict().items() if not value.any()}
    assert zero == Structure(config).zero(trained_steps=0)
    assert Structure(config).zero() == set()

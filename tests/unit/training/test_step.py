"""One optimizer step against plain autograd on the whole global batch."""

import math
from contextlib import nullcontext

import pytest
import torch

from giblet.data.batches import BatchBuilder
from giblet.data.hrf import canonical_kernel
from giblet.errors import DivergedError
from giblet.models import Dimensions, build_model
from giblet.models.initialise import initialise
from giblet.models.losses import TERMS, Losses, scaled_video
from giblet.training.optimizer import build_optimizer, learning_rate
from giblet.training.parallel import ParallelModel, World
from giblet.training.step import TrainStep
from tests.support.prepared import make_prepared
from tests.support.training import small_config

ALONE = World(0, 1, 0, torch.device("cpu"))
KERNEL = torch.tensor(canonical_kernel(1.5, 6.0), dtype=torch.float32)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_prepared(tmp_path_factory.mktemp("step") / "d", absent=((1, 0),))


def setup(dataset, **sections):
    config = small_config(**sections)
    model = build_model(config, Dimensions.of(dataset.manifest.dimensions), hrf_kernel=KERNEL)
    initialise(model, 1)
    losses = Losses(dataset.manifest.statistics, [7, 5], config.model)
    builder = BatchBuilder(dataset, dataset.segments("train", 8), segment_trs=8, context_trs=3)
    optimizer = build_optimizer(model, config.training)
    parallel = ParallelModel(model, model, lambda last: nullcontext())
    return config, model, losses, builder, TrainStep(parallel, optimizer, losses, config, ALONE, 10)


SMOOTH = {"model": {"norm": "layer", "dropout_scale": 0.0}, "training": {"clip_grad_norm": 0.0}}


def test_micro_batches_add_up_to_the_gradient_of_the_global_batch(dataset, monkeypatch):
    _, model, losses, builder, step = setup(dataset, **SMOOTH)
    whole = builder.build([0, 3, 4, 6])
    outputs = model(scaled_video(whole.video), whole.audio, whole.text, trs=whole.trs, row_mask=whole.row_mask)
    terms = losses.terms(outputs, whole)
    losses.total(terms).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    norm = math.sqrt(sum(g.double().square().sum().item() for g in expected.values()))
    model.zero_grad()
    seen = {}
    monkeypatch.setattr(
        step, "_update", lambda *_: seen.update({n: p.grad for n, p in model.named_parameters()}) or 0.1
    )
    result = step(0, [builder.build([i]) for i in (0, 3, 4, 6)])
    for name, gradient in expected.items():
        rounding = 1e-5 * gradient.abs().max().item()  # of float32, in another order of additions
        torch.testing.assert_close(seen[name], gradient, rtol=1e-4, atol=max(rounding, 1e-6), msg=name)
    assert result.terms == pytest.approx({**{n: terms[n].item() for n in TERMS}, "loss": losses.total(terms).item()})
    assert result.grad_norm == pytest.approx(norm, rel=1e-5)
    assert result.tokens == whole.audio_mask[whole.target_mask].sum() * 2
    assert not result.stop_requested


@pytest.mark.parametrize("limit", [0.5, 1e9])
def test_gradients_are_clipped_to_the_global_norm(dataset, limit):
    config, model, _, builder, step = setup(dataset, **{**SMOOTH, "training": {"clip_grad_norm": limit}})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    result = step(3, [builder.build([i]) for i in (0, 1, 2, 3)], stop_requested=True)
    assert result.stop_requested
    moments = [state["exp_avg"] for state in step._optimizer.state.values()]
    norm = math.sqrt(sum(m.double().square().sum().item() for m in moments)) / (1 - config.training.beta1)
    assert norm == pytest.approx(min(limit, result.grad_norm), rel=1e-3)
    assert result.learning_rate == learning_rate(3, 10, config.training)
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(dataset):
    _, model, _, builder, step = setup(dataset)
    with torch.no_grad():
        model.decoder.layer13_text.bias[0] = math.inf
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(DivergedError, match=r"step 8: loss inf.*diverged"):
        step(7, [builder.build([i]) for i in (0, 1, 2, 3)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_dropout_and_statistics_depend_on_the_micro_batch_not_on_the_process(dataset):
    """Two ranks with two micro-batches each, one after the other, against one with four."""
    sums = []
    for worlds in ([ALONE], [World(0, 2, 0, ALONE.device), World(1, 2, 1, ALONE.device)]):
        total, slots = 0, 0
        for world in worlds:
            _, _, losses, builder, step = setup(dataset)
            step._world = world
            batches = [builder.build([i]) for i in (0, 3, 4, 6)][world.rank :: world.size]
            counts = losses.counts(builder.build([0, 3, 4, 6]))
            total = total + step._backward(5, batches, counts)
            slots = slots + step._statistics.slots.clone()
        sums.append((total, slots))
    torch.testing.assert_close(sums[0][0], sums[1][0], rtol=1e-6, atol=1e-7)
    assert torch.equal(sums[0][1], sums[1][1])

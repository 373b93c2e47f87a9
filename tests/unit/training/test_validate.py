"""Validation scores: per-voxel correlation against numpy, and sums over ranks with an uneven share."""

import numpy as np
import pytest
import torch

from giblet.data.batches import BatchBuilder
from giblet.models import Dimensions, build_model
from giblet.models.losses import Losses
from giblet.training.parallel import ParallelModel, World
from giblet.training.validate import Validation, VoxelCorrelation
from tests.support.prepared import make_prepared
from tests.support.training import small_config

CPU = torch.device("cpu")


def test_correlation_is_per_voxel_over_time_of_what_counts():
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=(40, 5)).astype(np.float32)
    bold = (predicted + rng.normal(size=(40, 5)) * 2 + 1).astype(np.float32)
    predicted[:, 1] = 3.0  # predicts nothing
    bold[:, 4] = 0.5  # not brain
    counted = rng.random((40, 2)) < 0.7
    correlation = VoxelCorrelation([3, 2], CPU)
    for part in np.array_split(np.arange(40), 3):
        correlation.add(*(torch.from_numpy(a[part]) for a in (predicted, bold, counted)))
    found = correlation.correlation().numpy()
    for voxel in (0, 2, 3):
        rows = counted[:, 0 if voxel < 3 else 1]
        assert found[voxel] == pytest.approx(np.corrcoef(predicted[rows, voxel], bold[rows, voxel])[0, 1], abs=1e-6)
    assert found[1] == 0.0
    assert np.isnan(found[4])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_prepared(tmp_path_factory.mktemp("v") / "d", trs=(70, 60, 50), validation_trs=22, absent=((1, 0),))


def test_ranks_with_uneven_shares_count_each_sample_once(dataset, monkeypatch):
    config = small_config(data={"hrf": {"kind": "none"}})
    torch.manual_seed(0)
    model = build_model(config, Dimensions.of(dataset.manifest.dimensions))
    losses = Losses(dataset.manifest.statistics, [7, 5], config.model)
    builder = BatchBuilder(dataset, dataset.segments("validation", 8), segment_trs=8)
    assert len(builder) == 6  # two blocks of 8 + 8 + 6 TRs
    parallel = ParallelModel(model, model, lambda last: pytest.fail("no gradients here"))
    alone = Validation(builder, losses, World(0, 1, 0, CPU), 1, False)(parallel)
    assert model.training
    assert Validation(builder, losses, World(0, 1, 0, CPU), 4, False)(parallel) == pytest.approx(alone, rel=1e-5)
    shared, passes = [], []

    def remember(self, values):
        shared[-1].append(values.clone())
        return values

    monkeypatch.setattr(World, "sum", remember)
    for rank in range(4):
        shared.append([])
        validation = Validation(builder, losses, World(rank, 4, rank, CPU), 1, False)
        passes.append(len(list(validation._batches())))
        validation(parallel)
    assert passes == [2, 2, 2, 2]
    sums, correlation = (sum(parts) for parts in zip(*shared, strict=True))
    total = VoxelCorrelation([7, 5], CPU)
    total.sums = correlation
    assert validation._scores(sums, total) == pytest.approx(alone, rel=1e-5)
    assert correlation[0, 0] == 22  # subject 1 was scanned in one of the two
    assert correlation[0, -1] == 44


def test_loss_is_the_weighted_sum_and_a_perfect_token_is_counted(dataset):
    config = small_config(data={"hrf": {"kind": "none"}}, model={"bold_weight": 2.0, "text_weight": 0.0})
    torch.manual_seed(0)
    model = build_model(config, Dimensions.of(dataset.manifest.dimensions))
    with torch.no_grad():
        model.decoder.audio_codebook.bias[:, 0, 17] = 100.0
    losses = Losses(dataset.manifest.statistics, [7, 5], config.model)
    segments = dataset.segments("validation", 8)
    builder = BatchBuilder(dataset, segments, segment_trs=8)
    scores = Validation(builder, losses, World(0, 1, 0, CPU), 2, False)(ParallelModel(model, model, None))
    weights = config.model
    expected = 2 * scores["bold"] + weights.video_weight * scores["video"] + weights.audio_weight * scores["audio"]
    assert scores["loss"] == pytest.approx(expected)
    codes = [
        dataset.presentations[s.presentation]
        .audio[s.start : s.stop]
        .transpose(0, 2, 1)[dataset.presentations[s.presentation].audio_mask[s.start : s.stop]]
        for s in segments
    ]
    codes = np.concatenate([c.ravel() for c in codes])
    assert scores["token_accuracy"] == pytest.approx((codes == 17).mean())

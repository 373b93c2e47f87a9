"""Defects 8 to 10 on real prepared data: the best constant scores 1 in every term, so that terms can be compared."""

from __future__ import annotations

import pytest
import torch

from giblet.config.schema import BoldConfig, ModelConfig
from giblet.data.batches import BatchBuilder
from giblet.data.prepare import prepare
from giblet.models.losses import Losses
from giblet.training.means import training_means
from tests.support.bids import make_bids, tiny_config


@pytest.fixture(scope="module", params=[True, False], ids=["z-scored", "raw BOLD"])
def samples(request, tmp_path_factory):
    """Every training TR once. The film begins and ends within a TR, so TRs differ in their number of frames."""
    folder = tmp_path_factory.mktemp("scales")
    source = make_bids(folder / "bids", trs=60, tr_seconds=3.0, film_seconds=40.0, fps=8, onset=4.5)
    bold = BoldConfig() if request.param else BoldConfig(detrend=False, standardize=False, high_pass_hz=0)
    dataset = prepare(tiny_config(source, folder / "cache", bold=bold))
    return BatchBuilder(dataset, dataset.segments("train", 16, 2), segment_trs=16, context_trs=2)


@pytest.mark.parametrize("objective", ["classify", "regress"])
def test_the_best_constant_scores_one_in_every_term(samples, objective):
    manifest = samples.dataset.manifest
    batch = samples.build(range(len(samples)))
    means = training_means(samples)
    counted = batch.bold_mask & batch.target_mask[:, None]
    widths = [subject.voxels for subject in manifest.subjects]
    voxels = torch.cat(
        [
            part[rows].double().mean(dim=0)
            for part, rows in zip(torch.split(batch.bold, widths, dim=1), counted.T, strict=True)
        ]
    )
    shares = means.code_counts / means.code_counts.sum(dim=1, keepdim=True)
    numbers = (shares * torch.arange(shares.shape[1])).sum(dim=1)
    outputs = {
        "predicted_fmri": voxels.expand(batch.rows, -1),
        "video_recon": means.frame.expand(batch.rows, -1),
        "text_recon": means.text.expand(batch.rows, -1),
        "audio_recon": numbers[None, :, None].expand(batch.audio.shape),
    }
    if objective == "classify":
        outputs["audio_logits"] = shares.log().clamp(min=-100)[None, :, None].expand(*batch.audio.shape, -1)
    losses = Losses(manifest.statistics, widths, ModelConfig(audio_objective=objective))
    terms = {name: value.item() for name, value in losses.terms(outputs, batch).items()}
    assert terms == pytest.approx(dict.fromkeys(terms, 1.0), rel=1e-4)

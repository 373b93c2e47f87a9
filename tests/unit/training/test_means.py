"""A fresh run starts at the training set's means: every loss term begins near that of the best constant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from giblet.config import GibletConfig
from giblet.data.batches import BatchBuilder
from giblet.data.prepared import PreparedDataset
from giblet.models import Dimensions, build_model
from giblet.models.losses import Losses, scaled_video
from giblet.training.means import start_at_means, training_means
from tests.support.prepared import make_prepared
from tests.support.training import small_config


def _samples(dataset: PreparedDataset, config: GibletConfig, context_trs: int) -> BatchBuilder:
    segments = dataset.segments("train", config.data.segment_trs, context_trs)
    return BatchBuilder(dataset, segments, segment_trs=config.data.segment_trs, context_trs=context_trs)


def test_means_are_those_of_the_training_rows(tmp_path: Path) -> None:
    dataset, config = make_prepared(tmp_path), small_config()
    means = training_means(_samples(dataset, config, context_trs=3))
    frames, words, codes = [], [], []
    for index, start, stop in dataset.manifest.split["train"]:
        shown = dataset.presentations[index]
        for row in range(start, stop):
            if shown.video_mask[row].any():
                frames.append((shown.video[row][shown.video_mask[row]] / 255.0).mean(axis=0).ravel())
            if shown.text_mask[row]:
                words.append(shown.text[row].astype(np.float64))
            codes.append(shown.audio[row][0][shown.audio_mask[row]])
    np.testing.assert_allclose(means.frame, np.mean(frames, axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(means.text, np.mean(words, axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(means.code_counts[0], np.bincount(np.concatenate(codes), minlength=1024))


@pytest.mark.parametrize("objective", ["classify", "regress"])
def test_every_term_begins_near_a_constants(tmp_path: Path, objective: str) -> None:
    dataset = make_prepared(tmp_path)
    config = small_config(data={"segment_trs": 8, "hrf": {"kind": "none"}}, model=_model(objective))
    samples = _samples(dataset, config, context_trs=0)
    manifest = dataset.manifest
    losses = Losses(manifest.statistics, [subject.voxels for subject in manifest.subjects], config.model)
    torch.manual_seed(0)
    model = build_model(config, Dimensions.of(manifest.dimensions)).eval()
    batch = samples.build(range(len(samples)))

    def terms() -> dict[str, float]:
        with torch.no_grad():
            outputs = model(scaled_video(batch.video), batch.audio, batch.text, trs=batch.trs)
        if objective == "regress":
            outputs = {**outputs, "audio_recon": outputs["audio_recon"].float()}
        return {name: float(value) for name, value in losses.terms(outputs, batch).items()}

    before = terms()
    start_at_means(model, training_means(samples), manifest.statistics.text_variance)
    after = terms()
    assert before["text"] > 1.2, "the network's own weights begin elsewhere"
    for name in ("bold", "audio", "text"):
        assert after[name] == pytest.approx(1.0, abs=0.15), (name, before, after)
    # A TR's mean frame varies less than its frames do, whose variance the ratio is to.
    assert after["video"] < 1.05
    assert after["video"] < before["video"]


def _model(objective: str) -> dict[str, Any]:
    return {**small_config().model.model_dump(), "audio_objective": objective}

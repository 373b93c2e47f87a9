"""The judge's own held-out score beside numbers computed another way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr

from giblet.data.batches import BatchBuilder
from giblet.evaluate.heldout import heldout_score
from giblet.evaluate.predict import context_trs
from giblet.models.losses import scaled_video
from tests.support.evaluation import tiny


@pytest.mark.parametrize("constant", [False, True])
def test_the_correlation_is_that_of_each_voxel_over_all_its_trs(tmp_path: Path, constant: bool) -> None:
    config, dataset, model = tiny(tmp_path / "dataset", absent=((0, 1),))
    config = config.model_copy(update={"training": config.training.model_copy(update={"precision": "fp32"})})
    if constant:
        for presentation in dataset.presentations:
            bold = presentation.bold["sub-01"]
            np.save(bold.filename, np.where(np.arange(bold.shape[1]) == 2, 1.0, bold).astype(np.float32))
    found = heldout_score(model, dataset, config)["bold_correlation"]

    segments = dataset.segments("validation", config.data.segment_trs)
    builder = BatchBuilder(
        dataset, segments, segment_trs=config.data.segment_trs, context_trs=context_trs(model),
        video_frames=model.video_shape[0], audio_frames=model.audio_shape[1],
    )  # fmt: skip
    batch = builder.build(range(len(segments)))
    predicted = model(
        scaled_video(batch.video), batch.audio, batch.text, trs=batch.trs, row_mask=batch.row_mask
    )["predicted_fmri"].detach()  # fmt: skip
    counted = (batch.bold_mask & batch.target_mask[:, None]).numpy()
    correlations = []
    for subject, info in enumerate(dataset.manifest.subjects):
        rows = counted[:, subject]
        for voxel in range(info.first_voxel, info.first_voxel + info.voxels):
            if np.ptp(batch.bold[rows, voxel].numpy()) > 0:
                correlations.append(pearsonr(predicted[rows, voxel], batch.bold[rows, voxel]).statistic)
    assert len(correlations) == sum(info.voxels for info in dataset.manifest.subjects) - constant
    assert found == pytest.approx(np.mean(correlations), abs=1e-6)

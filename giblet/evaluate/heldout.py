"""The held-out score of a model: the loss of the whole validation split, in one process.

The same quantity that training records when it validates, computed by other code from the same loss terms: each term's
sum of errors over the split, divided by the number of elements that count, as a ratio to the training set's spread.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from giblet.config.schema import GibletConfig
from giblet.data.batches import Batch, BatchBuilder
from giblet.data.prepared import PreparedDataset
from giblet.evaluate.predict import context_trs
from giblet.models.autoencoder import MultimodalAutoencoder
from giblet.models.losses import TERMS, Losses, scaled_video, token_hits

FloatArray = NDArray[np.float64]
_CONSTANT = 1e-12
"""A voxel whose BOLD has less variance than this over the split is constant."""


class NonFiniteOutputError(ArithmeticError):
    """An output of the model is NaN or infinite; the message names it."""


@torch.no_grad()
def heldout_score(
    model: MultimodalAutoencoder,
    dataset: PreparedDataset,
    config: GibletConfig,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """`loss`, its terms (`bold`, `video`, `audio`, `text`, as ratios), `bold_correlation` and `token_accuracy`.

    All over the validation split; the correlation is the mean over voxels of Pearson's r over its TRs.

    The model is evaluated in the precision that the configuration trains in, and left in evaluation mode on `device`.
    Raises `NonFiniteOutputError` if any output is not finite.
    """
    device = torch.device(device)
    model.to(device).eval()
    segments = dataset.segments("validation", config.data.segment_trs)
    builder = BatchBuilder(
        dataset,
        segments,
        segment_trs=config.data.segment_trs,
        context_trs=context_trs(model),
        video_frames=model.video_shape[0],
        audio_frames=model.audio_shape[1],
    )
    losses = Losses(dataset.manifest.statistics, [s.voxels for s in dataset.manifest.subjects], config.model)
    one = torch.ones(len(TERMS), dtype=torch.float64, device=device)
    sums = dict.fromkeys(TERMS, 0.0)
    counts, hits = torch.zeros(len(TERMS), dtype=torch.float64), 0.0
    correlation = _Correlation([subject.voxels for subject in dataset.manifest.subjects])
    size = config.training.micro_batch_samples
    for first in range(0, len(segments), size):
        batch = builder.build(range(first, min(first + size, len(segments)))).to(device)
        outputs = _outputs(model, batch.video, batch.audio, batch.text, batch.trs, batch.row_mask, config)
        for name, term in losses.terms(outputs, batch, one).items():
            sums[name] += float(term)
        counts += losses.counts(batch).cpu()
        hits += float(token_hits(outputs, batch))
        correlation.add(outputs["predicted_fmri"], batch)
    per_term = {name: sums[name] / max(float(count), 1.0) for name, count in zip(TERMS, counts, strict=True)}
    loss = sum(losses.weights[name] * per_term[name] for name in TERMS)
    tokens = max(float(counts[TERMS.index("audio")]), 1.0)
    return {"loss": loss, **per_term, "bold_correlation": correlation.mean(), "token_accuracy": hits / tokens}


class _Correlation:
    """Pearson's r of each voxel over all TRs that count: means, and sums of centred squares, pooled batch by batch.

    By the pairwise update of Chan, Golub & LeVeque (1983, The American Statistician 37:242-247), each subject's voxels
    on their own, since a TR counts for some subjects and not for others.
    """

    def __init__(self, subject_voxels: list[int]) -> None:
        stops = [0, *itertools.accumulate(subject_voxels)]
        self._columns = [slice(start, stop) for start, stop in itertools.pairwise(stops)]
        self._rows = np.zeros(stops[-1])
        self._mean_x, self._mean_y, self._xx, self._yy, self._xy = np.zeros((5, stops[-1]))

    def add(self, predicted: torch.Tensor, batch: Batch) -> None:
        """`predicted` (N,V) beside `batch.bold`."""
        counted = (batch.bold_mask & batch.target_mask[:, None]).cpu().numpy()
        x, y = (values.float().cpu().numpy().astype(np.float64) for values in (predicted, batch.bold))
        for subject, columns in enumerate(self._columns):
            rows = counted[:, subject]
            if rows.any():
                self._pool(columns, x[rows, columns], y[rows, columns])

    def _pool(self, columns: slice, x: FloatArray, y: FloatArray) -> None:
        before, added = self._rows[columns], len(x)
        mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
        apart_x, apart_y = mean_x - self._mean_x[columns], mean_y - self._mean_y[columns]
        weight = before * added / (before + added)
        self._xx[columns] += ((x - mean_x) ** 2).sum(axis=0) + weight * apart_x**2
        self._yy[columns] += ((y - mean_y) ** 2).sum(axis=0) + weight * apart_y**2
        self._xy[columns] += ((x - mean_x) * (y - mean_y)).sum(axis=0) + weight * apart_x * apart_y
        self._mean_x[columns] += apart_x * added / (before + added)
        self._mean_y[columns] += apart_y * added / (before + added)
        self._rows[columns] += added

    def mean(self) -> float:
        """Over voxels whose BOLD varies; a prediction that does not vary counts as 0. 0 if there are none."""
        scale = np.sqrt(self._xx * self._yy)
        r = np.divide(self._xy, scale, out=np.zeros_like(scale), where=scale > 0)
        known = np.clip(r[self._yy > _CONSTANT * np.maximum(self._rows, 1.0)], -1.0, 1.0)
        return float(known.mean()) if known.size else 0.0


def _outputs(
    model: nn.Module,
    video: torch.Tensor,
    audio: torch.Tensor,
    text: torch.Tensor,
    trs: int,
    row_mask: torch.Tensor,
    config: GibletConfig,
) -> dict[str, torch.Tensor]:
    bf16 = config.training.precision == "bf16"
    with torch.autocast(video.device.type, torch.bfloat16, enabled=bf16):
        outputs: dict[str, torch.Tensor] = model(scaled_video(video), audio, text, trs=trs, row_mask=row_mask)
    bad = [name for name, values in outputs.items() if not math.isfinite(float(values.float().sum()))]
    bad = [name for name in bad if not bool(torch.isfinite(outputs[name]).all())]
    if bad:
        raise NonFiniteOutputError(f"{', '.join(bad)} on a held-out batch has NaN or infinite values")
    return outputs

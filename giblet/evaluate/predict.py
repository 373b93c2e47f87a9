"""Runs the model over whole presentations, and scores what it rebuilds.

A presentation goes through in chunks of TRs, each with the haemodynamic kernel's length of context before it: since the
kernel is causal and finite, and evaluation mode uses no statistic of the batch, the result equals that of the whole run
in one piece, in memory that does not grow with its length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from giblet.data.batches import Batch, BatchBuilder
from giblet.data.prepared import PreparedDataset, Segment
from giblet.evaluate.correlation import correlation
from giblet.models.autoencoder import MultimodalAutoencoder
from giblet.models.losses import scaled_video, target_frame

CHUNK_TRS = 48
CODES = 1024
FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class StimulusMeans:
    """What training TRs look like on average: the constant guess that a reconstruction must beat."""

    frame: NDArray[np.float64]
    codes: NDArray[np.int64]
    """Most frequent code of each codebook, (Q,)."""


@dataclass
class Reconstruction:
    """Sums over held-out TRs of how the movie was rebuilt."""

    means: StimulusMeans
    squared_error: float = 0.0
    squared_error_of_mean: float = 0.0
    pixels: int = 0
    token_hits: int = 0
    token_hits_of_unigram: int = 0
    tokens: int = 0
    text_true: list[FloatArray] = field(default_factory=list)
    text_rebuilt: list[FloatArray] = field(default_factory=list)

    def add(self, outputs: dict[str, torch.Tensor], batch: Batch, rows: NDArray[np.bool_]) -> None:
        """Add the `rows` (N,) of a batch."""
        seen = rows & batch.video_mask.any(dim=1).numpy()
        wanted = pictures_of(batch).numpy()[seen].astype(np.float64)
        rebuilt = outputs["video_recon"].float().numpy()[seen]
        self.squared_error += float(np.square(rebuilt - wanted).sum())
        self.squared_error_of_mean += float(np.square(self.means.frame - wanted).sum())
        self.pixels += wanted.size
        counted = (batch.audio_mask.numpy() & rows[:, None])[:, None, :] & np.ones((1, batch.audio.shape[1], 1), bool)
        codes = batch.audio.numpy()
        self.token_hits += int(((outputs["audio_recon"].numpy() == codes) & counted).sum())
        self.token_hits_of_unigram += int(((self.means.codes[None, :, None] == codes) & counted).sum())
        self.tokens += int(counted.sum())
        spoken = rows & batch.text_mask.numpy()
        self.text_true.append(batch.text.numpy()[spoken])
        self.text_rebuilt.append(outputs["text_recon"].float().numpy()[spoken])

    def scores(self) -> dict[str, float | int | None]:
        """Plain numbers; None where nothing was there to be scored."""
        true = np.concatenate(self.text_true) if self.text_true else np.zeros((0, 1), np.float32)
        rebuilt = np.concatenate(self.text_rebuilt) if self.text_rebuilt else true
        text_r = correlation(rebuilt, true) if len(true) > 2 else np.array([np.nan])
        mse = self.squared_error / self.pixels if self.pixels else float("nan")
        mse_of_mean = self.squared_error_of_mean / self.pixels if self.pixels else float("nan")
        return {
            "video_r2_against_training_mean": number(1.0 - mse / mse_of_mean) if mse_of_mean else None,
            "video_psnr_db": number(-10.0 * np.log10(mse)) if mse > 0 else None,
            "video_psnr_db_of_training_mean": number(-10.0 * np.log10(mse_of_mean)) if mse_of_mean > 0 else None,
            "audio_token_accuracy": self.token_hits / self.tokens if self.tokens else None,
            "audio_token_accuracy_of_unigram": self.token_hits_of_unigram / self.tokens if self.tokens else None,
            "audio_tokens": self.tokens,
            "text_mean_r": number(np.nanmean(text_r)) if np.isfinite(text_r).any() else None,
            "text_trs": len(true),
        }


@dataclass(frozen=True)
class FramePair:
    """A TR's mean frame and what the model made of it, uint8 (H,W,3), with where it stands in the run."""

    presentation: str
    seconds: float
    true: NDArray[np.uint8]
    rebuilt: NDArray[np.uint8]


def number(value: Any) -> float | None:
    """A finite float, or None: what JSON can say."""
    value = float(value)
    return value if np.isfinite(value) else None


def pictures_of(batch: Batch) -> torch.Tensor:
    """The picture to rebuild of each row of a batch, (N, H·W·3) in [0, 1]."""
    return target_frame(scaled_video(batch.video), batch.video_mask)


def context_trs(model: MultimodalAutoencoder) -> int:
    """How many TRs of past the BOLD of a TR depends on, its own not counted."""
    head = model.encoder.bottleneck_to_voxels
    if head.hrf == "none" or head.hrf_taps is None:
        return 0
    return int(head.hrf_taps.shape[0]) - 1


def chunks(
    model: MultimodalAutoencoder, dataset: PreparedDataset, presentation: int, chunk_trs: int
) -> Iterator[tuple[slice, Batch, slice]]:
    """Batches that cover a presentation: its TRs, the batch, and the batch's rows of those TRs."""
    trs, context = dataset.presentations[presentation].trs, context_trs(model)
    segments = [Segment(presentation, first, min(first + chunk_trs, trs)) for first in range(0, trs, chunk_trs)]
    builder = BatchBuilder(
        dataset,
        segments,
        segment_trs=chunk_trs,
        context_trs=context,
        video_frames=model.video_shape[0],
        audio_frames=model.audio_shape[1],
    )
    for index, segment in enumerate(segments):
        length = segment.stop - segment.start
        yield slice(segment.start, segment.stop), builder.build([index]), slice(context, context + length)


@torch.no_grad()
def predict_presentation(
    model: MultimodalAutoencoder,
    dataset: PreparedDataset,
    presentation: int,
    *,
    held_out: NDArray[np.bool_],
    reconstruction: Reconstruction,
    picture_trs: frozenset[int] = frozenset(),
    chunk_trs: int = CHUNK_TRS,
) -> tuple[FloatArray, list[FramePair]]:
    """Predicted BOLD (T,V) of a whole presentation, and frames beside their reconstructions at `picture_trs`.

    Rows where `held_out` (T,) is True go into `reconstruction`. The model must be in evaluation mode.
    """
    source = dataset.presentations[presentation]
    device = next(model.parameters()).device
    bold = np.zeros((source.trs, model.voxels), dtype=np.float32)
    pictures = []
    for trs, batch, rows in chunks(model, dataset, presentation, chunk_trs):
        moved = batch.to(device)
        outputs = model(scaled_video(moved.video), moved.audio, moved.text, trs=moved.trs, row_mask=moved.row_mask)
        outputs = {name: values.cpu() for name, values in outputs.items() if name != "audio_logits"}
        bold[trs] = outputs["predicted_fmri"].float().numpy()[rows]
        scored = np.zeros(batch.rows, dtype=bool)
        scored[rows] = held_out[trs]
        reconstruction.add(outputs, batch, scored)
        for tr in sorted(picture_trs & set(range(trs.start, trs.stop))):
            row = rows.start + tr - trs.start
            pair = (_picture(frames[row], model.video_shape) for frames in (pictures_of(batch), outputs["video_recon"]))
            pictures.append(FramePair(source.id, tr * dataset.manifest.tr_seconds, *pair))
    return bold, pictures


def _picture(flat: torch.Tensor, shape: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    return np.asarray((flat.float().clamp(0, 1) * 255).round().to(torch.uint8).reshape(shape[1:]).numpy())


def stimulus_means(dataset: PreparedDataset) -> StimulusMeans:
    """Mean frame and most frequent code per codebook of training TRs, read in chunks."""
    dimensions = dataset.manifest.dimensions
    total = np.zeros(dimensions.height * dimensions.width * 3)
    seen = 0
    counts = np.zeros((dimensions.audio_codebooks, CODES), dtype=np.int64)
    segments = dataset.segments("train", CHUNK_TRS)
    builder = BatchBuilder(dataset, segments, segment_trs=CHUNK_TRS)
    for index in range(len(segments)):
        batch = builder.build([index])
        rows = (batch.target_mask & batch.video_mask.any(dim=1)).numpy()
        total += pictures_of(batch).numpy()[rows].sum(axis=0, dtype=np.float64)
        seen += int(rows.sum())
        heard = (batch.audio_mask & batch.target_mask[:, None]).numpy()
        for codebook in range(dimensions.audio_codebooks):
            counts[codebook] += np.bincount(batch.audio[:, codebook].numpy()[heard], minlength=CODES)
    return StimulusMeans(total / max(seen, 1), counts.argmax(axis=1))

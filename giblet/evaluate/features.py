"""Features of a presentation for the linear baseline, one band a modality, from the prepared arrays alone.

What the model sees is what the baseline sees: the same frames, codes and embeddings. Each band is a few hundred to a
few thousand numbers a TR, unsmoothed and on the stimulus clock; the haemodynamics come later, in `baseline`.

- `video`: the TR's mean frame, area-averaged to a coarse RGB grid, and the contrast within each cell of it;
- `motion`: the square root of the mean absolute difference of consecutive frames on the same grid (what moves);
- `audio`: how often each code of each codebook sounds, square-rooted (the Hellinger embedding of a histogram: codes are
  names, not numbers, so their indices are never averaged);
- `text`: the embedding, and whether there is any.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from giblet.data.prepared import Presentation

FloatArray = NDArray[np.float32]
BANDS = ("video", "motion", "audio", "text")
GRID = (9, 16)
"""Rows and columns of the coarse grid, at most: 10x10 pixels a cell at 90x160."""
CODES = 1024
"""Entries of an EnCodec codebook (10 bits)."""
CHUNK_TRS = 32


def presentation_features(presentation: Presentation) -> dict[str, FloatArray]:
    """Every band as (T, D_band); zero where a TR has no stimulus. Reads the arrays in chunks of TRs."""
    parts: dict[str, list[FloatArray]] = {band: [] for band in BANDS}
    last_frame: FloatArray | None = None
    for start in range(0, presentation.trs, CHUNK_TRS):
        trs = slice(start, start + CHUNK_TRS)
        raw = presentation.video[trs]
        frames = pool_frames(raw)
        mask = np.asarray(presentation.video_mask[trs])
        seen = (masked_mean(part, mask).reshape(len(frames), -1) for part in (frames, contrast(raw, frames)))
        parts["video"].append(np.concatenate(list(seen), axis=1))
        parts["motion"].append(np.sqrt(motion(frames, mask, last_frame)))
        last_frame = frames[-1, -1]
        parts["audio"].append(code_histograms(presentation.audio[trs], np.asarray(presentation.audio_mask[trs])))
        spoken = np.asarray(presentation.text_mask[trs])[:, None]
        text = np.where(spoken, np.asarray(presentation.text[trs], dtype=np.float32), 0.0)
        parts["text"].append(np.concatenate([text, spoken], axis=1).astype(np.float32))
    watching = np.asarray(presentation.stimulus_mask)[:, None]
    return {band: np.where(watching, np.concatenate(chunks), 0.0).astype(np.float32) for band, chunks in parts.items()}


def pool_frames(frames: NDArray[np.uint8]) -> FloatArray:
    """(T,F,H,W,3) uint8 → (T,F,h,w,3) in [0,1], area means over a grid of at most `GRID` cells."""
    return _pool(np.asarray(frames, dtype=np.float32)) / np.float32(255.0)


def contrast(frames: NDArray[np.uint8], pooled: FloatArray) -> FloatArray:
    """Standard deviation of the pixels within each cell, mean over colours: (T,F,H,W,3), (T,F,h,w,3) → (T,F,h,w)."""
    squares = _pool(np.square(np.asarray(frames, dtype=np.float32) / np.float32(255.0)))
    return np.asarray(np.sqrt(np.maximum(squares - pooled**2, 0.0)).mean(axis=-1), dtype=np.float32)


def _pool(frames: FloatArray) -> FloatArray:
    height, width = frames.shape[2:4]
    rows = np.linspace(0, height, min(GRID[0], height) + 1).astype(int)
    columns = np.linspace(0, width, min(GRID[1], width) + 1).astype(int)
    sums = np.add.reduceat(np.add.reduceat(frames, rows[:-1], axis=2), columns[:-1], axis=3)
    area = np.diff(rows)[:, None] * np.diff(columns)[None, :]
    return np.asarray(sums / area[:, :, None], dtype=np.float32)


def masked_mean(frames: FloatArray, mask: NDArray[np.bool_]) -> FloatArray:
    """Mean over the real frames of each TR: (T,F,…), (T,F) → (T,…); zero where there is none."""
    weights = mask.astype(np.float32)
    counts = np.maximum(weights.sum(axis=1), 1.0)
    total = np.einsum("tf...,tf->t...", frames, weights)
    return np.asarray(total / counts.reshape(-1, *[1] * (total.ndim - 1)), dtype=np.float32)


def motion(frames: FloatArray, mask: NDArray[np.bool_], before: FloatArray | None) -> FloatArray:
    """Mean absolute change between consecutive frames, the last one of the TR before included: (T, h·w).

    `before` is the frame before the first TR, None at the start of a run.
    """
    previous = np.concatenate([frames[:1, -1] if before is None else before[None], frames[:-1, -1]])
    if before is None:
        previous[0] = frames[0, 0]
    steps = np.abs(np.diff(np.concatenate([previous[:, None], frames], axis=1), axis=1)).mean(axis=-1)
    return masked_mean(steps.astype(np.float32), mask).reshape(len(frames), -1)


def code_histograms(codes: NDArray[Any], mask: NDArray[np.bool_]) -> FloatArray:
    """Square root of each code's share of the TR's frames: (T,Q,A) codes, (T,A) → (T, Q·1024)."""
    trs, codebooks, _ = codes.shape
    counts = np.zeros((trs, codebooks, CODES), dtype=np.float32)
    tr, codebook, frame = np.nonzero(np.broadcast_to(mask[:, None, :], codes.shape))
    np.add.at(counts, (tr, codebook, np.asarray(codes)[tr, codebook, frame].astype(np.int64)), 1.0)
    shares = counts / np.maximum(mask.sum(axis=1, dtype=np.float32), 1.0)[:, None, None]
    return np.asarray(np.sqrt(shares).reshape(trs, -1), dtype=np.float32)

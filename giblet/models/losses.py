"""Losses that can be compared and added: each a ratio to what the best constant prediction would get.

1 means no better than the training set's mean (squared errors over its variance) or its unigram frequencies
(cross-entropy over their entropy); 0 is perfect. The denominators are statistics of the training set, fixed, never of
the batch, which would make a small batch's loss a matter of its own spread.

A term is the sum of errors over the elements that count, divided by their number. The number may be that of a larger
whole (all micro-batches of a step, all ranks, the whole validation split), so that parts simply add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from giblet.config.schema import ModelConfig

TERMS = ("bold", "video", "audio", "text")
_IGNORED = -100


class BatchLike(Protocol):
    """What losses and inputs read of a `giblet.data.batches.Batch`."""

    @property
    def video(self) -> Tensor: ...
    @property
    def video_mask(self) -> Tensor: ...
    @property
    def audio(self) -> Tensor: ...
    @property
    def audio_mask(self) -> Tensor: ...
    @property
    def text(self) -> Tensor: ...
    @property
    def text_mask(self) -> Tensor: ...
    @property
    def bold(self) -> Tensor: ...
    @property
    def bold_mask(self) -> Tensor: ...
    @property
    def row_mask(self) -> Tensor: ...
    @property
    def target_mask(self) -> Tensor: ...


class StatisticsLike(Protocol):
    """What losses read of a prepared dataset's `manifest.statistics`."""

    @property
    def video_variance(self) -> float: ...
    @property
    def text_variance(self) -> float: ...
    @property
    def bold_variance(self) -> float: ...
    @property
    def audio_code_variance(self) -> float: ...
    @property
    def audio_unigram_entropy_nats(self) -> float: ...


def scaled_video(video: Tensor) -> Tensor:
    """uint8 frames → float32 in [0, 1], as `forward` takes them."""
    return video.to(torch.float32).div_(255.0)


class Losses:
    """The loss terms of one data set: its statistics, and the voxels of each subject in the order of their columns."""

    def __init__(self, statistics: StatisticsLike, subject_voxels: list[int], config: ModelConfig) -> None:
        classify = config.audio_objective == "classify"
        self.subject_voxels = subject_voxels
        self.scales = {
            "bold": statistics.bold_variance,
            "video": statistics.video_variance,
            "audio": statistics.audio_unigram_entropy_nats if classify else statistics.audio_code_variance,
            "text": statistics.text_variance,
        }
        self.weights = {
            "bold": config.bold_weight,
            "video": config.video_weight,
            "audio": config.audio_weight,
            "text": config.text_weight,
        }

    def counts(self, batch: BatchLike) -> Tensor:
        """How many elements count for each of `TERMS`, float64 (4,): what the sums of a batch are divided by."""
        target = batch.target_mask
        voxels = torch.tensor(self.subject_voxels, dtype=torch.float64, device=target.device)
        video, audio, text = _row_masks(batch)
        codes = (batch.audio_mask & audio[:, None]).sum() * batch.audio.shape[1]
        pixels = video.sum() * (batch.video.flatten(2).shape[2])
        bold = (batch.bold_mask & target[:, None]).sum(dim=0).to(torch.float64) @ voxels
        return torch.stack((bold, pixels, codes, text.sum() * batch.text.shape[1])).to(torch.float64)

    def terms(
        self,
        outputs: Mapping[str, Tensor],
        batch: BatchLike,
        counts: Tensor | None = None,
        *,
        target_rows: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Each term of `TERMS` as a ratio, scalars.

        `counts` are those of the whole that this batch is a part of (None: of this batch alone). The decoder's outputs
        may have all rows or, from `forward(decode_mask=batch.target_mask)`, the target rows only; `target_rows` are
        the indices of these, for a caller who has them without asking a GPU.
        """
        counts = self.counts(batch) if counts is None else counts
        rows: Tensor | slice = slice(None)
        if outputs["text_recon"].shape[0] != batch.text.shape[0]:
            rows = batch.target_mask.nonzero().squeeze(1) if target_rows is None else target_rows
        video, audio, text = (mask[rows] for mask in _row_masks(batch))
        frame = target_frame(scaled_video(batch.video[rows]), batch.video_mask[rows])
        sums = {
            "bold": self._bold(outputs["predicted_fmri"], batch),
            "video": _squared(outputs["video_recon"], frame, video),
            "audio": _audio(outputs, batch.audio[rows], batch.audio_mask[rows] & audio[:, None]),
            "text": _squared(outputs["text_recon"], batch.text[rows], text),
        }
        scale = counts.clamp(min=1.0).to(torch.float32)
        return {name: sums[name] / (scale[index] * self.scales[name]) for index, name in enumerate(TERMS)}

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum that is minimised."""
        return torch.stack([self.weights[name] * terms[name] for name in TERMS]).sum()

    def _bold(self, predicted: Tensor, batch: BatchLike) -> Tensor:
        """Sum of squared errors over the voxels of every subject who was scanned in that TR."""
        rows = batch.target_mask[:, None] & batch.bold_mask
        error = predicted.float() - batch.bold
        per_subject = [part.square().sum(dim=1) for part in torch.split(error, self.subject_voxels, dim=1)]
        return torch.where(rows, torch.stack(per_subject, dim=1), 0.0).sum()


def loss_terms(
    outputs: Mapping[str, Tensor],
    batch: BatchLike,
    statistics: StatisticsLike,
    config: ModelConfig,
    subject_voxels: list[int] | None = None,
) -> dict[str, Tensor]:
    """The terms of one batch on its own. `subject_voxels` may be left out where there is one subject."""
    return Losses(statistics, subject_voxels or [batch.bold.shape[1]], config).terms(outputs, batch)


def target_frame(video: Tensor, video_mask: Tensor) -> Tensor:
    """The picture to rebuild: the mean of the TR's own frames, raw, without any lag.

    `video` (N, F, H, W, 3) scaled to [0, 1] and `video_mask` (N, F) → (N, H·W·3).
    """
    weights = video_mask.to(video.dtype)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1.0)
    return torch.bmm(weights[:, None], video.flatten(2)).squeeze(1)


def token_hits(outputs: Mapping[str, Tensor], batch: BatchLike) -> Tensor:
    """How many of the counted audio codes are predicted exactly; compare with the unigram's accuracy."""
    mask = (batch.audio_mask & _row_masks(batch)[1][:, None])[:, None, :]
    predicted = outputs["audio_recon"]
    rows: Tensor | slice = batch.target_mask if len(predicted) != len(batch.audio) else slice(None)
    return ((predicted == batch.audio[rows]) & mask[rows]).sum()


def _row_masks(batch: BatchLike) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (N,) whose video, audio and text count: targets that have any."""
    target = batch.target_mask
    return target & batch.video_mask.any(dim=1), target & batch.audio_mask.any(dim=1), target & batch.text_mask


def _squared(predicted: Tensor, wanted: Tensor, rows: Tensor) -> Tensor:
    return torch.where(rows, (predicted.float() - wanted).square().sum(dim=1), 0.0).sum()


def _audio(outputs: Mapping[str, Tensor], codes: Tensor, mask: Tensor) -> Tensor:
    """Sum over codes (n, Q, A) of cross-entropy in nats, or of squared errors. `mask` (n, A)."""
    logits = outputs.get("audio_logits")
    if logits is None:
        error = (outputs["audio_recon"].float() - codes).square().sum(dim=1)
        return torch.where(mask, error, 0.0).sum()
    # Laid out codebook by codebook, as the head makes them, so that nothing is copied.
    wanted = codes.masked_fill(~mask[:, None], _IGNORED).transpose(0, 1).flatten()
    by_codebook = logits.transpose(0, 1).flatten(0, 2)
    return F.cross_entropy(by_codebook.float(), wanted, ignore_index=_IGNORED, reduction="sum")

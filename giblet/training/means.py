"""Where a fresh run starts: predicting the training set's mean.

The output layers' biases begin at the mean frame, the mean text features and the frequency of each audio code, and
their weights small. Every loss term then begins near 1, the best that a constant can do, instead of hundreds: at first
nearly all of the gradient would otherwise teach one modality's offset, while clipping holds the others back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from giblet.data.batches import BatchBuilder
from giblet.models import MultimodalAutoencoder
from giblet.models.losses import scaled_video, target_frame

WEIGHT_SCALE = 0.1
"""Of the output layers' weights, relative to what the network starts with."""
CODES = 1024
_ADDED_COUNT = 0.5
"""Added to the count of every code, so that one never heard is improbable rather than impossible."""


@dataclass(frozen=True, slots=True)
class Means:
    """Of training TRs. `frame` (H·W·3,) in [0, 1], `text` (D,), `code_counts` (Q, 1024), `codes` (Q, A)."""

    frame: Tensor
    text: Tensor
    code_counts: Tensor
    codes: Tensor


def training_means(samples: BatchBuilder) -> Means:
    """Read every training sample once, one at a time."""
    frames = text = codes = code_counts = None
    seen = {"frame": 0.0, "text": 0.0}
    heard: Tensor | None = None
    for index in range(len(samples)):
        batch = samples.build([index])
        shown = batch.target_mask & batch.video_mask.any(dim=1)
        read = batch.target_mask & batch.text_mask
        frame = target_frame(scaled_video(batch.video[shown]), batch.video_mask[shown]).double().sum(dim=0)
        words = batch.text[read].double().sum(dim=0)
        counted = (batch.audio_mask & batch.target_mask[:, None])[:, None, :].expand_as(batch.audio)
        summed = torch.where(counted, batch.audio, 0).double().sum(dim=0)
        counts = torch.stack(
            [torch.bincount(batch.audio[:, book][counted[:, book]], minlength=CODES) for book in range(len(summed))]
        ).double()
        frames, text = _plus(frames, frame), _plus(text, words)
        codes, code_counts, heard = _plus(codes, summed), _plus(code_counts, counts), _plus(heard, counted.sum(dim=0))
        seen["frame"] += float(shown.sum())
        seen["text"] += float(read.sum())
    assert frames is not None
    assert text is not None
    assert codes is not None
    assert code_counts is not None
    assert heard is not None
    return Means(
        frame=(frames / max(seen["frame"], 1.0)).float(),
        text=(text / max(seen["text"], 1.0)).float(),
        code_counts=code_counts.float(),
        codes=(codes / heard.clamp(min=1)).float(),
    )


@torch.no_grad()
def start_at_means(model: MultimodalAutoencoder, means: Means, text_variance: float) -> None:
    """Set the output layers of a freshly initialised model, sharded or not. The same on every rank.

    `text_variance` is the dataset's: sentence embeddings have unit length, so their features are far smaller than 1.
    """
    parameters = dict(model.named_parameters())
    last = max(name for name in parameters if name.startswith("encoder.bottleneck_to_voxels.") and "bias" in name)
    _fill(parameters[last], torch.zeros(parameters[last].shape))
    _fill(parameters["decoder.layer13_video.0.bias"], torch.logit(means.frame, eps=1e-3))
    _fill(parameters["decoder.layer13_text.bias"], means.text)
    weights = [last.replace("bias", "weight"), "decoder.layer13_video.0.weight", "decoder.layer13_text.weight"]
    if "decoder.audio_codebook.bias" in parameters:
        shares = means.code_counts + _ADDED_COUNT
        logits = (shares / shares.sum(dim=1, keepdim=True)).log()
        _fill(parameters["decoder.audio_codebook.bias"], logits[:, None, :])
        weights.append("decoder.audio_codebook.weight")
    else:
        _fill(parameters["decoder.layer13_audio.bias"], torch.logit(means.codes.flatten() / (CODES - 1), eps=1e-3))
        weights.append("decoder.layer13_audio.weight")
    for name in weights:
        parameters[name].mul_(WEIGHT_SCALE)
    parameters["decoder.layer13_text.weight"].mul_(text_variance**0.5)


def _plus(total: Tensor | None, part: Tensor) -> Tensor:
    return part if total is None else total + part


def _fill(parameter: Tensor, value: Tensor) -> None:
    value = value.to(parameter.device, parameter.dtype).reshape(parameter.shape)
    if isinstance(parameter, DTensor):
        value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
    parameter.copy_(value)

"""The held-out score of a model: the loss of the whole validation split, in one process.

The same quantity that training records when it validates, computed by other code from the same loss terms: each term's
sum of errors over the split, divided by the number of elements that count, as a ratio to the training set's spread.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from giblet.config.schema import GibletConfig
from giblet.data.batches import BatchBuilder
from giblet.data.prepared import PreparedDataset
from giblet.evaluate.predict import context_trs
from giblet.models.autoencoder import MultimodalAutoencoder
from giblet.models.losses import TERMS, Losses, scaled_video, token_hits


class NonFiniteOutputError(ArithmeticError):
    """An output of the model is NaN or infinite; the message names it."""


@torch.no_grad()
def heldout_score(
    model: MultimodalAutoencoder,
    dataset: PreparedDataset,
    config: GibletConfig,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """`loss`, its terms (`bold`, `video`, `audio`, `text`, as ratios) and `token_accuracy` over the validation split.

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
    size = config.training.micro_batch_samples
    for first in range(0, len(segments), size):
        batch = builder.build(range(first, min(first + size, len(segments)))).to(device)
        outputs = _outputs(model, batch.video, batch.audio, batch.text, batch.trs, batch.row_mask, config)
        for name, term in losses.terms(outputs, batch, one).items():
            sums[name] += float(term)
        counts += losses.counts(batch).cpu()
        hits += float(token_hits(outputs, batch))
    per_term = {name: sums[name] / max(float(count), 1.0) for name, count in zip(TERMS, counts, strict=True)}
    loss = sum(losses.weights[name] * per_term[name] for name in TERMS)
    return {"loss": loss, **per_term, "token_accuracy": hits / max(float(counts[TERMS.index("audio")]), 1.0)}


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

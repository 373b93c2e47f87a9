"""From a configuration, and a prepared dataset's dimensions, to a model."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor, nn

from giblet.config import GibletConfig
from giblet.errors import ConfigError
from giblet.models.autoencoder import MultimodalAutoencoder
from giblet.models.dimensions import Dimensions, resolve_dimensions


def build_model(
    config: GibletConfig, dimensions: Dimensions | None = None, *, hrf_kernel: Tensor | None = None
) -> MultimodalAutoencoder:
    """The model of a configuration, on the current default device (`with torch.device("meta")` for shapes alone).

    `hrf_kernel` (K,): the canonical kernel at the dataset's TR. Without it a model of `data.hrf.kind` `convolve` works
    on single rows only, and one of `fir` cannot be built (`ConfigError`).
    """
    model = config.model
    if config.data.hrf.kind == "fir" and hrf_kernel is None:
        raise ConfigError("data.hrf.kind is fir, whose kernels depend on the TR", remedy="name a prepared dataset")
    return MultimodalAutoencoder(
        **asdict(resolve_dimensions(config, dimensions)),
        video_hidden=model.video_hidden,
        audio_hidden=model.audio_hidden,
        text_hidden=model.text_hidden,
        encoder_hidden=model.encoder_hidden,
        bottleneck=model.bottleneck,
        voxel_hidden=model.voxel_hidden,
        decoder_hidden=model.decoder_hidden,
        video_decoder_hidden=model.video_decoder_hidden,
        audio_decoder_hidden=model.audio_decoder_hidden,
        text_decoder_hidden=model.text_decoder_hidden,
        dropout_scale=model.dropout_scale,
        norm=model.norm,
        audio_objective=model.audio_objective,
        hrf=config.data.hrf.kind,
        hrf_kernel=hrf_kernel,
    )


def meta_model(
    config: GibletConfig, dimensions: Dimensions | None = None, *, hrf_kernel: Tensor | None = None
) -> nn.Module:
    """The configuration's model on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return build_model(config, dimensions, hrf_kernel=hrf_kernel)

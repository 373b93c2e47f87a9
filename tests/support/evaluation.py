"""A tiny model on a tiny prepared dataset, for tests of evaluation."""

from __future__ import annotations

from pathlib import Path

import torch

from giblet.config import GibletConfig
from giblet.config.schema import ModelConfig
from giblet.data.hrf import canonical_kernel
from giblet.data.prepared import PreparedDataset
from giblet.models import Dimensions, MultimodalAutoencoder, build_model
from tests.support.prepared import make_prepared

TINY = ModelConfig(
    video_hidden=(8, 8, 8), audio_hidden=(8, 8), text_hidden=(8, 8), encoder_hidden=(8, 8), bottleneck=8,
    voxel_hidden=8, decoder_hidden=(8, 8, 8, 8), video_decoder_hidden=(8, 8), audio_decoder_hidden=(8, 8),
    text_decoder_hidden=(8, 8),
)  # fmt: skip


def tiny(folder: Path, **settings) -> tuple[GibletConfig, PreparedDataset, MultimodalAutoencoder]:
    """A configuration, its dataset in `folder`, and a model with random weights."""
    config = GibletConfig(model=TINY)
    dataset = make_prepared(folder, **{"trs": (70, 70, 80), "subjects": (6, 4), **settings})
    torch.manual_seed(0)
    kernel = torch.tensor(canonical_kernel(dataset.manifest.tr_seconds), dtype=torch.float32)
    return config, dataset, build_model(config, Dimensions.of(dataset.manifest.dimensions), hrf_kernel=kernel)

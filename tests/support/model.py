"""A small network's widths, and inputs for it."""

from __future__ import annotations

import torch

DIMENSIONS = {
    "video_frames": 2, "video_height": 3, "video_width": 4, "audio_codebooks": 2, "audio_frames": 5,
    "text_dimension": 6, "voxels": 9,
}  # fmt: skip
WIDTHS = {
    "video_hidden": (16, 12, 8), "audio_hidden": (12, 8), "text_hidden": (12, 8), "encoder_hidden": (24, 20),
    "bottleneck": 10, "voxel_hidden": 16, "decoder_hidden": (18, 16, 14, 12), "video_decoder_hidden": (12, 14),
    "audio_decoder_hidden": (12, 14), "text_decoder_hidden": (12, 10),
}  # fmt: skip
SMALL = {**DIMENSIONS, **WIDTHS}
ROWS = 12


def inputs(rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Video in [0, 1], audio codes, text; the same each time."""
    generator = torch.Generator().manual_seed(1)
    video = torch.rand(rows, 2, 3, 4, 3, generator=generator)
    audio = torch.randint(0, 1024, (rows, 2, 5), generator=generator)
    return video, audio, torch.randn(rows, 6, generator=generator)

"""The multimodal autoencoder: movie → bottleneck → (BOLD, movie).

At its default widths this is the 3.4-billion-parameter reference network: 162 state-dict entries,
3,405,440,249 elements. Every width is an argument; `giblet.models.build_model` takes them from a configuration.

    model = MultimodalAutoencoder(video_frames=2, video_height=18, video_width=32, voxels=500, …)
    outputs = model(video, audio, text)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from giblet.models.decoders import AudioObjective, Decoder
from giblet.models.encoders import Encoder, Grid, HrfKind
from giblet.models.norm import NormKind


class MultimodalAutoencoder(nn.Module):
    """Squeezes a TR of movie through a bottleneck that predicts the scan and rebuilds the movie.

    `hrf` and `hrf_kernel` ((K,) taps, one a TR) say where the haemodynamic lag comes from, see `VoxelHead`; it lives
    in the BOLD head only, so that the decoder rebuilds what was on the screen.
    """

    def __init__(
        self,
        *,
        video_frames: int = 10,
        video_height: int = 90,
        video_width: int = 160,
        audio_codebooks: int = 8,
        audio_frames: int = 112,
        text_dimension: int = 3072,
        voxels: int = 77347,
        video_hidden: Sequence[int] = (4096, 2048, 1024),
        audio_hidden: Sequence[int] = (512, 256),
        text_hidden: Sequence[int] = (512, 256),
        encoder_hidden: Sequence[int] = (4096, 8000),
        bottleneck: int = 2048,
        voxel_hidden: int = 16384,
        decoder_hidden: Sequence[int] = (8000, 4096, 2048, 1536),
        video_decoder_hidden: Sequence[int] = (2048, 4096),
        audio_decoder_hidden: Sequence[int] = (2048, 2048),
        text_decoder_hidden: Sequence[int] = (1024, 1024),
        dropout_scale: float = 1.0,
        norm: NormKind = "batch",
        audio_objective: AudioObjective = "regress",
        hrf: HrfKind = "none",
        hrf_kernel: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.video_shape = (video_frames, video_height, video_width, 3)
        self.audio_shape = (audio_codebooks, audio_frames)
        self.text_dimension = text_dimension
        self.voxels = voxels
        frame = video_height * video_width * 3
        self.encoder = Encoder(
            inputs=(video_frames * frame, audio_codebooks * audio_frames, text_dimension),
            video_hidden=video_hidden,
            audio_hidden=audio_hidden,
            text_hidden=text_hidden,
            joint_hidden=encoder_hidden,
            bottleneck=bottleneck,
            voxel_hidden=voxel_hidden,
            voxels=voxels,
            dropout_scale=dropout_scale,
            norm=norm,
            hrf=hrf,
            hrf_kernel=hrf_kernel,
        )
        self.decoder = Decoder(
            bottleneck=bottleneck,
            joint_hidden=decoder_hidden,
            video_hidden=video_decoder_hidden,
            audio_hidden=audio_decoder_hidden,
            text_hidden=text_decoder_hidden,
            outputs=(frame, self.audio_shape, text_dimension),
            dropout_scale=dropout_scale,
            norm=norm,
            audio_objective=audio_objective,
        )

    def forward(
        self,
        video: Tensor,
        audio: Tensor,
        text: Tensor,
        *,
        trs: int = 1,
        row_mask: Tensor | None = None,
        decode_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Encode and decode N rows.

        `video` (N, F, H, W, 3) or flat, in [0, 1]; `audio` (N, Q, A) codes or flat, unscaled; `text` (N, D). With
        `trs` > 1 rows are segment-major and the haemodynamic convolution runs within each segment. Rows where
        `row_mask` (N,) is False take no part, in no statistic either, and come back as zeros. With `decode_mask` (N,)
        only those rows are decoded, and what the decoder returns has only them, in their order: context, which is there
        for its past, need not be rebuilt. Masks may stay on the host.

        Returns `bottleneck` (N, bottleneck), `predicted_fmri` (N, V), `video_recon` (N, H·W·3) in [0, 1],
        `audio_recon` (N, Q, A) codes, `text_recon` (N, D), and `audio_logits` (N, Q, A, 1024) if codes are classified.
        Raises `ValueError` if N is no multiple of `trs`.
        """
        count = video.shape[0]
        if count % trs:
            raise ValueError(f"{count} rows are no whole number of segments of {trs} TRs")
        if row_mask is not None and bool(row_mask.all()):
            row_mask = None
        real = _indices(row_mask, video.device)
        grid = Grid(count, trs, real)
        flat = [values.flatten(1) if real is None else values.flatten(1)[real] for values in (video, audio, text)]
        bottleneck, bold = self.encoder(flat[0], flat[1].to(flat[0].dtype), flat[2], grid)
        outputs = {"bottleneck": grid.spread(bottleneck), "predicted_fmri": bold}
        if decode_mask is None:
            return outputs | {name: grid.spread(values) for name, values in self.decoder(bottleneck).items()}
        wanted = _indices(decode_mask if row_mask is None else decode_mask[row_mask], video.device)
        decoded: dict[str, Tensor] = self.decoder(bottleneck[wanted])
        return outputs | decoded


def _indices(mask: Tensor | None, device: torch.device) -> Tensor | None:
    """Where `mask` (N,) is True, on `device`; None, for all, if there is no mask."""
    return None if mask is None else mask.nonzero().squeeze(1).to(device, non_blocking=True)

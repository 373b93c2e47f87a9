"""From the movie to the bottleneck, and from the bottleneck to the brain.

Letters: N rows (TRs of a batch), B segments, T TRs of a segment, V voxels, H hidden width, K kernel taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from giblet.models.norm import NormKind, block, make_linear, make_norm

HrfKind = Literal["fir", "convolve", "none"]


class ModalityEncoder(nn.Module):
    """Blocks `fc1, bn1, fc2, bn2, …`: Linear → norm → ReLU → dropout each."""

    def __init__(self, widths: Sequence[int], dropouts: Sequence[float], norm: NormKind) -> None:
        super().__init__()
        self.dropouts = tuple(dropouts)
        for index, (inputs, outputs) in enumerate(pairwise(widths), 1):
            self.add_module(f"fc{index}", make_linear(inputs, outputs, norm))
            self.add_module(f"bn{index}", make_norm(outputs, norm))

    def forward(self, features: Tensor) -> Tensor:
        """(N, widths[0]) → (N, widths[-1])."""
        for index, dropout in enumerate(self.dropouts, 1):
            features = self.get_submodule(f"bn{index}")(self.get_submodule(f"fc{index}")(features))
            features = F.dropout(F.relu(features, inplace=True), dropout, self.training)
        return features


@dataclass(frozen=True, slots=True)
class Grid:
    """How the rows that are computed lie on the grid of segments x TRs."""

    rows: int
    """N: rows of the batch, segment-major."""
    trs: int
    """T: rows of a segment; 1 means that rows are independent."""
    real: Tensor | None
    """Indices of the rows that are computed, or None for all of them."""

    def spread(self, values: Tensor) -> Tensor:
        """(n, …) computed rows → (N, …), zero elsewhere."""
        if self.real is None:
            return values
        return values.new_zeros(self.rows, *values.shape[1:]).index_copy(0, self.real, values)


class VoxelHead(nn.Sequential):
    """The BOLD head: a block, one Linear to the voxels of all subjects, and the haemodynamic lag.

    Each subject's voxels are rows of that Linear of their own, so that every subject has its own head.

    `convolve` applies one fixed causal kernel along time. Convolution and Linear commute, so it runs on whichever of
    hidden and output is narrower; the bias is a level and stays outside. `fir` learns a kernel per voxel. What lies
    before a segment's first real row counts as zero. A single row has no past: with `trs` 1 there is no convolution.
    """

    hrf_taps: Tensor | None

    def __init__(
        self,
        widths: tuple[int, int, int],
        dropout: float,
        norm: NormKind,
        hrf: HrfKind,
        hrf_kernel: Tensor | None,
    ) -> None:
        bottleneck, hidden, voxels = widths
        super().__init__(*block(bottleneck, hidden, dropout, norm), nn.Linear(hidden, voxels))
        self.hrf = hrf
        self.canonical_taps = () if hrf_kernel is None or hrf == "none" else tuple(map(float, hrf_kernel))
        taps = torch.tensor(self.canonical_taps) if self.canonical_taps else None
        self.register_buffer("hrf_taps", taps, persistent=False)
        if hrf == "fir":
            if taps is None:
                raise ValueError("hrf 'fir' needs hrf_kernel: (K,) taps at the TR, which its kernels start from")
            self.hrf_kernel = nn.Parameter(taps.repeat(voxels, 1))

    def forward(self, bottleneck: Tensor, grid: Grid) -> Tensor:  # type: ignore[override]
        """(n, bottleneck) computed rows → (N, V) predicted BOLD."""
        *layers, last = self.children()
        hidden = bottleneck
        for layer in layers:
            hidden = layer(hidden)
        assert isinstance(last, nn.Linear)
        if grid.trs == 1 or self.hrf == "none":
            return grid.spread(last(hidden))
        if self.hrf == "convolve" and last.in_features <= last.out_features:
            return F.linear(self._convolve(grid.spread(hidden), grid.trs), last.weight, last.bias)
        voxels = grid.spread(F.linear(hidden, last.weight))
        filtered = self._convolve(voxels, grid.trs) if self.hrf == "convolve" else self._filter(voxels, grid.trs)
        return filtered + last.bias

    def _convolve(self, values: Tensor, trs: int) -> Tensor:
        if self.hrf_taps is None:
            raise ValueError("this model was built without hrf_kernel, which rows of more than one TR need")
        matrix = causal_matrix(self.hrf_taps, trs).to(values.dtype)
        return torch.matmul(matrix, values.view(-1, trs, values.shape[1])).view_as(values)

    def _filter(self, values: Tensor, trs: int) -> Tensor:
        """Depthwise causal convolution: out[t] = Σ_k kernel[v, k] · in[t - k]."""
        voxels, taps = self.hrf_kernel.shape
        series = values.view(-1, trs, voxels).transpose(1, 2)
        kernel = self.hrf_kernel.flip(1).unsqueeze(1)
        filtered = F.conv1d(F.pad(series, (taps - 1, 0)), kernel.to(series.dtype), groups=voxels)
        return filtered.transpose(1, 2).reshape_as(values)


def causal_matrix(taps: Tensor, trs: int) -> Tensor:
    """The (T, T) matrix M with M[t, s] = taps[t - s]: causal convolution of T TRs, from a past of zeros."""
    lag = torch.arange(trs, device=taps.device)
    lag = lag[:, None] - lag[None, :]
    known = (lag >= 0) & (lag < taps.shape[0])
    return torch.where(known, taps[lag.clamp(0, taps.shape[0] - 1)], torch.zeros((), device=taps.device))


class Encoder(nn.Module):
    """Movie → bottleneck, and bottleneck → BOLD."""

    def __init__(
        self,
        *,
        inputs: tuple[int, int, int],
        video_hidden: Sequence[int],
        audio_hidden: Sequence[int],
        text_hidden: Sequence[int],
        joint_hidden: Sequence[int],
        bottleneck: int,
        voxel_hidden: int,
        voxels: int,
        dropout_scale: float,
        norm: NormKind,
        hrf: HrfKind,
        hrf_kernel: Tensor | None,
    ) -> None:
        super().__init__()
        low, high = 0.2 * dropout_scale, 0.3 * dropout_scale
        video, audio, text = inputs
        self.video_encoder = ModalityEncoder((video, *video_hidden), (high, high, low), norm)
        self.audio_encoder = ModalityEncoder((audio, *audio_hidden), (high, low), norm)
        self.text_encoder = ModalityEncoder((text, *text_hidden), (low, low), norm)
        joined = video_hidden[-1] + audio_hidden[-1] + text_hidden[-1]
        self.feature_conv = nn.Sequential(*block(joined, joined, low, norm))
        self.layer5 = nn.Sequential(*block(joined, joint_hidden[0], high, norm))
        self.layer6 = nn.Sequential(*block(joint_hidden[0], joint_hidden[1], high, norm))
        self.layer7_bottleneck = nn.Sequential(
            make_linear(joint_hidden[1], bottleneck, norm), make_norm(bottleneck, norm, shift_removed=True)
        )
        self.bottleneck_to_voxels = VoxelHead((bottleneck, voxel_hidden, voxels), high, norm, hrf, hrf_kernel)

    def forward(self, video: Tensor, audio: Tensor, text: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Flat features of the computed rows → bottleneck (n, bottleneck) and predicted BOLD (N, V)."""
        features = torch.cat((self.video_encoder(video), self.audio_encoder(audio), self.text_encoder(text)), dim=1)
        bottleneck = self.layer7_bottleneck(self.layer6(self.layer5(self.feature_conv(features))))
        return bottleneck, self.bottleneck_to_voxels(bottleneck, grid)

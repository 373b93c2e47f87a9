"""From the bottleneck back to the movie: one frame, the audio codes and the text embedding of a TR."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from giblet.models.dimensions import CODE_FEATURES, CODES
from giblet.models.norm import NormKind, block

AudioObjective = Literal["classify", "regress"]


def _fill_normal(weight: Tensor, std: float) -> None:
    if not weight.is_meta:  # there it would only import the compiler, which takes seconds
        nn.init.normal_(weight, std=std)


class AudioCodebook(nn.Module):
    """Features of each code position → logits over the codes of its codebook, shared along time."""

    def __init__(self, codebooks: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(codebooks, CODE_FEATURES, CODES))
        self.bias = nn.Parameter(torch.zeros(codebooks, 1, CODES))
        _fill_normal(self.weight, CODE_FEATURES**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """(n, Q, A, CODE_FEATURES) → logits (n, Q, A, CODES), laid out codebook by codebook: one product each."""
        n, codebooks, frames, _ = features.shape
        by_codebook = features.transpose(0, 1).reshape(codebooks, n * frames, CODE_FEATURES)
        logits = torch.baddbmm(self.bias, by_codebook, self.weight)
        return logits.view(codebooks, n, frames, CODES).transpose(0, 1)


class Decoder(nn.Module):
    """Bottleneck → one flat frame, audio codes, text features."""

    def __init__(
        self,
        *,
        bottleneck: int,
        joint_hidden: Sequence[int],
        video_hidden: Sequence[int],
        audio_hidden: Sequence[int],
        text_hidden: Sequence[int],
        outputs: tuple[int, tuple[int, int], int],
        dropout_scale: float,
        norm: NormKind,
        audio_objective: AudioObjective,
    ) -> None:
        super().__init__()
        dropout = 0.3 * dropout_scale
        video, self.audio_shape, text = outputs
        widths = (bottleneck, *joint_hidden)
        self.layer8, self.layer9, self.layer10, self.layer11 = (
            nn.Sequential(*block(widths[i], widths[i + 1], dropout, norm)) for i in range(4)
        )

        def branch(hidden: Sequence[int]) -> nn.Sequential:
            first = block(widths[-1], hidden[0], dropout, norm)
            return nn.Sequential(*first, *block(hidden[0], hidden[1], dropout, norm))

        self.layer12_video = branch(video_hidden)
        self.layer12_audio = branch(audio_hidden)
        self.layer12_text = branch(text_hidden)
        self.layer13_video = nn.Sequential(nn.Linear(video_hidden[1], video), nn.Sigmoid())
        positions = self.audio_shape[0] * self.audio_shape[1]
        classify = audio_objective == "classify"
        self.layer13_audio = nn.Linear(audio_hidden[1], positions * (CODE_FEATURES if classify else 1))
        self.layer13_text = nn.Linear(text_hidden[1], text)
        self.audio_codebook = AudioCodebook(self.audio_shape[0]) if classify else None
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _fill_normal(module.weight, math.sqrt(2.0 / module.out_features))  # Kaiming normal, fan_out
                nn.init.zeros_(module.bias)

    def forward(self, bottleneck: Tensor) -> dict[str, Tensor]:
        """(n, bottleneck) → `video_recon` (n, H·W·3), `audio_recon` (n, Q, A), `text_recon` (n, D), perhaps logits."""
        joint = self.layer11(self.layer10(self.layer9(self.layer8(bottleneck))))
        return {
            "video_recon": self.layer13_video(self.layer12_video(joint)),
            **self._audio(self.layer13_audio(self.layer12_audio(joint))),
            "text_recon": self.layer13_text(self.layer12_text(joint)),
        }

    def _audio(self, features: Tensor) -> dict[str, Tensor]:
        if self.audio_codebook is not None:
            logits = self.audio_codebook(features.view(-1, *self.audio_shape, CODE_FEATURES))
            return {"audio_recon": logits.detach().argmax(dim=-1), "audio_logits": logits}
        codes = torch.sigmoid(features.view(-1, *self.audio_shape).float()) * (CODES - 1)
        return {"audio_recon": codes if self.training else codes.round().clamp(0, CODES - 1)}

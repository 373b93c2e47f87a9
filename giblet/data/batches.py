"""Segments of a prepared dataset as one batch of tensors.

Rows are segment-major, each segment with its context first: N = B x (context_trs + segment_trs). Rows before a run's
start, after a block's end and after a run's end are zero and masked. Context rows carry the stimulus and no BOLD.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from giblet.data.prepared import PreparedDataset, Presentation, Segment

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Batch:
    """N rows; see docs/architecture.md for what each tensor means.

    `video` uint8 (N, F, H, W, 3), `video_mask` (N, F), `audio` int64 (N, Q, A), `audio_mask` (N, A), `text` float32
    (N, D), `text_mask` (N,), `bold` float32 (N, V), `bold_mask` (N, S), `row_mask` (N,), `target_mask` (N,). Masks are
    bool. `trs` is the number of rows of a segment.
    """

    video: torch.Tensor
    video_mask: torch.Tensor
    audio: torch.Tensor
    audio_mask: torch.Tensor
    text: torch.Tensor
    text_mask: torch.Tensor
    bold: torch.Tensor
    bold_mask: torch.Tensor
    row_mask: torch.Tensor
    target_mask: torch.Tensor
    trs: int

    @property
    def rows(self) -> int:
        """N."""
        return int(self.row_mask.shape[0])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch on a device."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=non_blocking)
            for field in fields(self)
            if field.name != "trs"
        }
        return Batch(**moved, trs=self.trs)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which copies to a GPU need not be waited for."""
        pinned = {field.name: getattr(self, field.name).pin_memory() for field in fields(self) if field.name != "trs"}
        return Batch(**pinned, trs=self.trs)


class BatchBuilder:
    """Builds batches of one list of segments. Safe to use from several threads.

    `video_frames` and `audio_frames` are how many a TR the network sees: None for all that the dataset has; fewer
    leave the last out, more repeat the last one, masked.
    """

    def __init__(
        self,
        dataset: PreparedDataset,
        segments: Sequence[Segment],
        *,
        segment_trs: int,
        context_trs: int = 0,
        video_frames: int | None = None,
        audio_frames: int | None = None,
    ) -> None:
        self.dataset = dataset
        self.segments = list(segments)
        self.segment_trs = segment_trs
        self.context_trs = context_trs
        self.trs = context_trs + segment_trs
        self._dimensions = dataset.manifest.dimensions
        self._video_frames = video_frames or self._dimensions.video_frames
        self._audio_frames = audio_frames or self._dimensions.audio_frames
        self._subjects = [
            (column, subject.id, slice(subject.first_voxel, subject.first_voxel + subject.voxels))
            for column, subject in enumerate(dataset.manifest.subjects)
        ]

    def __len__(self) -> int:
        return len(self.segments)

    def build(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Batch:
        """The batch of these samples, in this order."""
        arrays = self._empty(len(indices) * self.trs)
        for position, index in enumerate(indices):
            self._fill(arrays, position * self.trs, self.segments[int(index)])
        return Batch(**{name: torch.from_numpy(array) for name, array in arrays.items()}, trs=self.trs)

    def _empty(self, rows: int) -> dict[str, Array]:
        d = self._dimensions
        return {
            "video": np.zeros((rows, self._video_frames, d.height, d.width, 3), np.uint8),
            "video_mask": np.zeros((rows, self._video_frames), np.bool_),
            "audio": np.zeros((rows, d.audio_codebooks, self._audio_frames), np.int64),
            "audio_mask": np.zeros((rows, self._audio_frames), np.bool_),
            "text": np.zeros((rows, d.text_dimension), np.float32),
            "text_mask": np.zeros(rows, np.bool_),
            "bold": np.zeros((rows, d.voxels), np.float32),
            "bold_mask": np.zeros((rows, len(self._subjects)), np.bool_),
            "row_mask": np.zeros(rows, np.bool_),
            "target_mask": np.zeros(rows, np.bool_),
        }

    def _fill(self, arrays: dict[str, Array], first_row: int, segment: Segment) -> None:
        source = self.dataset.presentations[segment.presentation]
        start = max(segment.start - self.context_trs, 0)
        stop = min(segment.stop, segment.start + self.segment_trs, source.trs)
        target = first_row + self.context_trs
        rows = slice(target - (segment.start - start), target + (stop - segment.start))
        targets = slice(target, rows.stop)
        _fill_stimulus(arrays, rows, source, slice(start, stop))
        arrays["row_mask"][rows] = True
        arrays["target_mask"][targets] = True
        for column, subject, voxels in self._subjects:
            if subject in source.bold:
                arrays["bold"][targets, voxels] = source.bold[subject][segment.start : stop]
                arrays["bold_mask"][targets, column] = source.bold_mask[subject][segment.start : stop]


def _fill_stimulus(arrays: dict[str, Array], rows: slice, source: Presentation, trs: slice) -> None:
    _copy_frames(arrays["video"][rows], source.video[trs], axis=1)
    _copy_frames(arrays["audio"][rows], source.audio[trs], axis=2)
    for name, mask in (("video_mask", source.video_mask), ("audio_mask", source.audio_mask)):
        seen = min(arrays[name].shape[1], mask.shape[1])
        arrays[name][rows, :seen] = mask[trs, :seen]
    arrays["text"][rows] = source.text[trs]
    arrays["text_mask"][rows] = source.text_mask[trs]


def _copy_frames(target: Array, source: Array, axis: int) -> None:
    """Copy along the frames' axis: cut what is too long; repeat the last frame where it is too short."""
    target, source = np.moveaxis(target, axis, 1), np.moveaxis(source, axis, 1)
    seen = min(target.shape[1], source.shape[1])
    target[:, :seen] = source[:, :seen]
    if target.shape[1] > seen:
        target[:, seen:] = source[:, seen - 1 : seen]

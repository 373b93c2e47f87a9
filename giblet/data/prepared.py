"""A prepared dataset as training reads it: memory-mapped arrays and the manifest that describes them.

    dataset = PreparedDataset.open("work/datasets/3f…")
    for segment in dataset.segments("train", segment_trs=16, context_trs=15): ...

Nothing is loaded until it is sliced. Shapes: T TRs, F frames, HxW pixels, Q codebooks, A codec frames, D text
features, V_s voxels of a subject.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from giblet.data.manifest import STIMULUS_ARRAYS, ArrayFile, Manifest, PresentationInfo, Split
from giblet.errors import DataError

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Segment:
    """Target TRs `[start, stop)` of a presentation: one sample."""

    presentation: int
    start: int
    stop: int


@dataclass(frozen=True)
class Presentation:
    """One showing of stimuli on one clock, with the BOLD of everybody who saw it. Arrays are read-only memory maps.

    `video` uint8 (T, F, H, W, 3), `video_mask` bool (T, F), `audio` int16 (T, Q, A), `audio_mask` bool (T, A), `text`
    float16 (T, D), `text_mask` and `stimulus_mask` bool (T,); `bold[subject]` float32 (T, V_s), `bold_mask[subject]`
    bool (T,).
    """

    info: PresentationInfo
    video: Array
    video_mask: Array
    audio: Array
    audio_mask: Array
    text: Array
    text_mask: Array
    stimulus_mask: Array
    bold: dict[str, Array]
    bold_mask: dict[str, Array]

    @property
    def id(self) -> str:
        """Unique in the dataset."""
        return self.info.id

    @property
    def run(self) -> str:
        """The BIDS run label, or the presentation's id where there is none."""
        return self.info.run

    @property
    def trs(self) -> int:
        """T."""
        return self.info.trs


@dataclass(frozen=True)
class PreparedDataset:
    """An opened dataset folder."""

    path: Path
    manifest: Manifest
    presentations: tuple[Presentation, ...]

    @classmethod
    def open(cls, path: str | Path) -> PreparedDataset:
        """Open a folder that `giblet prepare` wrote.

        Raises `DataError` where the manifest or an array is missing, or an array is not what the manifest says.
        Contents are not hashed here; `check_hashes` does that.
        """
        folder = Path(path)
        manifest = Manifest.read(folder)
        return cls(folder, manifest, tuple(_open_presentation(folder, p) for p in manifest.presentations))

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subject ids, in the order of their columns in the V axis."""
        return tuple(subject.id for subject in self.manifest.subjects)

    def segments(self, split: Split, segment_trs: int, context_trs: int = 0) -> list[Segment]:
        """The samples of a split: its blocks cut into `segment_trs` TRs, the last of a block possibly shorter.

        `context_trs` TRs stand before each segment's targets in a batch; they may lie in the gap before the block and
        cut no targets off, so the list does not depend on them.
        """
        if segment_trs < 1 or context_trs < 0:
            raise ValueError(f"segment_trs {segment_trs} must be at least 1 and context_trs {context_trs} at least 0")
        return [
            Segment(presentation, start, min(start + segment_trs, stop))
            for presentation, first, stop in self.manifest.split.get(split, ())
            for start in range(first, stop, segment_trs)
        ]

    def check_hashes(self) -> None:
        """Read every array and mask and compare with the manifest. Raises `DataError` naming the first that differs."""
        for array in self.manifest.array_files():
            if file_sha256(self.path / array.file) != array.sha256:
                raise DataError(
                    f"{self.path / array.file} is not what the manifest recorded: its SHA-256 differs",
                    remedy="delete the dataset's folder and prepare or fetch it again",
                )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open_presentation(folder: Path, info: PresentationInfo) -> Presentation:
    missing = [name for name in STIMULUS_ARRAYS if name not in info.arrays]
    if missing:
        raise DataError(
            f"presentation {info.id} in {folder} lacks the arrays {', '.join(missing)}",
            remedy="prepare the dataset again with `giblet prepare`",
        )
    stimulus = {name: _open_array(folder, info.arrays[name]) for name in STIMULUS_ARRAYS}
    return Presentation(
        info=info,
        bold={subject: _open_array(folder, files.bold) for subject, files in info.bold.items()},
        bold_mask={subject: _open_array(folder, files.mask) for subject, files in info.bold.items()},
        **stimulus,
    )


def _open_array(folder: Path, entry: ArrayFile) -> Array:
    path = folder / entry.file
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as an array: {error}", remedy="delete the folder and prepare or fetch it again"
        ) from error
    if array.shape != entry.shape or array.dtype != np.dtype(entry.dtype):
        raise DataError(
            f"{path} is {array.dtype} {array.shape}, the manifest says {entry.dtype} {entry.shape}",
            remedy="delete the folder and prepare or fetch it again",
        )
    return array

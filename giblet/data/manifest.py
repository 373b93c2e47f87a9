"""The manifest of a prepared dataset: what `manifest.json` says, as frozen types.

The format (`giblet.dataset/1`) is described in docs/architecture.md. The manifest is written last, so a folder
without one is not a dataset.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from giblet.errors import DataError

FORMAT: Literal["giblet.dataset/1"] = "giblet.dataset/1"
MANIFEST_NAME = "manifest.json"
STIMULUS_ARRAYS = ("video", "video_mask", "audio", "audio_mask", "text", "text_mask", "stimulus_mask")

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ArrayFile(_Part):
    """One `.npy` file of the dataset, relative to its folder."""

    file: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str


class BoldFiles(_Part):
    """A subject's BOLD in a presentation: `bold` float32 (T, V_s), `mask` bool (T,)."""

    bold: ArrayFile
    mask: ArrayFile


class Stimulus(_Part):
    """A film in a presentation, on the run's clock."""

    file: str
    onset_seconds: float
    duration_seconds: float


class PresentationInfo(_Part):
    """One showing of stimuli on one scanner clock."""

    id: str
    run: str
    trs: int
    stimuli: tuple[Stimulus, ...]
    arrays: dict[str, ArrayFile]
    bold: dict[str, BoldFiles]


class Subject(_Part):
    """A subject and its columns `[first_voxel, first_voxel + voxels)` of the V axis."""

    id: str
    voxels: int
    first_voxel: int
    mask: str


class DatasetDimensions(_Part):
    """Sizes of the arrays' axes; `voxels` is the sum over subjects."""

    video_frames: int
    height: int
    width: int
    audio_codebooks: int
    audio_frames: int
    text_dimension: int
    voxels: int


class InputFile(_Part):
    """A file that the dataset was made from."""

    path: str
    bytes: int
    sha256: str


class Provenance(_Part):
    """Where the dataset comes from."""

    inputs: tuple[InputFile, ...]
    versions: dict[str, str]


class Statistics(_Part):
    """Of training TRs only. A variance is the mean squared error of the best constant prediction.

    That is: the variance over training TRs of each pixel of a TR's mean frame, each text feature, each codebook's code
    number and each voxel, averaged over them. Video is scaled to [0, 1]. Entropy and accuracy are those of the best
    constant guess per codebook.
    """

    video_variance: float
    text_variance: float
    bold_variance: float
    audio_code_variance: float
    audio_unigram_entropy_nats: float
    audio_unigram_entropy_nats_by_codebook: tuple[float, ...]
    audio_unigram_accuracy: float


class Manifest(_Part):
    """Everything `manifest.json` holds."""

    format: Literal["giblet.dataset/1"] = FORMAT
    content_hash: str
    created_by: str
    simulated: bool
    notes: tuple[str, ...] = ()
    tr_seconds: float = Field(gt=0)
    settings: dict[str, Any]
    provenance: Provenance
    dimensions: DatasetDimensions
    subjects: tuple[Subject, ...]
    presentations: tuple[PresentationInfo, ...]
    split: dict[Split, tuple[tuple[int, int, int], ...]]
    statistics: Statistics

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read `manifest.json` of a folder. Raises `DataError` if there is none or it is not one."""
        path = folder / MANIFEST_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise DataError(
                f"{folder} is no prepared dataset: it has no {MANIFEST_NAME}",
                remedy="make one with `giblet prepare`, or name the folder that holds the manifest",
            ) from None
        return cls.parse(text, where=str(path))

    @classmethod
    def parse(cls, text: str | bytes, where: str) -> Manifest:
        """Parse a manifest's JSON. Raises `DataError` naming `where` and the first faults."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
            raise DataError(
                f"{where} is no {FORMAT} manifest: {faults}", remedy="prepare the dataset again with `giblet prepare`"
            ) from error

    def to_json(self) -> str:
        """The manifest as it is written: sorted keys, so that equal manifests are equal bytes."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def array_files(self) -> list[ArrayFile]:
        """Every array file of the dataset, once each."""
        files = {}
        for presentation in self.presentations:
            for array in presentation.arrays.values():
                files[array.file] = array
            for bold in presentation.bold.values():
                files[bold.bold.file], files[bold.mask.file] = bold.bold, bold.mask
        return list(files.values())

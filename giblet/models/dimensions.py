"""The widths that a model needs to know beside its configuration. Nothing here needs torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Protocol

from giblet.config import GibletConfig
from giblet.errors import ConfigError

CODES = 1024
"""Entries of an EnCodec codebook (10 bits)."""
CODE_FEATURES = 16
"""Width of a code position's features in the classifying audio head."""


class PreparedDimensions(Protocol):
    """`dimensions` of a prepared dataset's manifest."""

    @property
    def video_frames(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def audio_codebooks(self) -> int: ...
    @property
    def audio_frames(self) -> int: ...
    @property
    def text_dimension(self) -> int: ...
    @property
    def voxels(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Dimensions:
    """What a prepared dataset holds a TR, and its voxels of all subjects together."""

    video_frames: int
    video_height: int
    video_width: int
    audio_codebooks: int
    audio_frames: int
    text_dimension: int
    voxels: int

    @classmethod
    def of(cls, prepared: PreparedDimensions) -> Dimensions:
        """From a prepared dataset's manifest (`manifest.dimensions`)."""
        return cls(
            video_frames=prepared.video_frames,
            video_height=prepared.height,
            video_width=prepared.width,
            audio_codebooks=prepared.audio_codebooks,
            audio_frames=prepared.audio_frames,
            text_dimension=prepared.text_dimension,
            voxels=prepared.voxels,
        )


_MAY_DIFFER = ("video_frames", "audio_frames")
"""A batch leaves surplus frames out, and repeats the last one, masked, where there are too few."""


def resolve_dimensions(config: GibletConfig, dimensions: Dimensions | None = None) -> Dimensions:
    """The widths that the model sees: the configuration's, and where it leaves them open the dataset's.

    Raises `ConfigError`, all faults at once, if a width is known to neither or the two contradict each other.
    """
    faults, widths = [], {}
    available = asdict(dimensions) if dimensions is not None else {}
    for field in fields(Dimensions):
        key, wanted = field.name, getattr(config.model, field.name)
        has = available.get(key)
        if wanted is None and has is None:
            faults.append(f"model.{key} is not set, and no prepared dataset says what it is")
        elif wanted is not None and has is not None and wanted != has and key not in _MAY_DIFFER:
            faults.append(f"model.{key} is {wanted}, but the prepared dataset has {has}; allowed: {has}, or null")
        widths[key] = wanted if wanted is not None else has
    if faults:
        raise ConfigError("; ".join(faults), remedy="set them under config.model, or name a prepared dataset")
    return Dimensions(**{key: int(value) for key, value in widths.items() if value is not None})

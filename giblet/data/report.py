"""The manifest of a dataset whose arrays are done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

import giblet
from giblet.config.schema import DataConfig
from giblet.data.manifest import (
    STIMULUS_ARRAYS,
    ArrayFile,
    BoldFiles,
    DatasetDimensions,
    Manifest,
    PresentationInfo,
    Provenance,
    Statistics,
    Stimulus,
    Subject,
)
from giblet.data.plan import Plan
from giblet.data.provenance import Inputs, versions
from giblet.data.statistics import statistics
from giblet.data.weights import RANDOM_NOTE

Array = npt.NDArray[Any]
Entry = Callable[[str], ArrayFile]
"""Describes an array by its name within the dataset."""

Load = Callable[[str], Array]


def build_manifest(
    plan: Plan,
    config: DataConfig,
    inputs: Inputs,
    subjects: list[str],
    text_dimension: int,
    *,
    entry: Entry,
    load: Load,
    notes: list[str],
) -> Manifest:
    """Describe and measure the arrays: `entry` hashes one by its name, `load` maps it into memory."""
    presentations = tuple(_presentation(plan, index, entry) for index in range(len(plan.presentations)))
    listed = _subjects(presentations, subjects)
    return Manifest(
        content_hash=inputs.content_hash,
        created_by=f"giblet {giblet.__version__}",
        simulated=plan.bids.simulated,
        notes=_notes(plan, config, notes),
        tr_seconds=float(plan.tr),
        settings=inputs.settings,
        provenance=Provenance(inputs=inputs.files, versions=versions()),
        dimensions=DatasetDimensions(
            video_frames=plan.video_frames,
            height=config.video.height,
            width=config.video.width,
            audio_codebooks=config.audio.codebooks,
            audio_frames=plan.audio_frames,
            text_dimension=text_dimension,
            voxels=sum(subject.voxels for subject in listed),
        ),
        subjects=listed,
        presentations=presentations,
        split=plan.split,
        statistics=_statistics(plan, config, presentations, load),
    )


def array_name(presentation: int, name: str) -> str:
    """The name of an array within the dataset, without `.npy`."""
    return f"presentations/{presentation:03d}/{name}"


def _presentation(plan: Plan, index: int, entry: Entry) -> PresentationInfo:
    planned = plan.presentations[index]
    return PresentationInfo(
        id=planned.id,
        run=planned.run,
        trs=planned.grid.trs,
        stimuli=tuple(
            Stimulus(
                file=plan.bids.relative(film),
                onset_seconds=float(showing.onset),
                duration_seconds=float(showing.duration),
            )
            for film, showing in zip(planned.films, planned.showings, strict=True)
        ),
        arrays={name: entry(array_name(index, name)) for name in STIMULUS_ARRAYS},
        bold={
            subject: BoldFiles(
                bold=entry(array_name(index, f"bold-{subject}")), mask=entry(array_name(index, f"bold_mask-{subject}"))
            )
            for subject in sorted(planned.scans)
        },
    )


def _subjects(presentations: tuple[PresentationInfo, ...], subjects: list[str]) -> tuple[Subject, ...]:
    listed, first = [], 0
    for subject in subjects:
        voxels = next(p.bold[subject].bold.shape[1] for p in presentations if subject in p.bold)
        listed.append(Subject(id=subject, voxels=voxels, first_voxel=first, mask=f"masks/{subject}.nii.gz"))
        first += voxels
    return tuple(listed)


def _notes(plan: Plan, config: DataConfig, notes: list[str]) -> tuple[str, ...]:
    found = [*plan.notes, *notes]
    if config.audio.weights == "random":
        found.append(RANDOM_NOTE)
    if plan.bids.simulated:
        found.append("the BOLD is simulated (dataset_description.json says so)")
    return tuple(found)


def _statistics(plan: Plan, config: DataConfig, presentations: tuple[PresentationInfo, ...], load: Load) -> Statistics:
    def stimuli() -> Iterator[tuple[dict[str, Array], Array]]:
        for index in range(len(presentations)):
            training = plan.training_trs(index)
            if training.any():
                yield {name: load(array_name(index, name)) for name in STIMULUS_ARRAYS}, training

    def runs(subject: str) -> Iterator[tuple[Array, Array]]:
        for index, presentation in enumerate(presentations):
            if subject in presentation.bold:
                counted = load(array_name(index, f"bold_mask-{subject}"))
                training = np.asarray(counted & plan.training_trs(index))
                yield load(array_name(index, f"bold-{subject}")), training

    subjects = sorted({subject for presentation in presentations for subject in presentation.bold})
    return statistics(stimuli(), (runs(subject) for subject in subjects), config.audio.codebooks)

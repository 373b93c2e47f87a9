"""A tiny synthetic prepared dataset, without any film: for tests of whatever reads one.

    dataset = make_prepared(tmp_path / "dataset")

Random but learnable: BOLD is a lagged linear function of the stimulus plus noise.
"""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from giblet.data.manifest import MANIFEST_NAME, ArrayFile, Manifest
from giblet.data.prepared import PreparedDataset, file_sha256


def make_prepared(
    folder: Path,
    *,
    trs: tuple[int, ...] = (60, 60, 50),
    subjects: tuple[int, ...] = (7, 5),
    frames: int = 3,
    height: int = 4,
    width: int = 6,
    codebooks: int = 2,
    audio_frames: int = 9,
    text_dimension: int = 5,
    tr_seconds: float = 1.5,
    gap_trs: int = 20,
    validation_trs: int = 10,
    absent: tuple[tuple[int, int], ...] = (),
    seed: int = 0,
) -> PreparedDataset:
    """Write a `giblet.dataset/1` folder and open it.

    `trs` has one entry a presentation (the last is the test run where there are several), `subjects` one a subject: its
    voxels. `absent` lists (presentation, subject) pairs without BOLD.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "masks").mkdir()
    first_voxels = np.concatenate([[0], np.cumsum(subjects)]).tolist()
    weights = [rng.normal(size=(text_dimension + 1, voxels)) for voxels in subjects]
    entries = []
    for index, count in enumerate(trs):
        where = folder / "presentations" / f"{index:03d}"
        where.mkdir(parents=True)
        arrays = _stimulus(rng, count, frames, height, width, codebooks, audio_frames, text_dimension)
        features = np.concatenate(
            [arrays["text"].astype(float), arrays["video"].mean(axis=(1, 2, 3, 4))[:, None] / 255], axis=1
        )
        bold = {}
        for subject, voxels in enumerate(subjects):
            if (index, subject) in absent:
                continue
            lagged = np.concatenate([np.zeros((4, features.shape[1])), features[:-4]])
            signal = lagged @ weights[subject] + 0.5 * rng.normal(size=(count, voxels))
            signal = (signal - signal.mean(0)) / signal.std(0)
            bold[f"sub-{subject + 1:02d}"] = {
                "bold": _save(folder, where / f"bold-sub-{subject + 1:02d}.npy", signal.astype(np.float32)),
                "mask": _save(folder, where / f"bold_mask-sub-{subject + 1:02d}.npy", np.ones(count, bool)),
            }
        entries.append(
            {
                "id": f"task-movie_run-{index + 1:02d}",
                "run": f"{index + 1:02d}",
                "trs": count,
                "stimuli": [{"file": f"film{index}.mp4", "onset_seconds": 0.0, "duration_seconds": count * tr_seconds}],
                "arrays": {name: _save(folder, where / f"{name}.npy", array) for name, array in arrays.items()},
                "bold": bold,
            }
        )
    for subject, voxels in enumerate(subjects):
        volume = np.zeros((voxels + 2, 3, 3), np.uint8)
        volume[1 : voxels + 1, 1, 1] = 1
        nibabel.save(
            nibabel.Nifti1Image(volume, np.diag([4.0, 4.0, 4.0, 1.0])), folder / f"masks/sub-{subject + 1:02d}.nii.gz"
        )
    split = _split(trs, gap_trs, validation_trs)
    manifest = {
        "content_hash": folder.name,
        "created_by": "tests",
        "simulated": True,
        "notes": ["synthetic, made by a test"],
        "tr_seconds": tr_seconds,
        "settings": {},
        "provenance": {"inputs": [], "versions": {}},
        "dimensions": {
            "video_frames": frames, "height": height, "width": width, "audio_codebooks": codebooks,
            "audio_frames": audio_frames, "text_dimension": text_dimension, "voxels": sum(subjects),
        },
        "subjects": [
            {"id": f"sub-{i + 1:02d}", "voxels": v, "first_voxel": first_voxels[i],
             "mask": f"masks/sub-{i + 1:02d}.nii.gz"}
            for i, v in enumerate(subjects)
        ],
        "presentations": [
            {**entry, "arrays": {k: v.model_dump() for k, v in entry["arrays"].items()},
             "bold": {s: {k: v.model_dump() for k, v in b.items()} for s, b in entry["bold"].items()}}
            for entry in entries
        ],
        "split": split,
        "statistics": {
            "video_variance": 1 / 12, "text_variance": 1.0, "bold_variance": 1.0, "audio_code_variance": 1024**2 / 12,
            "audio_unigram_entropy_nats": float(np.log(1024)),
            "audio_unigram_entropy_nats_by_codebook": [float(np.log(1024))] * codebooks,
            "audio_unigram_accuracy": 1 / 1024,
        },
    }  # fmt: skip
    (folder / MANIFEST_NAME).write_text(Manifest.model_validate(manifest).to_json(), encoding="utf-8")
    return PreparedDataset.open(folder)


def _stimulus(rng, count, frames, height, width, codebooks, audio_frames, text_dimension):
    video_mask = np.ones((count, frames), bool)
    video_mask[1::2, -1] = frames == 1
    audio_mask = np.ones((count, audio_frames), bool)
    audio_mask[1::2, -1] = False
    video = rng.integers(0, 256, (count, frames, height, width, 3), dtype=np.uint8)
    audio = rng.integers(0, 1024, (count, codebooks, audio_frames)).astype(np.int16)
    if frames > 1:
        video[1::2, -1] = video[1::2, -2]
    audio[1::2, :, -1] = audio[1::2, :, -2]
    text_mask = rng.random(count) > 0.1
    text = np.where(text_mask[:, None], rng.normal(size=(count, text_dimension)), 0).astype(np.float16)
    return {
        "video": video, "video_mask": video_mask, "audio": audio, "audio_mask": audio_mask,
        "text": text, "text_mask": text_mask, "stimulus_mask": np.ones(count, bool),
    }  # fmt: skip


def _split(trs, gap, validation):
    if len(trs) == 1:
        t = trs[0]
        cuts = {"test": [(0, t - validation, t)], "validation": [(0, t - 2 * validation - gap, t - validation - gap)]}
        return {"train": [(0, 0, t - 2 * validation - 2 * gap)], **cuts}
    training = list(enumerate(trs))[:-1]
    return {
        "train": [(i, 0, t - validation - gap) for i, t in training],
        "validation": [(i, t - validation, t) for i, t in training],
        "test": [(len(trs) - 1, 0, trs[-1])],
    }


def _save(folder: Path, path: Path, array: np.ndarray) -> ArrayFile:
    np.save(path, array)
    return ArrayFile(
        file=path.relative_to(folder).as_posix(), shape=array.shape, dtype=str(array.dtype), sha256=file_sha256(path)
    )

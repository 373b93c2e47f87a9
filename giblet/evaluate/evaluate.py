"""`giblet evaluate`: how well a trained model predicts held-out BOLD, against ceiling, chance and banded ridge.

    result = evaluate(config, dataset, model, Path("work/evaluation"), bids=Path("work/bids"), facts=RunFacts(...))

Writes `evaluation.json`, `maps/*.nii.gz` and `report.html` into the folder. Everything is per voxel over time, on TRs
that neither the model nor the baseline was fitted on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import giblet
from giblet.config import GibletConfig
from giblet.data.prepared import PreparedDataset
from giblet.errors import DataError
from giblet.evaluate import baseline
from giblet.evaluate.ceiling import DESCRIPTIONS, RESPONSIVE_CEILING, Ceiling
from giblet.evaluate.correlation import FloatArray, correlation
from giblet.evaluate.features import presentation_features
from giblet.evaluate.filtering import RunFilter
from giblet.evaluate.haemodynamics import LATENCIES_SECONDS, respond, response_kernels
from giblet.evaluate.maps import MaskSpace, save_maps
from giblet.evaluate.predict import (
    FramePair,
    Reconstruction,
    number,
    predict_presentation,
    stimulus_means,
)
from giblet.evaluate.simulation import Simulation
from giblet.evaluate.subject import FALSE_DISCOVERY_RATE, Rows, System, find_ceiling, interval, mean_over
from giblet.models.autoencoder import MultimodalAutoencoder
from giblet.telemetry.logs import get_logger
from giblet.telemetry.progress import progress

FORMAT = "giblet.evaluation/1"
MINIMUM_SHIFT_SECONDS = 24.0
"""Shifts of the null are at least the haemodynamic response's length away from no shift."""
PICTURES = 6
log = get_logger(__name__)


@dataclass(frozen=True)
class RunFacts:
    """What the caller knows of the run that the model comes from; all of it goes into the report as it is.

    `history` is the checkpoint's: under `train` and `validation` one list a quantity, `epoch` among them. `statements`
    are sentences such as how a run was interrupted and resumed.
    """

    run: str | None = None
    step: int | None = None
    epoch: int | None = None
    checkpoint: str | None = None
    verdict: str | None = None
    verdict_detail: str | None = None
    statements: tuple[str, ...] = ()
    history: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class SubjectResult:
    """Everything measured for one subject; V voxels, T held-out TRs."""

    id: str
    space: MaskSpace
    rows: Rows
    bold: FloatArray
    signal: FloatArray | None
    ceiling: Ceiling
    voxels: NDArray[np.bool_]
    """Over which means are taken: the responsive ones where they are known, else all that vary."""
    model: System
    ridge: System | None
    unfiltered_mean_r: float
    band_weights: dict[str, float]


@dataclass(frozen=True)
class EvaluationResult:
    """`summary` is what `evaluation.json` holds."""

    summary: dict[str, Any]
    folder: Path
    json_path: Path
    report_path: Path
    map_paths: tuple[Path, ...]


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
    summary = _summary(config, dataset, facts, results, reconstruction)
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
    designs = _Designs(dataset, run_filter, config) if with_baseline else None
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
    designs: _Designs | None,
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


class _Designs:
    """The baseline's regressors, computed once a presentation and shared by subjects with the same valid TRs."""

    def __init__(self, dataset: PreparedDataset, run_filter: RunFilter, config: GibletConfig) -> None:
        self.dataset = dataset
        self.run_filter = run_filter
        self.seed = config.run.seed
        identity = np.ones((1, 1), dtype=np.float32)
        shifted = config.data.hrf.kind == "none"
        self.kernels = identity if shifted else response_kernels(dataset.manifest.tr_seconds)
        self._responses: dict[int, dict[str, NDArray[np.float32]]] = {}
        self._filtered: dict[tuple[int, bytes], dict[str, NDArray[np.float32]]] = {}

    def predict(self, subject: str, test: Rows) -> tuple[FloatArray | None, dict[str, float]]:
        """The baseline's prediction (T,V) of the held-out rows, and the mean weight of each band."""
        fit = Rows.of(self.dataset, subject, ("train", "validation"))
        if len(fit) < 2 * baseline.FOLDS:
            log.warning("no baseline: too few training TRs", subject=subject, trs=len(fit))
            return None, {}
        gap = int(np.ceil(MINIMUM_SHIFT_SECONDS / self.dataset.manifest.tr_seconds))
        folds = baseline.contiguous_folds(fit.presentation, fit.tr, baseline.FOLDS, gap)
        bold = fit.take({int(p): self.dataset.presentations[int(p)].bold[subject] for p in np.unique(fit.presentation)})
        usable = np.isfinite(bold).all(axis=0)
        fitted = baseline.fit_banded_ridge(
            self._rows(subject, fit),
            np.where(usable, bold, 0.0),
            folds,
            seed=self.seed,
        )
        predicted = fitted.predict(self._rows(subject, test))
        weights = dict(zip(fitted.bands, fitted.band_weights.mean(axis=1).tolist(), strict=True))
        return np.where(usable, predicted, np.nan).astype(np.float32), weights

    def _rows(self, subject: str, rows: Rows) -> dict[str, NDArray[np.float32]]:
        series = {int(p): self._of(int(p), subject) for p in np.unique(rows.presentation)}
        bands = next(iter(series.values())).keys()
        return {band: rows.take({p: values[band] for p, values in series.items()}) for band in bands}

    def _of(self, presentation: int, subject: str) -> dict[str, NDArray[np.float32]]:
        source = self.dataset.presentations[presentation]
        key = (presentation, source.bold_mask[subject].tobytes())
        if presentation not in self._responses:
            features = presentation_features(source)
            self._responses[presentation] = {band: respond(values, self.kernels) for band, values in features.items()}
        if key not in self._filtered:
            self._filtered[key] = {
                band: self.run_filter.apply(values, presentation, subject)
                for band, values in self._responses[presentation].items()
            }
        return self._filtered[key]


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


def _summary(
    config: GibletConfig,
    dataset: PreparedDataset,
    facts: RunFacts,
    results: list[SubjectResult],
    reconstruction: Reconstruction,
) -> dict[str, Any]:
    manifest = dataset.manifest
    kinds = sorted({result.ceiling.kind for result in results})
    subjects = {result.id: _subject_summary(result, config.run.seed) for result in results}
    return {
        "format": FORMAT,
        "simulated": manifest.simulated,
        "run": {
            "name": facts.run,
            "step": facts.step,
            "epoch": facts.epoch,
            "checkpoint": facts.checkpoint,
            "verdict": facts.verdict,
            "verdict_detail": facts.verdict_detail,
            "statements": list(facts.statements),
        },
        "scores": _scores(results, subjects, config.run.seed),
        "subjects": subjects,
        "reconstruction": reconstruction.scores(),
        "method": _method(config, dataset, kinds),
        "dataset": {
            "content_hash": manifest.content_hash,
            "notes": list(manifest.notes),
            "tr_seconds": manifest.tr_seconds,
            "presentations": len(manifest.presentations),
            "trs": {split: sum(stop - first for _, first, stop in spans) for split, spans in manifest.split.items()},
            "test": [
                {"presentation": manifest.presentations[p].id, "first_tr": first, "end_tr": stop}
                for p, first, stop in manifest.split["test"]
            ],
            "inputs": [part.model_dump() for part in manifest.provenance.inputs],
        },
        "versions": {
            "giblet": giblet.__version__,
            **{name: metadata.version(name) for name in ("torch", "numpy", "scipy", "himalaya", "nilearn", "nibabel")},
        },
        "prepared_with": dict(manifest.provenance.versions),
    }


def _method(config: GibletConfig, dataset: PreparedDataset, ceilings: list[Any]) -> dict[str, Any]:
    run_filter = RunFilter.of(dataset, config.data.bold)
    return {
        "ceiling": {kind: DESCRIPTIONS[kind] for kind in ceilings},
        "responsive": f"ceiling of at least {RESPONSIVE_CEILING}",
        "filter": str(run_filter),
        "null": f"circular shifts of at least {MINIMUM_SHIFT_SECONDS:g} s within each run, pooled over voxels",
        "false_discovery_rate": FALSE_DISCOVERY_RATE,
        "baseline": {
            "kind": "banded ridge (himalaya, random search)",
            "response_latencies_seconds": None if config.data.hrf.kind == "none" else list(LATENCIES_SECONDS),
            "alphas": baseline.ALPHAS.tolist(),
            "random_band_weights": baseline.RANDOM_BAND_WEIGHTS,
            "folds": baseline.FOLDS,
            "fitted_on": ["train", "validation"],
        },
    }


def _subject_summary(result: SubjectResult, seed: int) -> dict[str, Any]:
    top = mean_over(result.ceiling.r, result.voxels)
    return {
        "held_out_trs": len(result.rows),
        "voxels": len(result.model.r),
        "voxels_without_score": int(np.count_nonzero(~np.isfinite(result.model.r))),
        "responsive_voxels": None if result.ceiling.responsive is None else int(result.ceiling.responsive.sum()),
        "ceiling_kind": result.ceiling.kind,
        "ceiling_mean_r": number(top),
        "model": {
            **result.model.summary(result.ceiling, result.voxels, seed),
            "mean_r_unfiltered": number(result.unfiltered_mean_r),
        },
        "banded_ridge": None if result.ridge is None else result.ridge.summary(result.ceiling, result.voxels, seed),
        "band_weights": result.band_weights,
    }


def _scores(results: list[SubjectResult], subjects: dict[str, Any], seed: int) -> dict[str, Any]:
    """Means over subjects, each subject counting alike, with bootstrap intervals over held-out time."""

    def mean_of(system: str, key: str) -> float | None:
        values = [s[system][key] for s in subjects.values() if s[system] is not None and s[system][key] is not None]
        return float(np.mean(values)) if values else None

    def replicates(pick: Callable[[SubjectResult], System | None]) -> NDArray[np.float64]:
        systems = [(pick(result), result.voxels) for result in results]
        drawn = [system.replicates(voxels, seed) for system, voxels in systems if system is not None]
        return np.mean(drawn, axis=0) if drawn else np.zeros(0)

    model, ridge = replicates(lambda r: r.model), replicates(lambda r: r.ridge)
    keys = ("mean_r", "share_of_ceiling", "mean_r_all_voxels", "significant_share", "significant_share_of_responsive")
    tops = [s["ceiling_mean_r"] for s in subjects.values() if s["ceiling_mean_r"] is not None]
    scores: dict[str, Any] = {
        "model": {**{key: mean_of("model", key) for key in keys}, "mean_r_interval": interval(model)},
        "chance": {"mean_r": mean_of("model", "chance_mean_r")},
        "ceiling": {"mean_r": float(np.mean(tops)) if tops else None},
    }
    if len(ridge):
        scores["banded_ridge"] = {
            **{key: mean_of("banded_ridge", key) for key in keys},
            "mean_r_interval": interval(ridge),
        }
        difference = scores["model"]["mean_r"] is not None and scores["banded_ridge"]["mean_r"] is not None
        scores["model_minus_ridge"] = {
            "mean_r": scores["model"]["mean_r"] - scores["banded_ridge"]["mean_r"] if difference else None,
            "mean_r_interval": interval(model - ridge) if len(ridge) == len(model) else None,
        }
    return scores


def on_device(model: MultimodalAutoencoder, device: str) -> MultimodalAutoencoder:
    """The model on `auto`, `cpu` or `cuda`, as `training.device` names it."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return model.to(name)

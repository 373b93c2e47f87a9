"""What `evaluation.json` holds: scores, how they were measured, and what they were measured on."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

import giblet
from giblet.config import GibletConfig
from giblet.data.prepared import PreparedDataset
from giblet.evaluate import baseline
from giblet.evaluate.ceiling import DESCRIPTIONS, RESPONSIVE_CEILING
from giblet.evaluate.filtering import RunFilter
from giblet.evaluate.haemodynamics import LATENCIES_SECONDS
from giblet.evaluate.predict import Reconstruction, number
from giblet.evaluate.results import MINIMUM_SHIFT_SECONDS, RunFacts, SubjectResult
from giblet.evaluate.subject import FALSE_DISCOVERY_RATE, System, interval, mean_over

FORMAT = "giblet.evaluation/1"


def summarise(
    config: GibletConfig,
    dataset: PreparedDataset,
    facts: RunFacts,
    results: list[SubjectResult],
    reconstruction: Reconstruction,
) -> dict[str, Any]:
    """Everything measured, as JSON."""
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

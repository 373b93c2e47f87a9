"""The evaluation as one HTML page that needs nothing but itself: pictures are inlined, no script, no address."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from giblet.evaluate.predict import FramePair
from giblet.evaluate.report_brain import glass_brains, score_table, time_courses, voxel_by_voxel
from giblet.evaluate.report_html import value_text
from giblet.evaluate.report_movie import learning_curves, movie_rebuilt
from giblet.evaluate.results import RunFacts, SubjectResult


def write_report(
    path: Path,
    summary: dict[str, Any],
    results: Sequence[SubjectResult],
    pictures: Sequence[FramePair],
    facts: RunFacts,
) -> Path:
    """Write the page for a `summary` (as in `evaluation.json`) and what only arrays can show; returns `path`."""
    body = "\n".join(
        part
        for part in (
            _headline(summary),
            score_table(summary),
            glass_brains(summary, results),
            time_courses(summary, results),
            voxel_by_voxel(summary, results),
            movie_rebuilt(summary, pictures),
            learning_curves(facts),
            _methods(summary),
            _provenance(summary),
        )
        if part
    )
    template = Template(resources.files("giblet.evaluate").joinpath("report.html").read_text(encoding="utf-8"))
    title = f"giblet: {summary['run']['name'] or 'evaluation'}"
    path.write_text(template.substitute(title=escape(title), body=body), encoding="utf-8")
    return path


def _headline(summary: dict[str, Any]) -> str:
    run, scores = summary["run"], summary["scores"]
    tags = []
    if summary["simulated"]:
        tags.append('<span class="tag simulated">Simulated brain data</span>')
    if run["verdict"]:
        good = str(run["verdict"]).upper().startswith("SAFE")
        tags.append(f'<span class="tag {"good" if good else "bad"}">Checkpoint {escape(str(run["verdict"]))}</span>')
    ridge = scores.get("banded_ridge", {})
    keys = [
        (scores["model"]["mean_r"], "r3", "giblet: mean correlation with held-out BOLD"),
        (scores["model"].get("share_of_ceiling"), "percent", "of the best possible score"),
        (ridge.get("mean_r"), "r3", "banded ridge on the same features"),
        (scores["chance"]["mean_r"], "r3", "chance: the same predictions, shifted in time"),
    ]
    boxes = "".join(
        f'<div><span class="key">{value_text(value, kind)}</span><small>{escape(label)}</small></div>'
        for value, kind, label in keys
        if value is not None
    )
    statements = "".join(f"<li>{escape(text)}</li>" for text in run["statements"])
    return (
        f"{''.join(tags)}<h1>{escape(_title(summary))}</h1>"
        f'<p class="lead">{escape(_in_words(summary))}</p>'
        f'<div class="keys">{boxes}</div>'
        + (f"<ul>{statements}</ul>" if statements else "")
        + "".join(f'<p class="note">Note: {escape(note)}.</p>' for note in summary["dataset"]["notes"])
    )


def _title(summary: dict[str, Any]) -> str:
    run = summary["run"]
    count = len(summary["subjects"])
    brains = f"{count} {'simulated ' * summary['simulated']}brain{'s' * (count != 1)}"
    return f"{run['name'] or 'A model'}: predicting {brains} from a movie"


def _in_words(summary: dict[str, Any]) -> str:
    """What was trained on what, and what came of it, in a few sentences."""
    scores, dataset, run = summary["scores"], summary["dataset"], summary["run"]
    minutes = {split: trs * dataset["tr_seconds"] / 60 for split, trs in dataset["trs"].items()}
    what = "simulated from a stated model of the film, not measured" if summary["simulated"] else "measured"
    sentences = [
        f"A multimodal autoencoder was trained on {minutes.get('train', 0):.1f} minutes of a movie (pictures, sound, "
        f"words) and the BOLD of {len(summary['subjects'])} subject{'s' * (len(summary['subjects']) != 1)}, which is "
        f"{what}; it was then tested on {minutes.get('test', 0):.1f} minutes that it never saw."
    ]
    if run["epoch"] is not None:
        sentences.append(f"The weights are those after {run['epoch']} epochs ({run['step']} optimizer steps).")
    difference = scores.get("model_minus_ridge", {})
    bounds = difference.get("mean_r_interval")
    if difference.get("mean_r") is not None and bounds:
        low, high = sorted(abs(bound) for bound in bounds) if bounds[0] * bounds[1] > 0 else bounds
        amount = f"{abs(difference['mean_r']):.3f} (95 % interval {value_text(low, 'r3')} to {value_text(high, 'r3')})"
        if bounds[0] > 0:
            sentences.append(f"It predicts better than banded ridge on the same features, by {amount}.")
        elif bounds[1] < 0:
            sentences.append(f"Banded ridge on the same features predicts better than it does, by {amount}.")
        else:
            sentences.append(f"It and banded ridge on the same features cannot be told apart: they differ by {amount}.")
    if scores["model"].get("significant_share") is not None:
        share = scores["model"]["significant_share"]
        voxels = f"{value_text(share, 'percent1')} of all voxels"
        sentences.append(f"{voxels} are predicted better than chance (false discovery rate 5 %).")
    return " ".join(sentences)


def _methods(summary: dict[str, Any]) -> str:
    method = summary["method"]
    ridge = method["baseline"]
    latencies = ridge["response_latencies_seconds"]
    response = (
        "no haemodynamic response, since the data set is already shifted"
        if latencies is None
        else f"SPM's canonical response at latencies of {', '.join(f'{value:+g}' for value in latencies)} s"
    )
    shares: dict[str, list[float]] = {}
    for subject in summary["subjects"].values():
        for band, weight in subject["band_weights"].items():
            shares.setdefault(band, []).append(weight)
    weights = ", ".join(f"{band} {np.mean(values):.0%}" for band, values in shares.items())
    return (
        "<h2>How it was measured</h2><ul>"
        f"<li>BOLD, predictions, regressors and true signal went through the same filter: {escape(method['filter'])}. "
        "Without it giblet's mean r is "
        + ", ".join(
            f"{value_text(s['model']['mean_r_unfiltered'], 'r3')} ({escape(n)})" for n, s in summary["subjects"].items()
        )
        + ".</li>"
        f"<li>Banded ridge (himalaya): one kernel a band, weights of the bands and regularisation chosen per voxel by "
        f"{ridge['folds']}-fold cross-validation over contiguous training and validation time; {response}. "
        + (f"Mean weight of the bands: {escape(weights)}." if weights else "It was not fitted.")
        + "</li>"
        f"<li>Chance and p-values: {escape(method['null'])}; Benjamini-Hochberg over all voxels of a subject.</li>"
        "<li>Ridge was fitted on validation time too, which giblet uses only to choose its best checkpoint.</li>"
        "<li>No model was fitted or chosen on held-out TRs. Drift and scale of a held-out run's BOLD, which no model "
        "can know, were taken out by a fit to that run.</li></ul>"
    )


def _provenance(summary: dict[str, Any]) -> str:
    run, dataset = summary["run"], summary["dataset"]
    facts = [
        ("Run", run["name"]),
        ("Checkpoint", run["checkpoint"]),
        ("Step, epoch", None if run["step"] is None else f"{run['step']}, {run['epoch']}"),
        ("Verdict", " ".join(str(v) for v in (run["verdict"], run["verdict_detail"]) if v) or None),
        ("Dataset", dataset["content_hash"]),
        ("TRs", ", ".join(f"{split} {count}" for split, count in dataset["trs"].items())),
        ("Evaluated with", ", ".join(f"{name} {version}" for name, version in summary["versions"].items())),
        ("Prepared with", ", ".join(f"{name} {version}" for name, version in summary["prepared_with"].items()) or None),
    ]
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in facts if value is not None
    )
    inputs = "".join(
        f"<tr><td>{escape(part['path'])}</td><td>{part['bytes']}</td><td><code>{escape(part['sha256'][:16])}</code></td></tr>"
        for part in dataset["inputs"]
    )
    listing = (
        f"<details><summary>{len(dataset['inputs'])} input files</summary><div class=scroll><table><tr><th>file</th>"
        f"<th>bytes</th><th>SHA-256 begins</th></tr>{inputs}</table></div></details>"
        if inputs
        else ""
    )
    return f"<h2>Provenance</h2><table class=facts>{rows}</table>{listing}"

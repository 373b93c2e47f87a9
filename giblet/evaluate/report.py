"""The evaluation as one HTML page that needs nothing but itself: pictures are inlined, no script, no address."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from giblet.evaluate import figures
from giblet.evaluate.correlation import FloatArray
from giblet.evaluate.predict import FramePair

if TYPE_CHECKING:
    from giblet.evaluate.evaluate import RunFacts, SubjectResult

GLASS_SUBJECTS = 4
HISTORY_MINIMUM_EPOCHS = 2


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
            _scores(summary),
            _brains(summary, results),
            _courses(summary, results),
            _voxels(summary, results),
            _movie(summary, pictures),
            _learning(facts),
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
        f'<div><span class="key">{_value(value, kind)}</span><small>{escape(label)}</small></div>'
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
    brain = "simulated brains" if summary["simulated"] else "brains"
    return f"{run['name'] or 'A model'}: predicting {len(summary['subjects'])} {brain} from a movie"


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
        amount = f"{abs(difference['mean_r']):.3f} (95 % interval {bounds[0]:+.3f} to {bounds[1]:+.3f})"
        if bounds[0] > 0:
            sentences.append(f"It predicts better than banded ridge on the same features, by {amount}.")
        elif bounds[1] < 0:
            sentences.append(f"Banded ridge on the same features predicts better than it does, by {amount}.")
        else:
            sentences.append(f"It and banded ridge on the same features cannot be told apart: they differ by {amount}.")
    if scores["model"].get("significant_share") is not None:
        share = scores["model"]["significant_share"]
        sentences.append(
            f"{_value(share, 'percent1')} of all voxels are predicted better than chance (false discovery rate 5 %)."
        )
    return " ".join(sentences)


def _scores(summary: dict[str, Any]) -> str:
    rows = [_row("All subjects (mean)", summary["scores"], summary["scores"]["ceiling"]["mean_r"], group=True)]
    bars = []
    for name, subject in summary["subjects"].items():
        rows.append(_row(name, subject, subject["ceiling_mean_r"]))
        ridge = subject["banded_ridge"] or {}
        bars.append(
            {
                "label": name,
                "model": subject["model"]["mean_r"],
                "model_interval": subject["model"]["mean_r_interval"],
                "ridge": ridge.get("mean_r"),
                "ridge_interval": ridge.get("mean_r_interval"),
                "chance": subject["model"]["chance_mean_r"],
                "ceiling": subject["ceiling_mean_r"],
            }
        )
    head = (
        "<tr><th>subject</th><th>giblet<br>mean r</th><th>banded ridge<br>mean r</th><th>chance<br>mean r</th>"
        "<th>ceiling<br>mean r</th><th>giblet<br>of ceiling</th><th>ridge<br>of ceiling</th>"
        "<th>giblet<br>significant</th><th>ridge<br>significant</th></tr>"
    )
    kinds = summary["method"]["ceiling"]
    first = next(iter(summary["subjects"].values()))
    over = (
        f"responsive voxels ({summary['method']['responsive']}; {_counts(summary, 'responsive_voxels')})"
        if first["responsive_voxels"] is not None
        else f"all voxels that vary ({_counts(summary, 'voxels')})"
    )
    return (
        "<h2>Scores on held-out time</h2>"
        f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'
        f'<p class="soft">Pearson correlation over time, per voxel, then averaged over {escape(over)}. Held out: '
        f"{escape(_held_out(summary))}. Brackets: 95 % intervals from resampling the held-out time in stretches of "
        "20 s. Significant: share of all voxels at a false discovery rate of 5 %. "
        f"Ceiling: {escape('; '.join(kinds.values()))}.</p>"
        + _figure(
            figures.score_bars(bars),
            "Mean correlation of each subject. Grey bars end at the ceiling, the thin mark is chance, thick lines are "
            "95 % intervals over held-out time.",
        )
    )


def _row(name: str, scores: dict[str, Any], ceiling: float | None, *, group: bool = False) -> str:
    model, ridge = scores["model"], scores.get("banded_ridge") or {}
    chance = scores["chance"]["mean_r"] if "chance" in scores else model["chance_mean_r"]
    cells = [
        escape(name),
        _with_interval(model["mean_r"], model["mean_r_interval"]),
        _with_interval(ridge.get("mean_r"), ridge.get("mean_r_interval")),
        _value(chance, "r3"),
        _value(ceiling, "r3"),
        _value(model["share_of_ceiling"], "percent"),
        _value(ridge.get("share_of_ceiling"), "percent"),
        _value(model["significant_share"], "percent1"),
        _value(ridge.get("significant_share"), "percent1"),
    ]
    return f"<tr{' class=group' if group else ''}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _brains(summary: dict[str, Any], results: Sequence[SubjectResult]) -> str:
    images, peaks = [], [0.1]
    for result in results[:GLASS_SUBJECTS]:
        systems = [("giblet", result.model.r)]
        if result.ridge is not None:
            systems.append(("banded ridge", result.ridge.r))
        for name, r in systems:
            values = np.where(np.isfinite(r), np.maximum(r, 0.0), 0.0)
            peaks.append(float(np.percentile(values, 99.5)))
            images.append((f"{result.id}  {name}", result.space.image_of(values)))
    maximum = np.ceil(max(peaks) * 10) / 10
    left = len(results) - GLASS_SUBJECTS
    return "<h2>Where in the brain</h2>" + _figure(
        figures.glass_brains(images, maximum=float(maximum), label="held-out r"),
        "Highest held-out correlation along each line of sight (left, back, right, top), one colour scale for all. "
        "Correlations below 0 count as 0. The outline is the MNI template and fits data in that space only. "
        + (f"{left} more subjects are in the NIfTI maps. " if left > 0 else "")
        + "All maps are in the folder <code>maps</code> beside this page.",
        raw_caption=True,
    )


def _courses(summary: dict[str, Any], results: Sequence[SubjectResult]) -> str:
    result = max(results, key=lambda r: float(np.nanmax(np.where(r.voxels, r.model.r, np.nan), initial=-1.0)))
    known = np.flatnonzero(result.voxels & np.isfinite(result.model.r))
    if not len(known):
        return ""
    order = known[np.argsort(result.model.r[known])]
    chosen = [("best voxel", order[-1]), ("median voxel", order[len(order) // 2]), ("worst voxel", order[0])]
    block = result.rows.block == result.rows.block[0]
    seconds = result.rows.tr[block] * summary["dataset"]["tr_seconds"]
    traces = []
    for name, voxel in chosen:
        ceiling = result.ceiling.r[voxel]
        title = f"{result.id}, {name}: giblet r = {result.model.r[voxel]:.2f}"
        if result.ridge is not None:
            title += f", ridge r = {result.ridge.r[voxel]:.2f}"
        if np.isfinite(ceiling):
            title += f", ceiling {ceiling:.2f}"
        traces.append(
            figures.Trace(
                title,
                seconds,
                bold=_z(result.bold, block, int(voxel)),
                model=_z(result.model.prediction, block, int(voxel)),
                ridge=None if result.ridge is None else _z(result.ridge.prediction, block, int(voxel)),
                signal=None if result.signal is None else _z(result.signal, block, int(voxel)),
            )
        )
    signal = " The dotted line is the simulation's true signal." if result.signal is not None else ""
    return "<h2>True against predicted time courses</h2>" + _figure(
        figures.time_courses(traces),
        f"The first held-out stretch ({int(block.sum())} TRs of {summary['dataset']['tr_seconds']:g} s) in three of "
        f"the {len(known)} voxels that the means are taken over, by giblet's correlation. Every line is z-scored: "
        f"correlation ignores level and scale.{signal}",
    )


def _z(series: FloatArray, rows: Any, voxel: int) -> Any:
    values = np.asarray(series[rows, voxel], dtype=np.float64)
    deviation = values.std()
    return (values - values.mean()) / (deviation if deviation > 0 else 1.0)


def _voxels(summary: dict[str, Any], results: Sequence[SubjectResult]) -> str:
    def joined(pick: Any) -> Any:
        return np.concatenate([pick(result) for result in results])

    curves = [("giblet", figures.MODEL, joined(lambda r: r.model.r[r.voxels]))]
    with_ridge = all(result.ridge is not None for result in results)
    if with_ridge:
        curves.append(("banded ridge", figures.RIDGE, joined(lambda r: r.ridge.r[r.voxels])))
    known = all(result.ceiling.kind != "unknown" for result in results)
    if known:
        curves.append(("ceiling", figures.CEILING, joined(lambda r: r.ceiling.r[r.voxels])))
    count = len(curves[0][2])
    page = "<h2>Voxel by voxel</h2>" + _figure(
        figures.correlation_histogram(curves),
        f"Distribution of held-out correlations over the {count} voxels that the means are taken over, all subjects.",
    )
    if not known:
        return page
    panels = [("giblet", joined(lambda r: r.ceiling.r), joined(lambda r: r.model.r))]
    if with_ridge:
        panels.append(("banded ridge", joined(lambda r: r.ceiling.r), joined(lambda r: r.ridge.r)))
    return page + _figure(
        figures.against_ceiling(panels),
        f"Every voxel of every subject (n = {len(panels[0][1])}): its held-out correlation against its ceiling. On the "
        "line, nothing is left to be explained. Colours count voxels, on a logarithmic scale.",
    )


def _movie(summary: dict[str, Any], pictures: Sequence[FramePair]) -> str:
    scores = summary["reconstruction"]
    rows = [
        ("Video", "R² against the training set's mean frame", scores["video_r2_against_training_mean"], "r3", "0"),
        (
            "Video", "peak signal-to-noise ratio, dB", scores["video_psnr_db"], "r1",
            f"{_value(scores['video_psnr_db_of_training_mean'], 'r1')} (mean frame)",
        ),
        (
            "Audio", f"EnCodec codes named exactly, of {scores['audio_tokens']}", scores["audio_token_accuracy"],
            "percent1", f"{_value(scores['audio_token_accuracy_of_unigram'], 'percent1')} (most frequent code)",
        ),
        ("Text", f"mean r of embedding features over {scores['text_trs']} TRs", scores["text_mean_r"], "r3", "0"),
    ]  # fmt: skip
    body = "".join(
        f"<tr><td>{kind}</td><td style='text-align:left'>{escape(what)}</td><td>{_value(value, form)}</td>"
        f"<td>{guess}</td></tr>"
        for kind, what, value, form, guess in rows
    )
    page = (
        "<h2>The movie rebuilt</h2><div class=scroll><table><tr><th></th><th style='text-align:left'>measure</th>"
        f"<th>giblet</th><th>constant guess</th></tr>{body}</table></div>"
    )
    if not pictures:
        return page
    pairs = [(f"{pair.seconds:.0f} s", pair.true, pair.rebuilt) for pair in pictures]
    return page + _figure(
        figures.film_frames(pairs),
        f"Held-out film above, rebuilt from the bottleneck below (run {pictures[0].presentation}, seconds of the run). "
        "A picture is the mean of its TR's frames, which is what the decoder is asked for.",
    )


def _learning(facts: RunFacts) -> str:
    picture = figures.learning_curves(facts.history)
    if picture is None:
        return ""
    epochs = max(len(curves.get("epoch", [])) for curves in facts.history.values())
    return "<h2>Learning curves</h2>" + _figure(
        picture,
        f"Losses over {epochs} epochs, each relative to what a constant guess gets (1, grey line): the training set's "
        "mean, or its code frequencies for audio. The weighted sum is what training minimises.",
    )


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
            f"{_value(s['model']['mean_r_unfiltered'], 'r3')} ({escape(n)})" for n, s in summary["subjects"].items()
        )
        + ".</li>"
        f"<li>Banded ridge (himalaya): one kernel a band, weights of the bands and regularisation chosen per voxel by "
        f"{ridge['folds']}-fold cross-validation over contiguous training and validation time; {response}. "
        + (f"Mean weight of the bands: {escape(weights)}." if weights else "It was not fitted.")
        + "</li>"
        f"<li>Chance and p-values: {escape(method['null'])}; Benjamini-Hochberg over all voxels of a subject.</li>"
        "<li>Nothing was fitted or chosen on held-out TRs.</li></ul>"
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


def _figure(picture: figures.Picture, caption: str, *, raw_caption: bool = False) -> str:
    text = caption if raw_caption else escape(caption)
    plain = escape(caption.replace("<code>", "").replace("</code>", ""), quote=True)
    return f'<figure><img src="{picture.data_uri}" alt="{plain}"><figcaption>{text}</figcaption></figure>'


def _value(value: float | None, kind: str) -> str:
    if value is None:
        return "–"
    text = {"r3": f"{value:.3f}", "r1": f"{value:.1f}", "percent": f"{value:.0%}", "percent1": f"{value:.1%}"}[kind]
    return text.replace("%", " %").replace("-", "−")


def _with_interval(value: float | None, bounds: Iterable[float] | None) -> str:
    if value is None or bounds is None:
        return _value(value, "r3")
    low, high = bounds
    return f"{_value(value, 'r3')} <small>[{_value(low, 'r3')}, {_value(high, 'r3')}]</small>"


def _counts(summary: dict[str, Any], key: str) -> str:
    return ", ".join(f"{subject[key]} in {name}" for name, subject in summary["subjects"].items())


def _held_out(summary: dict[str, Any]) -> str:
    return ", ".join(
        f"{span['presentation']}, TRs {span['first_tr']} to {span['end_tr'] - 1}" for span in summary["dataset"]["test"]
    )

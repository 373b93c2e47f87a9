"""The report's sections on how well BOLD is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from giblet.evaluate import figures
from giblet.evaluate.correlation import FloatArray
from giblet.evaluate.report_html import figure, value_text, with_interval
from giblet.evaluate.results import SubjectResult
from giblet.evaluate.subject import FALSE_DISCOVERY_RATE

GLASS_SUBJECTS = 4


def score_table(summary: dict[str, Any]) -> str:
    """Means of every subject, as a table and as bars."""
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
        + figure(
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
        with_interval(model["mean_r"], model["mean_r_interval"]),
        with_interval(ridge.get("mean_r"), ridge.get("mean_r_interval")),
        value_text(chance, "r3"),
        value_text(ceiling, "r3"),
        value_text(model["share_of_ceiling"], "percent"),
        value_text(ridge.get("share_of_ceiling"), "percent"),
        value_text(model["significant_share"], "percent1"),
        value_text(ridge.get("significant_share"), "percent1"),
    ]
    return f"<tr{' class=group' if group else ''}>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def glass_brains(summary: dict[str, Any], results: Sequence[SubjectResult]) -> str:
    """Where the predictions succeed."""
    images, peaks = [], [0.1]
    for result in results[:GLASS_SUBJECTS]:
        systems = [("giblet", result.model)]
        if result.ridge is not None:
            systems.append(("banded ridge", result.ridge))
        for name, system in systems:
            # The highest of many voxels in a row is high by chance alone, so only those that are not chance are shown.
            shown = np.nan_to_num(system.q, nan=1.0) <= FALSE_DISCOVERY_RATE
            values = np.where(shown, np.maximum(np.nan_to_num(system.r), 0.0), 0.0)
            peaks.append(float(np.percentile(values[shown], 99.5)) if shown.any() else 0.0)
            images.append((f"{result.id}  {name}: {shown.sum()} voxels", result.space.image_of(values)))
    maximum = np.ceil(max(peaks) * 10) / 10
    left = len(results) - GLASS_SUBJECTS
    return "<h2>Where in the brain</h2>" + figure(
        figures.glass_brains(images, maximum=float(maximum), label="held-out r"),
        "Voxels predicted better than chance (false discovery rate 5 %): the highest held-out correlation along each "
        "line of sight (left, back, right, top), one colour scale for all. The rest is blank. The outline is the MNI "
        "template and fits data in that space only. "
        + (f"{left} more subjects are in the NIfTI maps. " if left > 0 else "")
        + "All maps are in the folder <code>maps</code> beside this page.",
        raw_caption=True,
    )


def time_courses(summary: dict[str, Any], results: Sequence[SubjectResult]) -> str:
    """The best, a middling and the worst voxel over time."""
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
    return "<h2>True against predicted time courses</h2>" + figure(
        figures.time_courses(traces),
        f"The first held-out stretch ({int(block.sum())} TRs of {summary['dataset']['tr_seconds']:g} s) in three of "
        f"the {len(known)} voxels that the means are taken over, by giblet's correlation. Every line is z-scored: "
        f"correlation ignores level and scale.{signal}",
    )


def _z(series: FloatArray, rows: Any, voxel: int) -> Any:
    values = np.asarray(series[rows, voxel], dtype=np.float64)
    deviation = values.std()
    return (values - values.mean()) / (deviation if deviation > 0 else 1.0)


def voxel_by_voxel(summary: dict[str, Any], results: Sequence[SubjectResult]) -> str:
    """Distributions over voxels, and each voxel against its ceiling."""

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
    page = "<h2>Voxel by voxel</h2>" + figure(
        figures.correlation_histogram(curves),
        f"Distribution of held-out correlations over the {count} voxels that the means are taken over, all subjects.",
    )
    if not known:
        return page
    panels = [("giblet", joined(lambda r: r.ceiling.r), joined(lambda r: r.model.r))]
    if with_ridge:
        panels.append(("banded ridge", joined(lambda r: r.ceiling.r), joined(lambda r: r.ridge.r)))
    return page + figure(
        figures.against_ceiling(panels),
        f"Every voxel of every subject (n = {len(panels[0][1])}): its held-out correlation against its ceiling. On the "
        "line, nothing is left to be explained. Colours count voxels, on a logarithmic scale.",
    )


def _counts(summary: dict[str, Any], key: str) -> str:
    return ", ".join(f"{subject[key]} in {name}" for name, subject in summary["subjects"].items())


def _held_out(summary: dict[str, Any]) -> str:
    return ", ".join(
        f"{span['presentation']}, TRs {span['first_tr']} to {span['end_tr'] - 1}" for span in summary["dataset"]["test"]
    )

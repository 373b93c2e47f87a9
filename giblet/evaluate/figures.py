"""The report's pictures, drawn off screen and returned as bytes ready to be inlined.

Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart; each system keeps its own
throughout. Lines and points are SVG, brains and film frames PNG.
"""

from __future__ import annotations

import base64
import io
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

MODEL, RIDGE, CHANCE, CEILING, SIGNAL = "#0072B2", "#D55E00", "#999999", "#000000", "#009E73"
TERM_COLOURS = {"loss": "#000000", "bold": "#0072B2", "video": "#D55E00", "audio": "#009E73", "text": "#CC79A7"}
WIDTH_INCHES = 9.0
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.hashsalt": "giblet",
}
_lock = threading.Lock()
"""matplotlib's settings and nilearn's plotting are global."""


@dataclass(frozen=True)
class Picture:
    """An image as bytes."""

    data: bytes
    media_type: Literal["image/svg+xml", "image/png"]

    @property
    def data_uri(self) -> str:
        """For the `src` of an image: nothing outside the page is needed."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode('ascii')}"


@contextmanager
def drawing() -> Iterator[None]:
    """Our style, and no other thread that draws."""
    with _lock, matplotlib.rc_context(STYLE):
        yield


def render(figure: Figure, kind: Literal["svg", "png"] = "svg") -> Picture:
    """A figure as bytes, the same each time."""
    stream = io.BytesIO()
    metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(stream, format=kind, dpi=150, metadata=metadata)
    return Picture(stream.getvalue(), "image/svg+xml" if kind == "svg" else "image/png")


def score_bars(rows: Sequence[Mapping[str, Any]]) -> Picture:
    """Mean r of model and baseline with 95 % intervals, between chance and ceiling, a row a subject.

    Each row has `label`, `model`, `ridge`, `chance`, `ceiling` (floats or None) and `model_interval`,
    `ridge_interval` (pairs or None).
    """
    with drawing():
        figure = Figure(figsize=(WIDTH_INCHES, 0.9 + 0.55 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for position, row in enumerate(reversed(rows)):
            if row["ceiling"] is not None:
                axes.barh(position, row["ceiling"], height=0.62, color="#E8E8E8", zorder=0)
                axes.plot([row["ceiling"]] * 2, [position - 0.31, position + 0.31], color=CEILING, lw=1.6)
            for system, colour, offset in (("model", MODEL, 0.14), ("ridge", RIDGE, -0.14)):
                if row[system] is None:
                    continue
                interval = row[f"{system}_interval"]
                if interval is not None:
                    axes.plot(interval, [position + offset] * 2, color=colour, lw=2.2, alpha=0.55)
                axes.plot(row[system], position + offset, "o", color=colour, ms=6)
            if row["chance"] is not None:
                axes.plot(row["chance"], position, "|", color=CHANCE, ms=22, mew=1.6)
        axes.set_yticks(range(len(rows)), [row["label"] for row in reversed(rows)])
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("mean correlation r over responsive voxels, held-out TRs")
        axes.axvline(0, color="#BBBBBB", lw=0.8, zorder=0)
        handles = [
            axes.plot([], [], "o", color=MODEL)[0],
            axes.plot([], [], "o", color=RIDGE)[0],
            axes.plot([], [], "|", color=CHANCE, ms=10, mew=1.6)[0],
        ]
        labels = ["giblet", "banded ridge", "chance"]
        if any(row["ceiling"] is not None for row in rows):
            handles.append(axes.plot([], [], "|", color=CEILING, ms=10, mew=1.6)[0])
            labels.append("ceiling")
        figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
        return render(figure)


def glass_brains(images: Sequence[tuple[str, Any]], *, maximum: float, label: str) -> Picture:
    """Glass brains of NIfTI images (title, image) on one common scale from 0 to `maximum`, one below the other."""
    from nilearn.plotting import plot_glass_brain

    with drawing():
        figure = Figure(figsize=(WIDTH_INCHES, 2.35 * len(images)))
        figure.set_canvas(FigureCanvasAgg(figure))
        for index, (title, image) in enumerate(images):
            height = 1.0 / len(images)
            bottom = 1.0 - (index + 1) * height
            axes = figure.add_axes((0.0, bottom, 0.90, height * 0.92))
            with warnings.catch_warnings():
                # nilearn warns of NaN outside the mask, and that a colour bar cannot be laid out by the figure.
                warnings.simplefilter("ignore")
                plot_glass_brain(
                    image,
                    figure=figure,
                    axes=axes,
                    display_mode="lyrz",
                    colorbar=False,
                    threshold=0.05 * maximum,
                    vmin=0.0,
                    vmax=maximum,
                    cmap="YlGnBu",
                    plot_abs=False,
                    symmetric_cbar=False,
                    annotate=index == 0,
                )
            figure.text(0.005, bottom + height * 0.93, title, weight="bold", size=9.5, va="top")
        scale = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0.0, maximum), "YlGnBu")
        bar = figure.add_axes((0.915, 0.25, 0.013, 0.5))
        figure.colorbar(scale, cax=bar, label=label)
        return render(figure, "png")


def learning_curves(history: Mapping[str, Mapping[str, Sequence[float]]]) -> Picture | None:
    """Losses per epoch, training and validation side by side; None where the history has no curve to draw."""
    drawn = [
        (split, history[split]) for split in ("train", "validation") if len(history.get(split, {}).get("epoch", []))
    ]
    if not drawn:
        return None
    with drawing():
        figure = Figure(figsize=(WIDTH_INCHES, 2.9), layout="constrained")
        panels = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
        for axes, (split, curves) in zip(panels, drawn, strict=True):
            for term, colour in TERM_COLOURS.items():
                if term in curves:
                    width = 2.0 if term in ("bold", "loss") else 1.2
                    style = "--" if term == "loss" else "-"
                    name = "BOLD" if term == "bold" else {"loss": "weighted sum"}.get(term, term)
                    axes.plot(curves["epoch"], curves[term], style, color=colour, lw=width, label=name)
            axes.axhline(1.0, color="#BBBBBB", lw=0.8, zorder=0)
            axes.set_title("training" if split == "train" else "validation")
            axes.set_xlabel("epoch")
        panels[0].set_ylabel("loss relative to a constant guess")
        top = max(np.nanmax([v for t, v in c.items() if t in TERM_COLOURS], initial=1.0) for _, c in drawn)
        panels[0].set_ylim(0.0, min(float(top) * 1.05, 3.0))
        panels[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return render(figure)


@dataclass(frozen=True)
class Trace:
    """One voxel's held-out time courses, each z-scored: (T,) against `seconds` (T,), NaN between blocks."""

    title: str
    seconds: NDArray[np.floating]
    bold: NDArray[np.floating]
    model: NDArray[np.floating]
    ridge: NDArray[np.floating] | None
    signal: NDArray[np.floating] | None


def time_courses(traces: Sequence[Trace]) -> Picture:
    """BOLD, prediction, baseline and (simulated data) the true signal of a few voxels, a panel a voxel."""
    with drawing():
        figure = Figure(figsize=(WIDTH_INCHES, 0.5 + 1.55 * len(traces)), layout="constrained")
        panels = figure.subplots(len(traces), 1, sharex=True, squeeze=False)[:, 0]
        for axes, trace in zip(panels, traces, strict=True):
            axes.plot(trace.seconds, trace.bold, color="#BBBBBB", lw=1.0, label="BOLD")
            if trace.signal is not None:
                axes.plot(trace.seconds, trace.signal, color=SIGNAL, lw=1.2, ls=":", label="true signal")
            if trace.ridge is not None:
                axes.plot(trace.seconds, trace.ridge, color=RIDGE, lw=1.1, label="banded ridge")
            axes.plot(trace.seconds, trace.model, color=MODEL, lw=1.6, label="giblet")
            axes.set_title(trace.title)
            axes.set_ylabel("z")
        panels[-1].set_xlabel("seconds of the held-out run")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
        return render(figure)


def against_ceiling(panels: Sequence[tuple[str, NDArray[np.floating], NDArray[np.floating]]]) -> Picture:
    """r of each voxel against its ceiling, as a density: (title, ceiling (V,), r (V,)) a panel."""
    with drawing():
        figure = Figure(figsize=(WIDTH_INCHES, 3.6), layout="constrained")
        every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        mesh: Any = None
        for axes, (title, ceiling, r) in zip(every, panels, strict=True):
            known = np.isfinite(ceiling) & np.isfinite(r)
            mesh = axes.hexbin(
                ceiling[known], r[known], gridsize=45, bins="log", mincnt=1, cmap="cividis_r", extent=(0, 1, -0.5, 1)
            )
            axes.plot([0, 1], [0, 1], color="black", lw=0.9)
            axes.axhline(0, color="#BBBBBB", lw=0.8, zorder=0)
            axes.set_title(title)
            axes.set_xlabel("ceiling r")
            axes.set_xlim(0, 1)
            axes.set_ylim(-0.5, 1)
        every[0].set_ylabel("held-out r")
        figure.colorbar(mesh, ax=every, label="voxels")
        return render(figure)


def correlation_histogram(curves: Sequence[tuple[str, str, NDArray[np.floating]]]) -> Picture:
    """Densities of r over voxels: (label, colour, r) each."""
    with drawing():
        figure = Figure(figsize=(WIDTH_INCHES, 2.7), layout="constrained")
        axes = figure.subplots()
        edges = np.linspace(-0.6, 1.0, 81).tolist()
        for label, colour, values in curves:
            kept = values[np.isfinite(values)]
            axes.hist(kept, edges, density=True, histtype="step", color=colour, lw=1.6, label=label)
        axes.axvline(0, color="#BBBBBB", lw=0.8, zorder=0)
        axes.set_xlabel("held-out r of a voxel")
        axes.set_ylabel("density of voxels")
        axes.legend(loc="upper right")
        return render(figure)


def film_frames(pairs: Sequence[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]) -> Picture:
    """Frames of the film above what the model rebuilt: (title, true, rebuilt), each uint8 (H,W,3)."""
    height, width = pairs[0][1].shape[:2]
    cell = WIDTH_INCHES / len(pairs)
    with drawing():
        figure = Figure(figsize=(WIDTH_INCHES, 2 * cell * height / width + 0.45), layout="constrained")
        cells = figure.subplots(2, len(pairs), squeeze=False)
        for column, (title, *frames) in enumerate(pairs):
            for axes, frame in zip(cells[:, column], frames, strict=True):
                axes.imshow(frame, interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
                axes.spines[:].set_visible(False)
            cells[0, column].set_title(title, fontweight="normal", loc="center")
        cells[0, 0].set_ylabel("film")
        cells[1, 0].set_ylabel("rebuilt")
        return render(figure, "png")

"""docs/images/scale-*.png: how what was measured grows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scale.report import Found

matplotlib.use("Agg")


def draw(found: Found, folder: Path) -> list[Path]:
    """One figure a part that has results; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for part, figure_of in (("checkpoint", _checkpoint), ("cluster", _cluster)):
        if found[part]:
            file = folder / f"scale-{part}.png"
            figure_of(found[part]).savefig(file, dpi=110)
            drawn.append(file)
    return drawn


def _checkpoint(results: list[dict[str, Any]]) -> Figure:
    ranks = [result["world_size"] for result in results]
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    size, seconds, requests = figure.subplots(1, 3)
    _lines(size, ranks, {
        "manifest": [result["manifest_bytes"] / 1e6 for result in results],
        "sent to the first rank, first save": [r["steps"]["first save"]["gathered_bytes"] / 1e6 for r in results],
        "sent to it, later saves": [r["steps"]["next save"]["gathered_bytes"] / 1e6 for r in results],
    }, "MB")  # fmt: skip
    _lines(seconds, ranks, {
        "training waits, first save": _seconds(results, "first save", "stall"),
        "training waits, later saves": _seconds(results, "next save", "stall"),
        "first rank in the background": _seconds(results, "next save", "background"),
        "resume, first rank": _seconds(results, "resume", "load"),
    }, "processor seconds, no bytes moved")  # fmt: skip
    counts = {name: [r["steps"]["next save"]["requests"].get(name, 0) for r in results] for name in _OPERATIONS}
    _lines(requests, ranks, {label: counts[name] for name, label in _OPERATIONS.items()}, "requests a save")
    for axes in (size, seconds, requests):
        axes.set_xlabel("ranks")
    return figure


_OPERATIONS = {
    "UploadPart": "parts (32 MiB)",
    "CreateMultipartUpload": "uploads begun (and completed)",
    "HeadObject": "HEAD",
    "DeleteObject": "DELETE (retention)",
    "ListObjectsV2": "LIST",
}


def _cluster(results: list[dict[str, Any]]) -> Figure:
    workers = [result["workers"] for result in results]
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    seconds, calls = figure.subplots(1, 2)
    _lines(seconds, workers, {
        "install → all bound": [r["seconds_to_all_pods"] for r in results],
        "uninstall": [r["stages"]["uninstall"]["seconds"] for r in results],
        "one worker replaced": [r["stages"]["one worker lost"]["seconds"] for r in results],
    }, "seconds")  # fmt: skip
    stages = results[0]["stages"]
    _lines(
        calls,
        workers,
        {name: [sum(r["stages"][name]["calls"].values()) for r in results] for name in stages},
        "writes to the API",
    )
    for axes in (seconds, calls):
        axes.set_xlabel("workers of 8 GPUs")
    return figure


def _seconds(results: list[dict[str, Any]], step: str, name: str) -> list[float]:
    return [result["steps"][step]["readings"][name]["processor_seconds"] for result in results]


def _lines(axes: Axes, x: Sequence[float], lines: dict[str, list[float]], unit: str) -> None:
    for label, values in lines.items():
        axes.plot(x, values, marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_xticks(list(x), [f"{value:,}" for value in x])
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)

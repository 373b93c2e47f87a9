"""Draws a dashboard's curves from a Prometheus's answers, where there is no Grafana.

PYTHONPATH=ci python -m dashboards.picture http://localhost:9090 giblet-run out.png --namespace lab --run movie
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib

matplotlib.use("Agg")
from matplotlib import dates, pyplot

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parents[1] / "helm/giblet/files/monitoring"
COLUMNS = 3
Curve: TypeAlias = tuple[str, list[tuple[float, float]]]
"""Its legend, and (Unix seconds, value) of each point."""


def main() -> None:
    """Ask for each panel of curves, and draw those that have an answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prometheus", help="its address")
    parser.add_argument("board", choices=sorted(path.stem for path in FOLDER.glob("*.json")))
    parser.add_argument("out", type=Path)
    parser.add_argument("--namespace", default=".*")
    parser.add_argument("--run", default=".*")
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args()
    board = json.loads((FOLDER / f"{options.board}.json").read_text(encoding="utf-8"))
    answered = []
    for panel in board["panels"]:
        if panel["type"] == "timeseries" and (curves := ask(panel, options)):
            answered.append((panel["title"], curves))
    draw(answered, options.out)


def ask(panel: dict[str, Any], options: argparse.Namespace) -> list[Curve]:
    """The curves of a panel."""
    now, curves = time.time(), []
    variables = {"$__rate_interval": "1m", "$namespace": options.namespace, "$run": options.run}
    for target in panel["targets"]:
        query = target["expr"]
        for name, value in variables.items():
            query = query.replace(name, value)
        asked = {"query": query, "start": now - options.minutes * 60, "end": now, "step": options.minutes * 60 / 300}
        with urllib.request.urlopen(
            f"{options.prometheus}/api/v1/query_range?{urllib.parse.urlencode(asked)}", timeout=60
        ) as answer:
            found = json.load(answer)["data"]["result"]
        for series in found:
            legend = target["legendFormat"]
            for name, value in series["metric"].items():
                legend = legend.replace(f"{{{{{name}}}}}", value)
            curves.append((legend, [(float(at), float(value)) for at, value in series["values"]]))
    return curves


def draw(panels: list[tuple[str, list[Curve]]], out: Path) -> None:
    """One small plot a panel."""
    rows = -(-len(panels) // COLUMNS)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(5 * COLUMNS, 2.6 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, curves) in zip(axes.flat, panels, strict=False):
        for legend, points in curves:
            days = [at / 86400 for at, _ in points]
            axis.plot(days, [value for _, value in points], label=legend, linewidth=1.2, marker=".", markersize=2)
        axis.set_title(title, fontsize=9, loc="left")
        axis.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))  # type: ignore[no-untyped-call]
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=6, loc="best", frameon=False)
    figure.tight_layout()
    figure.savefig(out, dpi=90)


if __name__ == "__main__":
    main()

"""The page's table of every tensor: its numbers, how its values lie, and how far it moved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape

import numpy as np

from giblet.verify import spark
from giblet.verify.difference import TensorDifference
from giblet.verify.distribution import COUNTED_ELEMENTS, STRIDE, Distribution, are_codes
from giblet.verify.report import Report
from giblet.verify.statistics import Array, TensorStatistics
from giblet.verify.wording import number, share_text

MOST_ROWS = 2000
"""Of more tensors than so many, the page has those at fault and the first."""

MOST_MARKED = 40
_COLUMNS = 44
_FEWEST_SHOWN = 8
"""Elements that make a picture."""
_TAIL = 0.0005
"""Share of the elements that the picture of the values leaves out at either end."""

_LOWEST, _HIGHEST = -16, 12
_GROUPS = {"model": "Weights", "optimizer": "Optimizer state", "other": "Other tensors"}


@dataclass(frozen=True)
class Highlights:
    """The tensors that a check names: of one that failed, and of one that warns."""

    faults: frozenset[str]
    alerts: frozenset[str]

    @classmethod
    def of(cls, report: Report) -> Highlights:
        """From the checks of a report."""

        def named(status: str) -> frozenset[str]:
            return frozenset(name for check in report.checks if check.status == status for name in check.tensors)

        return cls(named("failed"), named("warning"))

    def kind(self, name: str) -> str:
        """The class of a tensor's row."""
        return "fault" if name in self.faults else "alert" if name in self.alerts else ""


def layer_tables(report: Report, highlights: Highlights, changes: dict[str, TensorDifference]) -> str:
    """One table for each group of tensors; a long one of the optimizer is folded."""
    if not report.records:
        return ""
    members: dict[str, list[str]] = {}
    for name in report.records:
        members.setdefault(report.kinds.get(name, "other"), []).append(name)
    tables = [_group(report, kind, names, highlights, changes) for kind, names in sorted(members.items())]
    return "<h2>Every tensor</h2>" + _legend(report) + "".join(tables)


def marked_table(report: Report, highlights: Highlights, changes: dict[str, TensorDifference]) -> str:
    """The tensors that a check names, on top; nothing where there are none."""
    marked = [name for name in report.records if highlights.kind(name)]
    if not marked:
        return ""
    marked.sort(key=lambda name: highlights.kind(name) != "fault")
    more = f"<p class=soft>and {len(marked) - MOST_MARKED:,} more</p>" if len(marked) > MOST_MARKED else ""
    title = f"<h2>Named by a check: {len(marked):,} tensor{'s' * (len(marked) != 1)}</h2>"
    return title + _table(report, marked[:MOST_MARKED], highlights, changes) + more


def _legend(report: Report) -> str:
    sampled = any(one.stride > 1 for one in report.distributions.values())
    return (
        '<p class="soft">Blue: the values themselves, between the ends written below them, which leave out '
        f"{_TAIL * 100:g} % at either side; the dashed line is zero. Green: the same elements by order of magnitude, "
        "on one scale for all tensors of a table; the short black stroke is the largest |x|. Mean and deviation "
        "are of the finite elements."
        + (
            f" Pictures of tensors of more than {COUNTED_ELEMENTS:,} elements are of every {STRIDE}th; all numbers are "
            "of all."
            if sampled
            else ""
        )
        + "</p>"
    )


def _axis(distributions: Iterable[Distribution]) -> tuple[int, int]:
    """Powers of ten between which nearly all magnitudes lie."""
    grid = np.arange(_LOWEST, _HIGHEST + 1)
    total = np.zeros(len(grid) - 1)
    for one in distributions:
        if not are_codes(one.form):
            total = np.maximum(total, one.magnitudes(grid))
    seen = np.flatnonzero(total > 1e-3)
    return (int(grid[seen[0]]), int(grid[seen[-1] + 1])) if seen.size else (-8, 2)


def _group(
    report: Report, kind: str, names: list[str], highlights: Highlights, changes: dict[str, TensorDifference]
) -> str:
    marked = [name for name in names if highlights.kind(name)]
    shown = names if len(names) <= MOST_ROWS else list(dict.fromkeys((*marked, *names)))[:MOST_ROWS]
    more = f"<p class=soft>and {len(names) - len(shown):,} more</p>" if len(shown) < len(names) else ""
    title = f"{_GROUPS.get(kind, kind)}: {len(names):,} tensors" + (f", {len(marked):,} marked" if marked else "")
    unfolded = " open" if kind == "model" else ""
    table = _table(report, shown, highlights, changes)
    return f"<details{unfolded}><summary>{title}</summary>{table}{more}</details>"


def _table(report: Report, names: list[str], highlights: Highlights, changes: dict[str, TensorDifference]) -> str:
    axis = _axis(report.distributions[name] for name in names if name in report.distributions)
    head = (
        "<thead><tr><th>tensor</th><th>zero</th><th>mean ± deviation</th><th>largest |x|</th><th>values</th>"
        f"<th>magnitude {spark.decades(*axis)}</th>{'<th>relative change</th>' if changes else ''}</tr></thead>"
    )
    rows = "".join(_row(report, name, highlights.kind(name), changes, axis) for name in names)
    return f'<table class="layers">{head}{rows}</table>'


def _row(
    report: Report, name: str, kind: str, changes: dict[str, TensorDifference], axis: tuple[int, int]
) -> str:  # fmt: skip
    record, found = report.records[name], report.statistics[name]
    shape = " × ".join(f"{size:,}" for size in record.shape) or "scalar"
    cells = [
        ("", f"{tensor_name(name)}<br><small>{shape} · {record.dtype}</small>{_counts(found)}"),
        ("zero", share_text(found.zero, found.elements) if found.elements else "–"),
        ("mean ± deviation", f"{number(found.mean)} <small>± {number(found.std)}</small>" if found.finite else "–"),
        ("largest |x|", number(found.absmax) if found.finite else "–"),
        *_pictures(report.distributions.get(name), found, axis),
    ]
    if changes:
        cells.append(("relative change", _change(changes.get(name))))
    columns = "".join(f'<td data-label="{label}">{text}</td>' if label else f"<td>{text}</td>" for label, text in cells)
    attribute = f' class="{kind}"' if kind else ""
    return f"<tr{attribute}>{columns}</tr>"


def tensor_name(name: str) -> str:
    """A name whose last two parts stand out."""
    parts = name.split(".")
    front, back = ".".join(parts[:-2]), ".".join(parts[-2:])
    prefix = f"<i>{escape(front)}.</i>" if front else ""
    return f'<span class="name">{prefix}{escape(back)}</span>'


def _counts(found: TensorStatistics) -> str:
    counts = ((found.nan, "NaN"), (found.inf, "Inf"), (found.over_limit, "beyond the limit"))
    return "".join(f' <small><b class="bad">{count:,} {what}</b></small>' for count, what in counts if count)


def _pictures(one: Distribution | None, found: TensorStatistics, axis: tuple[int, int]) -> Iterator[tuple[str, str]]:
    if one is None or found.finite < _FEWEST_SHOWN:
        yield from (("values", ""), ("magnitude", ""))
        return
    yield "values", "<small>all zero</small>" if found.all_zero else _values(one)
    yield "magnitude", "" if are_codes(one.form) or found.all_zero else _magnitude(one, found, axis)


def _values(one: Distribution) -> str:
    codes = are_codes(one.form)
    quantiles = one.quantiles((_TAIL, 1 - _TAIL))
    if not quantiles:
        return ""
    low, high = quantiles
    if codes:
        low, high = (-128, 127) if one.form.name == "int8" else (0, 255)
    margin = 0.5 if codes else (high - low) * 0.02 or max(abs(high) * 0.1, 1e-30)
    bounds: Array = np.linspace(low - margin, high + margin, 64 + 1 if codes else _COLUMNS + 1)
    zero = None if codes else -float(bounds[0]) / float(bounds[-1] - bounds[0])
    picture = spark.histogram(one.shares(bounds), "values", f"values from {number(low)} to {number(high)}", zero=zero)
    return f'{picture}<div class="range"><span>{number(low)}</span><span>{number(high)}</span></div>'


def _magnitude(one: Distribution, found: TensorStatistics, axis: tuple[int, int]) -> str:
    low, high = axis
    shares = one.magnitudes(np.linspace(low, high, 4 * (high - low) + 1))
    peak = (math.log10(found.absmax) - low) / (high - low) if found.absmax else None
    return spark.histogram(
        shares, "levels", f"magnitudes up to {number(found.absmax)}", peak=None if peak is None else min(peak, 1.0)
    )


def _change(change: TensorDifference | None) -> str:
    if change is None:
        return "<small>new</small>"
    if not change.changed:
        return "<small>none</small>"
    text = number(change.relative)
    return f"{spark.bar(change_level(change.relative), text)}<small>{text}</small>"


def change_level(relative: float) -> float:
    """Where a relative change lies between one millionth (0) and all of it (1), by its logarithm."""
    if not math.isfinite(relative):
        return 1.0
    return (math.log10(relative) + 6) / 6 if relative > 0 else 0.0

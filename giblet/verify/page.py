"""The report as one HTML page that needs nothing but itself: no script, no picture, no address is asked for.

write_page(path, report, compare(report))
"""

from __future__ import annotations

from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import giblet
from giblet.verify.page_layers import Highlights, change_level, layer_tables, marked_table, tensor_name
from giblet.verify.previous import Comparison
from giblet.verify.report import Report
from giblet.verify.spark import bar
from giblet.verify.wording import in_bytes, number, share_text, time_text

_WORDS = {"passed": "passed", "warning": "warns", "failed": "failed", "skipped": "not made"}
_BADGES = {"SAFE": "passed", "SAFE WITH WARNINGS": "warning", "UNSAFE": "failed"}
_MOST_CHANGED = 10
_STATE_VALUES = 40


def write_page(path: Path, report: Report, comparison: Comparison) -> Path:
    """Write the page of `report`; returns `path`. `report` has distributions only if `verify` was asked for them."""
    highlights = Highlights.of(report)
    found = comparison.difference
    changes = {one.name: one for one in found.tensors} if found is not None else {}
    parts = (
        _headline(report),
        _checks(report),
        marked_table(report, highlights, changes),
        _zeros(report),
        _change(report, comparison),
        layer_tables(report, highlights, changes),
        _state(report),
        _provenance(report, comparison),
    )
    template = Template(resources.files("giblet.verify").joinpath("page.html").read_text(encoding="utf-8"))
    title = f"{report.verdict}: {_subject(report)}"
    path.write_text(
        template.substitute(title=escape(title), body="\n".join(part for part in parts if part)), encoding="utf-8"
    )
    return path


def _subject(report: Report) -> str:
    name = report.run or report.url.rstrip("/").rpartition("/")[2]
    return name if report.step is None else f"{name}, step {report.step:,}"


def _headline(report: Report) -> str:
    elements = sum(record.elements for record in report.records.values())
    counts = [(report.total(name), label) for name, label in (
        ("nan", "NaN"), ("inf", "infinities"), ("over_limit", "beyond the limit"),
    )]  # fmt: skip
    keys = [
        (f"{len(report.records):,}", "tensors", ""),
        (f"{elements:,}", "elements", ""),
        (in_bytes(report.bytes_read), f"read back in {time_text(report.seconds)}", ""),
        *((f"{count:,}", label, "bad" if count else "") for count, label in counts),
        (share_text(report.total("zero"), elements), "of all elements are zero", ""),
    ]
    boxes = "".join(
        f'<div><span class="key {kind}">{escape(text)}</span><small>{escape(label)}</small></div>'
        for text, label, kind in keys
    )
    return (
        f'<span class="verdict {_BADGES[report.verdict]}">{report.verdict}</span><h1>{escape(_subject(report))}</h1>'
        f'<div class="address">{escape(report.url)}</div><p class="lead">{escape(_in_words(report))}</p>'
        f'<div class="keys">{boxes}</div>'
    )


def _in_words(report: Report) -> str:
    failed = [check.name for check in report.checks if check.status == "failed"]
    warning = [check.name for check in report.checks if check.status == "warning"]
    skipped = [check.name for check in report.checks if check.status == "skipped"]
    read = f"Every one of {report.bytes_read:,} bytes was read back."
    left = f" Not made: {', '.join(skipped)}." if skipped else ""
    if failed:
        return f"Do not build on these weights. Failed: {', '.join(failed)}." + left
    if warning:
        return f"{read} No check failed; look at what warns: {', '.join(warning)}." + left
    return f"{read} No check found anything wrong." + left


def _checks(report: Report) -> str:
    rows = "".join(
        f'<tr><td>{escape(check.name)}</td><td><span class="mark {check.status}">{_WORDS[check.status]}</span></td>'
        f"<td>{escape(check.detail)}</td></tr>"
        for check in report.checks
    )
    notes = "".join(f'<p class="note">Note: {escape(note)}.</p>' for note in report.notes)
    return f'<h2>Checks</h2><table class="words">{rows}</table>{notes}'


def _zeros(report: Report) -> str:
    zero = report.zero_tensors
    if not zero:
        return ""
    open_ones = set(report.check("dead").tensors)
    unexplained = [name for name in zero if name in open_ones]
    explained = [name for name in zero if name not in open_ones]
    head = f"<h2>Tensors that are all zero: {len(zero):,}, of which {len(unexplained):,} unexplained</h2>"
    folded = _zero_table(report, explained, open_ones)
    if len(explained) > 2 * _MOST_CHANGED:
        folded = f"<details><summary>{len(explained):,} that are explained</summary>{folded}</details>"
    return head + _zero_table(report, unexplained, open_ones) + folded


def _zero_table(report: Report, names: list[str], unexplained: set[str]) -> str:
    rows = "".join(
        f"{_row_start(name in unexplained)}<td>{tensor_name(name)}</td><td>{report.records[name].elements:,}</td>"
        f"<td>{escape(_why_zero(report, name, name in unexplained))}</td></tr>"
        for name in names
    )
    return f'<table class="words"><tr><th>tensor</th><th>elements</th><th>why</th></tr>{rows}</table>' if rows else ""


def _row_start(fault: bool) -> str:
    return '<tr class="fault">' if fault else "<tr>"


def _why_zero(report: Report, name: str, unexplained: bool) -> str:
    if unexplained:
        return "nothing in the architecture explains it"
    if name.startswith("optim"):
        return "state of a parameter that has no gradient" if report.step else "optimizer state"
    if report.step == 0:
        return "nothing has been trained yet, and it starts at zero"
    if name.endswith("running_mean"):
        return "mean of a code whose own shift is zero"
    if name.endswith(".bias"):
        return "a shift that the norm behind it takes out again: no gradient reaches it, so that it stays at zero"
    return "allowed by the architecture"


def _change(report: Report, comparison: Comparison) -> str:
    found = comparison.difference
    if found is None:
        return f'<h2>Change</h2><p class="note">{escape(comparison.note)}.</p>' if comparison.note else ""
    changed = [one for one in found.tensors if one.changed]
    same = len(found.tensors) - len(changed)
    weights = [one for one in changed if report.kinds.get(one.name) == "model"] or changed
    rows = sorted(weights, key=lambda one: -one.relative)
    step = "" if found.first.step is None else f"step {found.first.step:,}, "
    lead = (
        f"Since {step}<code>{escape(found.first.url)}</code>: {len(changed):,} tensors changed, {same:,} did not"
        + "".join(
            f"; {len(names):,} {what} ({escape(names[0])}{', …' if len(names) > 1 else ''})"
            for what, names in (
                ("are new", found.only_second), ("are gone", found.only_first), ("have another shape", found.reshaped),
            )
            if names
        )
        + "."
    )  # fmt: skip
    table = "".join(
        f'<tr><td>{tensor_name(one.name)}</td><td data-label="elements changed">'
        f'{share_text(one.changed, one.elements)}</td><td data-label="largest change">{number(one.largest)}</td>'
        f'<td data-label="relative change">{bar(change_level(one.relative), number(one.relative))}</td>'
        f'<td data-label="">{number(one.relative)}</td></tr>'
        for one in rows[:_MOST_CHANGED]
    )
    return f"<h2>Change</h2><p>{lead}</p>" + (
        '<table class="layers"><thead><tr><th>weights that changed most</th><th>elements changed</th><th>largest change'
        f"</th><th></th><th>relative change</th></tr></thead>{table}</table>"
        '<p class="soft">Relative change: ‖new − old‖ / ‖old‖. Bars are logarithmic, from one millionth to 1.</p>'
        if rows
        else ""
    )


def _state(report: Report) -> str:
    facts = list(_leaves(report.state))
    if not facts:
        return ""
    more = f"<p class=soft>and {len(facts) - _STATE_VALUES:,} more</p>" if len(facts) > _STATE_VALUES else ""
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in facts[:_STATE_VALUES])
    scores = "".join(
        f"<tr><td>recomputed {escape(name)}</td><td>{number(value)}</td></tr>" for name, value in report.scores.items()
    )
    return f'<h2>What it says of its training</h2><table class="words">{rows}{scores}</table>{more}'


def _leaves(tree: Any, path: str = "") -> Any:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{path}{name}.")
        elif isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
            yield f"{path}{name}", ", ".join(value)
        elif value is None or isinstance(value, (bool, int, float, str)):
            plain = number(value) if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
            yield f"{path}{name}", plain


def _provenance(report: Report, comparison: Comparison) -> str:
    facts = [
        ("address", report.url),
        ("kind", report.kind),
        ("run", report.run),
        ("attempt", report.attempt),
        ("compared with", comparison.difference.first.url if comparison.difference is not None else None),
        ("judged", _when(report.judged_unix_seconds)),
        ("with", f"giblet {giblet.__version__}"),
    ]
    rows = "".join(f"<tr><td>{name}</td><td>{escape(str(value))}</td></tr>" for name, value in facts if value)
    return f'<h2>Provenance</h2><table class="words">{rows}</table>'


def _when(unix_seconds: float) -> str:
    import datetime

    moment = datetime.datetime.fromtimestamp(unix_seconds, datetime.UTC)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"

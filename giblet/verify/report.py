"""What verification found: the report, its JSON, and its table for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from giblet.errors import EXIT_OK, EXIT_UNSAFE
from giblet.verify.distribution import Distribution
from giblet.verify.sources import TensorRecord
from giblet.verify.statistics import TensorStatistics
from giblet.verify.wording import in_bytes, time_text

Verdict = Literal["SAFE", "SAFE WITH WARNINGS", "UNSAFE"]
Status: TypeAlias = Literal["passed", "warning", "failed", "skipped"]
FORMAT = "giblet.report/1"
VERDICT_NUMBERS: dict[Verdict, int] = {"UNSAFE": 0, "SAFE WITH WARNINGS": 1, "SAFE": 2}
_SHOWN_NAMES = 12
_COLOURS = {"passed": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}
_VERDICT_COLOURS = {"SAFE": "bold green", "SAFE WITH WARNINGS": "bold yellow", "UNSAFE": "bold white on red"}


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table in DESIGN: what was asked, and what came of it. `tensors` are those at fault."""

    name: str
    status: Status
    detail: str
    tensors: tuple[str, ...] = ()

    @property
    def ok(self) -> bool | None:
        """True, False, or None where the check was not made."""
        return None if self.status == "skipped" else self.status != "failed"

    def to_json(self) -> dict[str, Any]:
        """As it stands in the report."""
        return {
            "name": self.name, "ok": self.ok, "status": self.status, "detail": self.detail,
            "tensors": list(self.tensors),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Group:
    """Totals of one kind of tensor: the model's weights, the optimizer's state, or what else there is."""

    tensors: int
    elements: int
    nan_elements: int
    inf_elements: int
    zero_elements: int
    over_limit_elements: int
    zero_tensors: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """The result of `verify`."""

    url: str
    kind: str
    step: int | None
    checks: tuple[Check, ...]
    records: Mapping[str, TensorRecord]
    statistics: Mapping[str, TensorStatistics]
    groups: Mapping[str, Group]
    bytes_read: int
    seconds: float
    run: str | None = None
    attempt: str | None = None
    notes: tuple[str, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    state: Mapping[str, Any] = field(default_factory=dict)
    judged_unix_seconds: float = 0.0
    signed_by: str | None = None
    """The fingerprint of the key that this report's checkpoint was signed with, as it was recorded."""
    manifest_bytes: bytes | None = field(default=None, repr=False)
    """The manifest that was judged: what a signature is of."""
    kinds: Mapping[str, str] = field(default_factory=dict)
    """Which of the groups each tensor belongs to."""
    distributions: Mapping[str, Distribution] = field(default_factory=dict)
    """Of each tensor, where they were asked for."""

    @property
    def verdict(self) -> Verdict:
        """UNSAFE if any check failed, SAFE WITH WARNINGS if any warns, else SAFE."""
        statuses = {check.status for check in self.checks}
        if "failed" in statuses:
            return "UNSAFE"
        return "SAFE WITH WARNINGS" if "warning" in statuses else "SAFE"

    @property
    def exit_code(self) -> int:
        """0, or 1 for UNSAFE."""
        return EXIT_UNSAFE if self.verdict == "UNSAFE" else EXIT_OK

    @property
    def zero_tensors(self) -> list[str]:
        """Names of the tensors that are all zero, explained or not."""
        return [name for name, found in self.statistics.items() if found.all_zero]

    def total(self, count: str) -> int:
        """The sum of one count of `TensorStatistics` over all tensors."""
        return sum(getattr(found, count) for found in self.statistics.values())

    def check(self, name: str) -> Check:
        """A check by its name; raises `KeyError`."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; numbers that JSON lacks are None."""
        return {
            "format": FORMAT,
            "verdict": self.verdict,
            "url": self.url,
            "kind": self.kind,
            "run": self.run,
            "step": self.step,
            "attempt": self.attempt,
            "tensors": len(self.records),
            "elements": sum(record.elements for record in self.records.values()),
            "bytes": self.bytes_read,
            "nan_elements": self.total("nan"),
            "inf_elements": self.total("inf"),
            "over_limit_elements": self.total("over_limit"),
            "zero_elements": self.total("zero"),
            "zero_tensors": self.zero_tensors,
            "seconds": round(self.seconds, 3),
            "judged_unix_seconds": round(self.judged_unix_seconds, 3),
            "signed_by": self.signed_by,
            "checks": [check.to_json() for check in self.checks],
            "scores": {name: _number(value) for name, value in self.scores.items()},
            "notes": list(self.notes),
            "state": _plain(self.state),
            "groups": {name: _group_json(group) for name, group in self.groups.items()},
            "statistics": {name: _tensor_json(self.records[name], found) for name, found in self.statistics.items()},
        }


def _group_json(group: Group) -> dict[str, Any]:
    return {name: getattr(group, name) for name in Group.__slots__} | {"zero_tensors": list(group.zero_tensors)}


def _tensor_json(record: TensorRecord, found: TensorStatistics) -> dict[str, Any]:
    return {
        "dtype": record.dtype, "shape": list(record.shape), "elements": record.elements,
        "nan": found.nan, "inf": found.inf, "over_limit": found.over_limit, "zero": found.zero,
        "absmax": _number(found.absmax), "mean": _number(found.mean), "std": _number(found.std),
    }  # fmt: skip


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return _number(value)
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def named(names: Iterable[str]) -> str:
    """The first dozen names, and how many more there are."""
    listed = list(names)
    more = len(listed) - _SHOWN_NAMES
    return ", ".join(listed[:_SHOWN_NAMES]) + (f", and {more} more" if more > 0 else "")


def render(report: Report, console: Console) -> None:
    """Print the report as tables for a person."""
    step = "" if report.step is None else f", step {report.step:,}"
    console.print(f"[bold]{escape(report.url)}[/bold] ({report.kind}{step})", highlight=False)
    checks = Table("check", "", "what was found", box=None, pad_edge=False, header_style="dim")
    for check in report.checks:
        colour = _COLOURS[check.status]
        checks.add_row(check.name, f"[{colour}]{check.status}[/{colour}]", escape(check.detail))
    console.print(checks)
    counts = Table(
        "tensors of", "count", "elements", "NaN", "Inf", "over limit", "zero", "all zero",
        box=None, pad_edge=False, header_style="dim",
    )  # fmt: skip
    for name, group in report.groups.items():
        numbers = (
            group.tensors, group.elements, group.nan_elements, group.inf_elements, group.over_limit_elements,
            group.zero_elements, len(group.zero_tensors),
        )  # fmt: skip
        counts.add_row(name, *(f"{number:,}" for number in numbers))
    console.print(counts)
    _render_offenders(report, console)
    for note in report.notes:
        console.print(f"[dim]note: {escape(note)}[/dim]", highlight=False)
    rate = report.bytes_read / max(report.seconds, 1e-9) / 1e9
    console.print(
        f"[{_VERDICT_COLOURS[report.verdict]}] {report.verdict} [/] {in_bytes(report.bytes_read)} read back in "
        f"{time_text(report.seconds)}" + (f" ({rate:.1f} GB/s)" if report.bytes_read >= 1e9 else ""),
        highlight=False,
    )


def _render_offenders(report: Report, console: Console) -> None:
    """The tensors at fault by name, with their numbers; a few of each check."""
    names = dict.fromkeys(
        name
        for check in report.checks
        if check.status in ("failed", "warning")
        for name in check.tensors[:_SHOWN_NAMES]
        if name in report.statistics
    )
    if not names:
        return
    table = Table(
        Column("tensor", overflow="fold", min_width=36),
        "shape", "NaN", "Inf", "over limit", "zero", "absmax", "mean", "std",
        box=None, pad_edge=False, header_style="dim",
    )  # fmt: skip
    for name in names:
        record, found = report.records[name], report.statistics[name]
        table.add_row(
            escape(name), "×".join(map(str, record.shape)) or "scalar",
            f"{found.nan:,}", f"{found.inf:,}", f"{found.over_limit:,}", f"{found.zero:,}",
            f"{found.absmax:.3g}", f"{found.mean:.3g}", f"{found.std:.3g}",
        )  # fmt: skip
    console.print(table)

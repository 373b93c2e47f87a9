"""Grafana's dashboards, one module each, built with the Grafana Foundation SDK; ci/generated.py writes their JSON."""

from __future__ import annotations

from collections.abc import Callable

from dashboards import fleet, run, verification
from dashboards.parts import Board

BOARDS: dict[str, Callable[[], Board]] = {
    "giblet-run": run.board,
    "giblet-fleet": fleet.board,
    "giblet-verification": verification.board,
}


def dashboard_text(name: str) -> str:
    """The JSON of one of `BOARDS`."""
    return BOARDS[name]().text()

"""What can be said of the dashboards' look without a Grafana, from their JSON alone."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import pytest

from tests.support.monitoring import DASHBOARDS

BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(DASHBOARDS.glob("*.json"))}
UNITS = {"none", "s", "bytes", "percent", "percentunit", "watt", "celsius", "dateTimeFromNow", "short"}
"""Names that Grafana knows; one that it does not know is shown behind the number as it is."""
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def panels(board: str) -> list[dict[str, Any]]:
    return [panel for panel in BOARDS[board]["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("board", BOARDS)
def test_every_panel_says_what_it_shows_and_in_which_unit(board: str) -> None:
    for panel in panels(board):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"] == SOURCE, panel["title"]
        assert all(target["datasource"] == SOURCE for target in panel["targets"]), panel["title"]
        units = {panel["fieldConfig"]["defaults"].get("unit")} - {None}
        if panel["type"] == "table":
            columns = {row["matcher"]["options"] for row in panel["fieldConfig"]["overrides"]}
            assert len(columns) == len(panel["targets"]), f"{panel['title']}: a unit for each column"
            units = {value["value"] for row in panel["fieldConfig"]["overrides"] for value in row["properties"]}
        assert units, panel["title"]
        assert units <= UNITS, panel["title"]


@pytest.mark.parametrize("board", BOARDS)
def test_no_panel_covers_another_or_leaves_the_grid(board: str) -> None:
    places = {panel["title"]: panel["gridPos"] for panel in BOARDS[board]["panels"]}
    assert len(places) == len(BOARDS[board]["panels"])
    for title, place in places.items():
        assert place["x"] + place["w"] <= 24, title
    for (one, a), (other, b) in combinations(places.items(), 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, f"{one} and {other}"


@pytest.mark.parametrize("board", BOARDS)
def test_every_query_is_of_what_was_chosen_above(board: str) -> None:
    variables = {variable["name"]: variable["type"] for variable in BOARDS[board]["templating"]["list"]}
    assert variables == {"datasource": "datasource", "namespace": "query", "run": "query"}
    marks = BOARDS[board]["annotations"].get("list", [])
    queries = [target["expr"] for panel in panels(board) for target in panel["targets"]]
    for query in [*queries, *(mark["expr"] for mark in marks)]:
        assert "$namespace" in query, query
        assert "$run" in query, query
    assert all(mark["datasource"] == SOURCE and mark["useValueForTime"] for mark in marks)


def test_restarts_saves_and_verdicts_are_drawn_over_a_run() -> None:
    marks = {mark["name"]: mark["expr"] for mark in BOARDS["giblet-run"]["annotations"]["list"]}
    assert marks.keys() == {"start", "commit", "verified"}

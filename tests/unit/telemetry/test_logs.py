"""Log lines that a person reads and a machine parses."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest

from giblet.telemetry import logs


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    yield
    logs.configure()


def test_logfmt_quotes_only_what_needs_it() -> None:
    stream = io.StringIO()
    logs.configure("logfmt", stream=stream, run="a", rank=0)
    logs.get_logger("giblet.x").info("step", step=3, loss=0.123456789, note="two words", empty="", good=True)
    time, rest = stream.getvalue().rstrip("\n").split(" ", 1)
    assert time.endswith("Z")
    assert rest == 'INFO step run=a rank=0 step=3 loss=0.123457 note="two words" empty="" good=true'


def test_json_lines_stay_valid_when_a_number_is_not_finite() -> None:
    stream = io.StringIO()
    logs.configure("json", stream=stream, run="a")
    logs.get_logger("x").warning("odd", loss=float("nan"), path=object)
    row = json.loads(stream.getvalue())
    assert (row["level"], row["message"], row["run"], row["loss"]) == ("WARNING", "odd", "a", "nan")


def test_context_is_replaced_not_mixed() -> None:
    stream = io.StringIO()
    logs.configure(stream=io.StringIO(), run="old", extra=1)
    logs.configure(stream=stream, run="new")
    logs.get_logger("x").info("hello")
    assert "run=new" in stream.getvalue()
    assert "extra" not in stream.getvalue()

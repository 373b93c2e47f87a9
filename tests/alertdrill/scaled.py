"""The rules with every time in them divided by one factor, and nothing else changed.

Times are the ranges (`[5m]`), `for:`, and the plain seconds that stand in an expression beside `time()`. What the rules
compare (0.6 of the usual speed, twice the interval, three restarts) stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_RANGE = re.compile(r"(?<=\[)(\d+)(ms|[smhd])(?=\])")
_FOR = re.compile(r"(\d+)(ms|[smhd])")
_SECONDS = re.compile(r"(?<![\w.:])\d{2,}(?![\w.:])")


def scaled_rules(text: str, factor: float) -> str:
    """The rules file `text` with its times divided by `factor`."""

    def duration(found: re.Match[str]) -> str:
        return f"{round(int(found[1]) * _UNITS[found[2]] * 1000 / factor)}ms"

    def seconds(found: re.Match[str]) -> str:
        return f"{int(found[0]) / factor:g}"

    return _rewritten(text, duration, seconds)


def without_times(text: str) -> str:
    """The rules with a mark in place of every time, to compare two versions of them."""
    return _rewritten(text, lambda _: "TIME", lambda _: "TIME")


def _rewritten(text: str, duration: Callable[[re.Match[str]], str], seconds: Callable[[re.Match[str]], str]) -> str:
    tree: dict[str, Any] = yaml.safe_load(text)
    for group in tree["groups"]:
        for rule in group["rules"]:
            expression = rule["expr"]
            if "time()" in expression:
                expression = _SECONDS.sub(seconds, expression)
            rule["expr"] = _RANGE.sub(duration, expression)
            if "for" in rule:
                rule["for"] = _FOR.sub(duration, rule["for"])
    return yaml.safe_dump(tree, sort_keys=False)

"""The drill of the alerts: its rules are the chart's with other times, no alert is left out, and its quickest parts.

`make alerts-drill` plays all of it, which takes a quarter of an hour.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.alertdrill.cli import play, table
from tests.alertdrill.drills import DRILLS
from tests.alertdrill.scaled import scaled_rules, without_times
from tests.support.monitoring import RULES, program, promtool

ORIGINAL = RULES.read_text()
SCALE = 60.0
QUICK = ("xid", "no-number", "damaged")
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def times(text: str) -> list[float]:
    """Every time in the rules in seconds, in their order."""
    found: list[float] = []
    for group in yaml.safe_load(text)["groups"]:
        for rule in group["rules"]:
            durations = re.findall(r"\[(\d+)(ms|[smhd])\]", rule["expr"])
            durations += re.findall(r"(\d+)(ms|[smhd])", rule.get("for", ""))
            found += [int(number) * _UNITS[unit] for number, unit in durations]
    return found


def test_nothing_but_times_is_scaled() -> None:
    scaled = scaled_rules(ORIGINAL, 5)
    assert without_times(scaled) == without_times(ORIGINAL)
    assert times(scaled) == pytest.approx([seconds / 5 for seconds in times(ORIGINAL)])
    assert len(times(ORIGINAL)) == len(re.findall(r"\[\d+\w\]", ORIGINAL)) + ORIGINAL.count("for: ")
    before, after = (
        "\n".join(rule["expr"] for group in yaml.safe_load(text)["groups"] for rule in group["rules"])
        for text in (ORIGINAL, scaled)
    )
    plain = [re.findall(r"(?<![\w.:\[])\d+(?:\.\d+)?(?![\w.:])", text) for text in (before, after)]
    changed = [(float(one), float(other)) for one, other in zip(*plain, strict=True) if one != other]
    assert sorted(changed) == [(60, 12), (900, 180), (3600, 720), (3600, 720)], "seconds beside time(), nothing else"


def test_promtool_reads_the_scaled_rules(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(scaled_rules(ORIGINAL, SCALE))
    done = subprocess.run(
        [promtool(), "check", "rules", tmp_path / "rules.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_alert_is_left_out() -> None:
    rules = [rule for group in yaml.safe_load(ORIGINAL)["groups"] for rule in group["rules"]]
    drilled = [alert for drill in DRILLS for alert in drill.alerts]
    assert sorted(drilled) == sorted(rule["alert"] for rule in rules if "alert" in rule)


@pytest.mark.slow
@pytest.mark.s3
def test_the_quickest_drills() -> None:
    program("prometheus")  # skips where there is none
    outcomes = play([drill for drill in DRILLS if drill.run in QUICK], SCALE, at_once=len(QUICK))
    assert len(outcomes) == len(QUICK)
    assert [row.fault for row in outcomes] == [None] * len(QUICK), table(outcomes, SCALE)
    assert all(row.fired_seconds is not None and row.resolved_seconds is not None for row in outcomes)

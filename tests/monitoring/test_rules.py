"""Rules and alerts: promtool's own tests of them, run by the promtool of the server that the cluster runs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.monitoring import REPOSITORY, RULES, known_metrics, metrics_in, promtool

TESTS = REPOSITORY / "tests/monitoring/rules_test.yaml"
RUNBOOK = REPOSITORY / "k8s/runbook.md"
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([promtool(), *words], capture_output=True, text=True, check=False)


def test_promtool_reads_the_rules() -> None:
    done = run("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_when_it_should_and_only_then() -> None:
    done = run("test", "rules", TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_alert_that_no_longer_fires_fails_its_test(tmp_path: Path) -> None:
    silenced = yaml.safe_load(RULES.read_text())
    for group in silenced["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                rule["expr"] = "vector(0) > 1"
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(silenced))
    tests: dict[str, Any] = yaml.safe_load(TESTS.read_text())
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({**tests, "rule_files": ["rules.yaml"]}))
    done = run("test", "rules", tmp_path / "test.yaml")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert {name for name in ALERTS if name not in said} == set()


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_bad_what_and_where_to_read_on(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert page == "k8s/runbook.md"
    headings = re.findall(r"^#+ (.+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert anchor == name.lower()
    assert name in headings


def test_the_runbook_knows_no_alert_that_is_gone() -> None:
    assert set(re.findall(r"^#+ (Giblet\w+)$", RUNBOOK.read_text(), re.MULTILINE)) == set(ALERTS)


def test_rules_name_only_metrics_that_exist() -> None:
    recorded = {rule["record"] for group in GROUPS for rule in group["rules"] if "record" in rule}
    for group in GROUPS:
        for rule in group["rules"]:
            assert metrics_in(rule["expr"]) - recorded <= known_metrics(), rule

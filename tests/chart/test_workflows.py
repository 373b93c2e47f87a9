"""The workflows, as far as they can be checked without GitHub: actionlint, zizmor, and rules of our own."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.chart import REPOSITORY, tool

WORKFLOWS = sorted((REPOSITORY / ".github/workflows").glob("*.yml"))


def test_actionlint_finds_nothing() -> None:
    done = subprocess.run([tool("actionlint"), "-shellcheck=", *WORKFLOWS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_zizmor_finds_nothing() -> None:
    command = [tool("zizmor"), "--offline", "--no-progress", "--persona=pedantic", *WORKFLOWS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_zizmor_would_find_an_action_that_is_not_pinned(tmp_path: Path) -> None:
    text = WORKFLOWS[0].read_text()
    spoiled = tmp_path / ".github/workflows/spoiled.yml"
    spoiled.parent.mkdir(parents=True)
    spoiled.write_text(re.sub(r"@[0-9a-f]{40}", "@v1", text))
    command = [tool("zizmor"), "--offline", "--no-progress", spoiled]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "unpinned-uses" in done.stdout


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_has_a_timeout_a_concurrency_group_and_no_rights_that_it_does_not_need(file: Path) -> None:
    workflow = yaml.safe_load(file.read_text())
    assert workflow["permissions"] == {}
    assert workflow["concurrency"]["group"]
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 120, name
        assert job["permissions"] == {"contents": "read"}, name


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_calls_scripts_that_people_run_too_and_they_exist(file: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    for job in yaml.safe_load(file.read_text())["jobs"].values():
        for command in (line for step in job["steps"] for line in step.get("run", "").splitlines()):
            program, *words = command.split()
            if program == "make":
                assert set(words) <= targets, command
            else:
                assert program.startswith(("ci/", "docker/")), command
                assert (REPOSITORY / program).exists(), command


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_a_workflow_says_that_it_has_not_run(file: Path) -> None:
    assert "has not run" in file.read_text().split("name:")[0]

"""Every command in the README runs as it is written: those on a person's own data here, the others by their names."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from giblet.cli import _parser

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ {4}(\.venv/bin/giblet .*|make \S+)", README, re.MULTILINE)
GIBLET = [command for command in COMMANDS if command.startswith(".venv")]
FOLDER = "work/smoke/bids"


def test_there_are_commands_and_each_make_target_exists() -> None:
    targets = {command.split()[1] for command in COMMANDS if command.startswith("make")}
    assert {"demo", "test"} <= targets
    for target in targets:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("command", GIBLET)
def test_each_is_understood(command: str) -> None:
    assert callable(_parser().parse_args(shlex.split(command)[1:]).verb)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_from_an_empty_checkout_they_run_one_after_the_other(tmp_path: Path) -> None:
    """The example first, since the others are about a folder that is there; then in the README's own order."""
    for name in ("configs", ".venv"):
        (tmp_path / name).symlink_to(ROOT / name)
    (example,) = [command for command in GIBLET if "giblet example" in command]
    assert FOLDER in example
    for command in [example, *(command for command in GIBLET if command != example)]:
        words = shlex.split(command.replace("YOUR_BIDS_FOLDER", FOLDER))
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stderr[-4000:]}"
    assert (tmp_path / "work/smoke/report/report.html").exists()
    assert (tmp_path / "work/smoke/weights.safetensors").exists()

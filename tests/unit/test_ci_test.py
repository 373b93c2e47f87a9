"""`ci/test` itself, with every program that it calls replaced by one that notes how it was called."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.cluster import REPOSITORY

pytestmark = pytest.mark.skipif(shutil.which("setsid") is None, reason="setsid is not in PATH")


class Checkout:
    """A folder with ci/test, whose parts wait as long as they are told to, and fail if they are told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.log.touch()
        for name in ("ci/lint", "ci/cluster", ".venv/bin/python", "bin/go", "bin/id", "bin/uname"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f'#!/usr/bin/env bash\n. "$CHECKOUT/fake" {path.name} "$@"\n')
            path.chmod(0o755)
        shutil.copy(REPOSITORY / "ci/test", folder / "ci/test")
        self.environment = os.environ | {"PATH": f"{folder}/bin:{os.environ['PATH']}", "CHECKOUT": str(folder)}
        self.behave("")

    def behave(self, cases: str) -> None:
        """`cases` are those of bash's `case`, over a program and its words."""
        (self.folder / "fake").write_text(
            'case "$*" in "id -u") echo 0; exit;; "uname -s") echo Linux; exit;; esac\n'
            'echo "begin $*" >>"$CHECKOUT/log"\n'
            f'case "$*" in {cases} *) ;; esac\n'
            'echo "end $*" >>"$CHECKOUT/log"\n'
        )

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", self.folder / "ci/test"], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip

    def said(self) -> list[str]:
        return self.log.read_text().splitlines()

    def at(self, begin: str) -> int:
        return next(number for number, line in enumerate(self.said()) if line.startswith(begin))


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_what_the_cluster_needs_is_made_beside_the_tests_and_done_before_its_own(checkout: Checkout) -> None:
    wait = 'while ! grep -q "{}" "$CHECKOUT/log"; do sleep 0.05; done'
    checkout.behave(
        f"lint) {wait.format('begin cluster')}; {wait.format('begin python ci/image')};;"
        f'"cluster build"|*"ci/image build"*) {wait.format("end python -m pytest tests --ignore")}; echo made;;'
    )
    running = checkout.start()
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 0, output
    for job in ("end cluster build", "end python ci/image build --accelerator=none"):
        assert checkout.at(job) < checkout.at("begin python -m pytest tests/e2e")
    assert output.count("made\n") == 2


def test_what_is_made_beside_takes_only_what_is_left_of_the_processors(checkout: Checkout) -> None:
    checkout.behave('"cluster build") nice; cat /proc/self/autogroup || echo "nice 19";;')
    output, _ = checkout.start().communicate(timeout=60)
    assert re.search(r"^19\n.*nice 19$", output, re.MULTILINE), output


def test_without_root_the_rest_runs_and_it_says_what_is_skipped(checkout: Checkout) -> None:
    (checkout.folder / "bin/id").write_text("#!/usr/bin/env bash\necho 1000\n")
    running = checkout.start()
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 0, output
    assert "skipped: the local cluster, which needs root on Linux and Go" in output
    begun = [line.split()[1] for line in checkout.said() if line.startswith("begin")]
    assert begun == ["lint", "python", "python"]


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ("lint", "lint"),
        ('"cluster build"', "programs of the local cluster, what is left"),
        ('*"ci/image build"*', "image, without CUDA, what is left"),
        ('*"pytest tests/e2e"*', "end-to-end tests, of the chart and of monitoring"),
    ],
)
def test_a_part_that_fails_is_named_and_the_others_run(checkout: Checkout, broken: str, named: str) -> None:
    checkout.behave(f"{broken}) exit 3;;")
    running = checkout.start()
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 1
    assert output.splitlines()[-1] == f"failed: {named}"
    assert sum(line.startswith("begin") for line in checkout.said()) == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_leaves_nothing_running(checkout: Checkout, number: signal.Signals) -> None:
    checkout.behave('"cluster build"|*"ci/image build"*) echo $$ >>"$CHECKOUT/jobs"; sleep 600;; lint) sleep 600;;')
    running = checkout.start()
    jobs = checkout.folder / "jobs"
    until(lambda: jobs.exists() and len(jobs.read_text().split()) == 2 and "begin lint" in checkout.said())
    os.killpg(running.pid, number)  # as a terminal does, and a CI that gives up
    running.communicate(timeout=60)
    assert running.returncode == 128 + number
    until(lambda: not any(Path(f"/proc/{job}").exists() for job in jobs.read_text().split()))


def test_a_linter_that_ends_by_itself_when_stopped_is_the_last(checkout: Checkout) -> None:
    """mypy does: bash alone would take that for handled, and begin the next."""
    for name in ("ruff", "mypy", "lint-imports"):
        shutil.copy(checkout.folder / "bin/go", checkout.folder / ".venv/bin" / name)
        (checkout.folder / ".venv/bin" / name).write_text(f'#!/usr/bin/env bash\n. "$CHECKOUT/fake" {name} "$@"\n')
    (checkout.folder / "requirements.lock").touch()
    shutil.copy(REPOSITORY / "ci/lint", checkout.folder / "ci/lint")
    checkout.behave("mypy*) trap 'exit 2' INT; touch \"$CHECKOUT/ready\"; while :; do sleep 0.05; done;;")
    running = checkout.start()
    until(lambda: (checkout.folder / "ready").exists())
    os.killpg(running.pid, signal.SIGINT)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 130, output
    begun = [line for line in checkout.said() if line.startswith("begin") and "ci/image" not in line]
    assert [line.split()[1] for line in begun if "cluster" not in line] == ["ruff", "ruff", "mypy"]


def until(condition, seconds: float = 30.0) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)

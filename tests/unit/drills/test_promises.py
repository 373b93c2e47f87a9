"""The judge of the drills, on runs that break a promise each: it has to see it."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tests.support.cluster import REPOSITORY  # noqa: F401  (puts ci/ on the path)

# isort: split
from drills.cli import main, markdown
from drills.drill import DRILLS, Row
from drills.promises import deletions, differing_bits, losses, steps_lost
from drills.running import chosen
from drills.scene import Witness

PREFIX = "runs/r/checkpoints"


@pytest.fixture
def run(tmp_path):
    """A run as a witness saw it: start 1 did steps 1 to 15 and saved 10; start 2 went on from there, and saved 25."""

    def make(*, resumed=10, loaded="bits-10", extra=()):
        notes = [
            note("start", 1.0, pid=1, start=1, step=0), *steps(1, 1, 1, 15),
            note("save", 1.5, pid=1, start=1, step=10, digest="bits-10"),
            note("commit", 1.6, pid=1, step=10, attempt="00001-00001-a"),
            note("start", 2.0, pid=2, start=2, step=resumed),
            note("load", 2.1, pid=2, step=resumed, attempt="00001-00001-a", digest=loaded),
            *steps(2, 2.2, resumed + 1, 25), note("save", 2.8, pid=2, start=2, step=25, digest="bits-25"),
            note("commit", 2.9, pid=2, step=25, attempt="00002-00001-b"), *extra,
        ]  # fmt: skip
        witness = Witness(tmp_path / "witness")
        (tmp_path / "witness/1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in notes))
        proxy = SimpleNamespace(history=[])
        return SimpleNamespace(witness=witness, proxy=proxy, run="r", damaged=set(), committed=lambda: [])

    return make


def note(what, at, **more):
    return {"what": what, "at": at, "rank": 0, **more}


def steps(pid, at, first, last):
    return [note("step", at + step / 1000, pid=pid, step=step) for step in range(first, last + 1)]


def test_steps_beyond_the_save_are_lost_and_no_promise_is_broken(run):
    scene = run()
    assert steps_lost(scene) == 5
    assert [*losses(scene), *differing_bits(scene), *deletions(scene)] == []


def test_less_than_the_newest_commit_was_gone_on_from(run):
    assert ["step 0, though step 10" in told for told in losses(run(resumed=0))] == [True]


def test_a_damaged_commit_does_not_count(run):
    scene = run(resumed=0)
    scene.damaged.add((10, "00001-00001-a"))
    assert list(losses(scene)) == []


def test_loaded_bits_that_were_never_in_memory(run):
    assert len(list(differing_bits(run(loaded="others")))) == 1


def test_steps_of_a_last_start_that_nobody_saved(run):
    assert steps_lost(run(extra=steps(2, 3.0, 26, 28))) == 5 + 3


@pytest.mark.parametrize(("history", "broken"), [
    ([("PUT", 10), ("PUT", 20), ("DELETE", 10)], 0),
    ([("PUT", 10), ("DELETE", 10)], 1),
    ([("PUT", 10), ("PUT", 20), ("DELETE", 20)], 1),
])  # fmt: skip
def test_the_last_good_one_is_never_deleted(run, history, broken):
    scene = run()
    scene.proxy.history = [
        (0.0, method, f"{PREFIX}/step-{step:08d}/00001-00001-a/MANIFEST.json") for method, step in history
    ]  # fmt: skip
    assert len(list(deletions(scene))) == broken


def test_names_are_unique_and_chosen_in_order():
    names = [drill.name for drill in DRILLS]
    assert len(set(names)) == len(names)
    assert [drill.name for drill in chosen(["bit-flipped", "rank-killed"])] == ["rank-killed", "bit-flipped"]


def test_the_command_line_teaches_and_refuses(capsys):
    assert main(["--only", "nonsense"]) == 2
    assert "--list" in capsys.readouterr().err
    assert main(["--list"]) == 0
    assert DRILLS[0].fault in capsys.readouterr().out


def test_a_broken_row_says_so_in_the_table():
    row = Row("n", "a fault", "here", broken=["it went | on"])
    assert "BROKEN: it went / on" in markdown([row])
    assert not row.held

import json

import pytest

from giblet.checkpoint.ranks import PeerFailedError
from giblet.errors import DataError, DivergedError, HungError, StorageUnavailableError
from giblet.launch.ending import Ending, of_error, of_outcomes, write_termination
from giblet.training.outcome import Outcome, first_cause, read_outcome
from giblet.training.outcome import of_error as outcome_of


def crashed(rank, seconds, message="ValueError: no", **more):
    return Outcome(rank, 128, "ValueError", message, unix_seconds=seconds, **more)


BROKEN = RuntimeError("[/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.3]:59318")
KILLED = Outcome(3, 128, "Killed", "rank 3 ended with SIGKILL", signal="SIGKILL", unix_seconds=9.0)


@pytest.mark.parametrize(
    ("outcomes", "cause"),
    [
        ([outcome_of(0, BROKEN, 1.0), KILLED], KILLED),
        ([outcome_of(0, BROKEN, 1.0), crashed(1, 2.0)], crashed(1, 2.0)),
        ([outcome_of(0, PeerFailedError("x"), 1.0), outcome_of(1, DataError("bad"), 2.0)],
         outcome_of(1, DataError("bad"), 2.0)),
        ([crashed(1, 2.0), outcome_of(0, DivergedError("nan"), 3.0)], outcome_of(0, DivergedError("nan"), 3.0)),
        ([crashed(1, 2.0), crashed(0, 1.0)], crashed(0, 1.0)),
        ([Outcome(0), Outcome(1, 143, "StoppedError", "s")], Outcome(1, 143, "StoppedError", "s")),
    ],
)  # fmt: skip
def test_the_first_real_cause_is_found_among_the_echoes(outcomes, cause):
    assert first_cause(outcomes) == cause
    assert first_cause(outcomes[::-1]) == cause


def test_an_ending_says_what_happened_in_one_word_and_its_code():
    assert of_outcomes([Outcome(0)], step=7, start=2) == Ending("done", 0, "", None, 7, 2)
    assert of_outcomes([KILLED], step=7, start=2).cause == "killed"
    away = of_outcomes([outcome_of(0, StorageUnavailableError("away"), 1.0)], step=7, start=2)
    assert (away.cause, away.exit_code, away.permanent) == ("storage_unavailable", 129, False)
    assert of_outcomes([outcome_of(0, DivergedError("nan"), 1.0)], step=7, start=2).permanent
    assert of_outcomes([outcome_of(0, BROKEN, 1.0)], step=7, start=2).echo
    assert (of_error(HungError("x")).cause, of_error(HungError("x")).exit_code) == ("hung", 130)


def test_an_outcome_comes_back_from_its_file(tmp_path):
    outcome_of(2, DataError("gone", remedy="find it"), 1.5).write(tmp_path)
    assert read_outcome(tmp_path, 2) == Outcome(2, 65, "DataError", "gone", "find it", unix_seconds=1.5)
    assert read_outcome(tmp_path, 1) is None


@pytest.mark.parametrize("message", ["short", "x" * 9000, 'é"\\\n' * 3000])
def test_a_termination_message_fits_and_is_json(tmp_path, message):
    path = tmp_path / "message"
    write_termination(path, Ending("crashed", 128, message, None, 12, 3), run="r")
    assert path.stat().st_size <= 4096
    row = json.loads(path.read_text())
    assert {**row, "message": ""} == {
        "exit_code": 128, "cause": "crashed", "message": "", "step": 12, "run": "r", "start": 3,
    }  # fmt: skip
    assert row["message"][:4] == message[:4]


def test_a_termination_message_that_cannot_be_written_ends_nothing(tmp_path):
    write_termination(tmp_path / "no" / "such", Ending("done", 0), run="r")
    write_termination(None, Ending("done", 0), run="r")

"""The gate, with a cluster and a store in memory, and a clock that tells what happens next."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from giblet.checkpoint.layout import SIGNATURE, CheckpointRef
from giblet.checkpoint.resume import verified_ref
from giblet.errors import CheckpointError, ConfigError, DeadlineError, StorageUnavailableError
from giblet.storage import MemoryStorage
from giblet.telemetry.metrics import Metrics
from giblet.verify import verify
from giblet.verify.gate import Gate, GateResult
from giblet.verify.jobs import Job, JobsDeniedError, JobsUnavailableError, MemoryJobs
from giblet.verify.report import Report
from tests.support.gate import commit_word, heard, judged_by_its_word, record_start
from tests.support.weights import small_config, trained_tensors, training_state, write_checkpoint

BASE = small_config()
RUNNING, DONE = Job("one", "Running"), Job("one", "Succeeded", message="all pods are done")
FAILED = Job("one", "Failed", reason="PyTorchJobFailed")
WEIGHT = "model.encoder.layer5.0.weight"


class ScriptedClock:
    """`at[seconds]` is done as soon as the clock has come so far. A test that waits for ever fails."""

    def __init__(self, at: dict[float, Callable[[], object]]) -> None:
        self.time, self.at = 0.0, dict(at)

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        for moment in sorted(moment for moment in self.at if moment <= self.time):
            self.at.pop(moment)()
        assert self.time < 100_000, "waits for ever"


@dataclass
class World:
    storage: MemoryStorage = field(default_factory=MemoryStorage)
    jobs: MemoryJobs = field(default_factory=lambda: MemoryJobs(job=RUNNING))
    metrics: Metrics = field(default_factory=lambda: Metrics("movie"))
    at: dict[float, Callable[[], object]] = field(default_factory=dict)
    judge: Callable[..., Report] = judged_by_its_word

    def run(self, **settings: object) -> GateResult:
        verify = BASE.verify.model_copy(update={"poll_seconds": 10.0, "restore": False, **settings})
        config = BASE.model_copy(update={"verify": verify, "run": BASE.run.model_copy(update={"name": "movie"})})
        return Gate(config, self.storage, self.jobs, self.metrics, clock=ScriptedClock(self.at), judge=self.judge).run()

    def commit(self, step: int, *, bad: bool = False) -> CheckpointRef:
        return commit_word(self.storage, step, bad=bad)

    def real_commit(self, step: int, *, bad: bool = False) -> CheckpointRef:
        tensors = trained_tensors(BASE, step)
        if bad:
            tensors[WEIGHT][0, 0] = torch.nan
        return write_checkpoint(self.storage, tensors, training_state(BASE, step), step=step).ref

    def set_job(self, job: Job | None) -> None:
        self.jobs.job = job

    def start(self, number: int = 1, *, exit_code: int | None = None) -> None:
        record_start(self.storage, number, exit_code=exit_code)

    def report(self, ref: CheckpointRef) -> dict[str, object] | None:
        return json.loads(self.storage.get(ref.report_key)) if self.storage.head(ref.report_key) else None

    def metric(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"giblet_{name}", {"run": "movie", **labels})


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize("end", [DONE, FAILED])
def test_the_last_checkpoint_is_judged_however_the_job_ended(world, end):
    refs = [world.commit(4), world.commit(8)]
    world.at = {50.0: lambda: world.set_job(end)}
    result = world.run(when="last")
    assert (result.exit_code, result.ref, result.verified) == (0, refs[1], refs[1])
    assert world.report(refs[0]) is None
    assert world.report(refs[1])["verdict"] == "SAFE"
    assert world.jobs.annotations["one"] == {
        "giblet.dev/verdict": "SAFE",
        "giblet.dev/verified-step": "8",
        "giblet.dev/report": f"memory://store/{refs[1].report_key}",
    }
    assert [(kind, reason) for kind, reason, _ in world.jobs.events] == [("Normal", "CheckpointAccepted")]


def test_each_commit_is_judged_as_it_lands_once(world):
    world.at = {15.0: lambda: world.commit(4), 35.0: lambda: world.commit(8), 95.0: lambda: world.set_job(DONE)}
    seen = []
    world.at[60.0] = lambda: seen.append(world.jobs.annotations["one"]["giblet.dev/verified-step"])
    result = world.run(when="each")
    assert (result.judged, result.ref.step, seen) == (2, 8, ["8"])
    assert len(world.jobs.events) == 2
    assert world.metric("verify_judgements_total", verdict="SAFE") == 2


def test_what_an_earlier_gate_has_judged_is_not_judged_again_but_for_the_last(world):
    first, last = world.commit(4), world.commit(8)
    world.storage.put(first.report_key, b'{"verdict": "SAFE"}')
    world.storage.put(last.report_key, b'{"verdict": "SAFE"}')
    world.at = {25.0: lambda: world.set_job(DONE)}
    assert world.run(when="each").judged == 1
    assert "bytes" not in world.report(first)
    assert world.report(last)["bytes"] == 4


def test_a_bad_last_checkpoint_ends_with_1_and_leaves_the_good_one_trusted(world):
    """With real weights, and the real judge."""
    world.judge = verify
    good, bad = world.real_commit(4), world.real_commit(8, bad=True)
    world.set_job(DONE)
    result = world.run(when="each")
    assert (result.exit_code, result.ref, result.verified) == (1, bad, good)
    assert verified_ref(world.storage, "movie") == good
    annotations = world.jobs.annotations["one"]
    assert annotations["giblet.dev/verdict"] == "UNSAFE"
    assert annotations["giblet.dev/verified-step"] == "4"
    rejected = next(message for kind, _, message in world.jobs.events if kind == "Warning")
    assert WEIGHT in rejected
    assert "step 8" in rejected
    assert world.metric("verify_verified_step") == 4


def test_a_job_that_ends_without_a_checkpoint(world):
    world.set_job(FAILED)
    with pytest.raises(CheckpointError, match="has no checkpoint, and its job has ended"):
        world.run()


def test_a_checkpoint_committed_while_the_last_was_judged_comes_after_it(world):
    """A pod that got SIGTERM saves while the job already counts as ended."""
    world.commit(4)
    world.set_job(FAILED)

    def late(call: str, key: str) -> None:
        if call == "get" and key.endswith(".safetensors"):
            world.storage.before = lambda call, key: None
            world.commit(6)

    world.storage.before = late
    assert world.run().ref.step == 6


def test_a_checkpoint_that_retention_removes_while_it_is_read_is_no_verdict(world):
    first = world.commit(4)

    def pruned(call: str, key: str) -> None:
        if call == "get" and key.endswith(".safetensors"):
            world.storage.before = lambda call, key: None
            for info in list(world.storage.list(first.prefix)):
                world.storage.delete(info.key)

    world.storage.before = pruned
    world.at = {20.0: lambda: world.commit(8), 45.0: lambda: world.set_job(DONE)}
    result = world.run(when="each")
    assert (result.exit_code, result.ref.step, result.judged) == (0, 8, 1)
    assert world.report(first) is None


def test_storage_that_is_away_for_a_while(world):
    world.commit(4)
    world.set_job(DONE)

    def away(call: str, key: str) -> None:
        raise StorageUnavailableError("nothing answers")

    world.storage.before = away
    world.at = {120.0: lambda: setattr(world.storage, "before", lambda call, key: None)}
    assert world.run(patience_seconds=300.0).exit_code == 0


def test_storage_that_stays_away_is_129(world):
    def away(call: str, key: str) -> None:
        raise StorageUnavailableError("nothing answers")

    world.storage.before = away
    with pytest.raises(StorageUnavailableError) as caught:
        world.run(patience_seconds=60.0)
    assert caught.value.exit_code == 129


def test_an_api_server_that_is_away_for_a_while(world):
    world.commit(4)
    world.jobs.error = JobsUnavailableError("the Kubernetes API does not answer")
    world.at = {500.0: lambda: setattr(world.jobs, "error", None), 600.0: lambda: world.set_job(DONE)}
    result = world.run(patience_seconds=60.0)
    assert (result.exit_code, result.job) == (0, "Succeeded: all pods are done")
    assert world.metric("verify_errors_total", cause="jobs_unavailable") > 10


def test_without_permission_the_end_is_known_from_the_runs_own_record(world):
    world.start(1)
    world.commit(8)
    world.at = {
        15.0: lambda: setattr(world.jobs, "error", JobsDeniedError('403: User "gate" cannot get pytorchjobs')),
        400.0: lambda: world.start(1, exit_code=128),
        410.0: lambda: world.start(2),
        700.0: lambda: world.start(2, exit_code=0),
    }
    with heard() as stream:
        result = world.run(patience_seconds=60.0)
    assert result.exit_code == 0
    assert "start 2: done, exit 0" in result.job
    assert "403" in result.job
    assert verified_ref(world.storage, "movie") == result.ref
    told = stream.getvalue()
    assert "cannot get pytorchjobs" in told
    assert "let this service account get and patch pytorchjobs movie in lab" in told
    assert "cannot annotate the job" in told
    assert world.metric("verify_errors_total", cause="jobs_denied") > 10


def test_an_end_from_before_the_gate_is_not_taken_for_this_jobs(world):
    """The name was used before; without permission the gate must not take the old end for the new job's."""
    world.start(1, exit_code=0)
    world.commit(4)
    world.jobs.error = JobsDeniedError("403")
    world.at = {
        90.0: lambda: world.start(2),
        500.0: lambda: world.commit(8),
        900.0: lambda: world.start(2, exit_code=0),
    }
    assert world.run(patience_seconds=60.0).ref.step == 8


def test_a_job_that_comes_later_than_the_gate(world):
    world.set_job(None)
    world.at = {40.0: lambda: world.set_job(RUNNING), 60.0: lambda: world.commit(4), 90.0: lambda: world.set_job(DONE)}
    assert world.run(patience_seconds=60.0).exit_code == 0


def test_a_job_that_never_was(world):
    world.commit(4)
    world.set_job(None)
    with pytest.raises(ConfigError, match="no PyTorchJob movie in namespace lab"):
        world.run(patience_seconds=60.0)


def test_a_job_deleted_under_it_ends_with_the_verdict_on_what_it_left(world):
    world.commit(4)
    world.at = {30.0: lambda: world.set_job(None), 60.0: lambda: world.commit(8, bad=True)}
    result = world.run(patience_seconds=60.0)
    assert (result.exit_code, result.ref.step, result.job) == (1, 8, "the job was deleted")


def test_a_job_that_is_replaced_is_followed(world):
    world.commit(4)
    other = Job("two", "Running")
    world.at = {
        30.0: lambda: world.set_job(None),
        60.0: lambda: world.set_job(other),
        90.0: lambda: world.commit(8),
        120.0: lambda: world.set_job(replace(other, phase="Succeeded")),
    }
    assert world.run(patience_seconds=60.0).ref.step == 8
    assert world.jobs.annotations.keys() == {"two"}


def test_a_job_that_is_replaced_while_its_last_checkpoint_is_judged(world):
    world.commit(4)
    world.set_job(FAILED)

    def replaced(call: str, key: str) -> None:
        if call == "get" and key.endswith(".safetensors"):
            world.storage.before = lambda call, key: None
            world.set_job(Job("two", "Running"))

    world.storage.before = replaced
    world.at = {50.0: lambda: world.commit(8), 80.0: lambda: world.set_job(Job("two", "Succeeded"))}
    assert world.run().ref.step == 8


def test_a_job_that_never_ends(world):
    world.commit(4)
    with pytest.raises(DeadlineError, match=r"has not ended within .* 200 .*Running.*step 4, is SAFE") as caught:
        world.run(deadline_seconds=200.0)
    assert caught.value.exit_code == 124
    assert verified_ref(world.storage, "movie") is not None


def test_a_suspended_job_is_waited_for_beyond_the_deadline(world):
    world.commit(4)
    world.set_job(Job("one", "Suspended"))
    world.at = {5000.0: lambda: world.set_job(RUNNING), 5100.0: lambda: world.set_job(DONE)}
    assert world.run(deadline_seconds=200.0).exit_code == 0


def test_a_gate_that_begins_knows_what_was_trusted_before(world):
    ref = world.commit(4)
    world.set_job(DONE)
    world.run()
    again = World(storage=world.storage, jobs=world.jobs)
    seen = []
    again.set_job(RUNNING)
    again.at = {
        10.0: lambda: seen.append(again.metric("verify_verified_step")),
        20.0: lambda: seen.append(again.metric("verify_verified_timestamp_seconds")),
        30.0: lambda: again.set_job(DONE),
    }
    again.run()
    assert seen == [4.0, world.report(ref)["judged_unix_seconds"]]


def test_an_annotation_that_failed_is_made_good_at_the_end(world):
    world.commit(4)
    denied = JobsUnavailableError("away")

    def back() -> None:
        world.jobs.error = None
        world.set_job(DONE)

    class Deaf(MemoryJobs):
        def annotate(self, job, annotations):
            if world.jobs.job is RUNNING:
                raise denied
            return super().annotate(job, annotations)

    world.jobs = Deaf(job=RUNNING)
    world.at = {60.0: back}
    world.run(when="each")
    assert world.jobs.annotations["one"]["giblet.dev/verdict"] == "SAFE"


def test_what_the_gate_accepts_it_signs_and_a_key_that_cannot_be_read_is_said_at_once(world, tmp_path):
    key = Ed25519PrivateKey.generate()
    path = tmp_path / "signing.pem"
    with pytest.raises(ConfigError, match="cannot be read"):
        world.run(signing_key=str(path))
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    world.judge, world.jobs.job = verify, DONE
    good, bad = world.real_commit(4), world.real_commit(8, bad=True)
    assert world.run(signing_key=str(path), when="each").exit_code == 1
    key.public_key().verify(world.storage.get(good.prefix + SIGNATURE), world.storage.get(good.manifest_key))
    assert world.storage.head(bad.prefix + SIGNATURE) is None
    assert str(world.report(good)["signed_by"]).startswith("SHA256:")
    assert world.report(bad)["signed_by"] is None

"""ci/smoke without a cluster: what it makes of pods, jobs, values and its own command line."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests.support.chart import MINIMAL, merged, tool
from tests.support.cluster import REPOSITORY

# isort: split
from kubernetes.client import ApiClient, ApiException
from smokerun import errors, watching
from smokerun.cli import EPILOG, _judge
from smokerun.release import Release, Values, with_image
from smokerun.trouble import phase_of, trouble_of
from smokerun.watching import Outcome, Watching


def from_json(kind: str, body: dict[str, Any]) -> Any:
    """A model of the Kubernetes client, from what an API server answers."""
    return ApiClient().deserialize(SimpleNamespace(data=json.dumps(body)), kind)


def pod(name: str = "w-0", component: str = "worker", phase: str = "Pending", **status: Any) -> Any:
    labels = {"app.kubernetes.io/component": component}
    metadata = {"name": name, "uid": name, "labels": labels}
    return from_json("V1Pod", {"metadata": metadata, "status": {"phase": phase, **status}})


def waiting(reason: str, message: str = "because", **more: Any) -> Any:
    statuses = [{"name": "pytorch", "image": "", "imageID": "", "ready": False, "restartCount": 0}]
    statuses[0]["state"] = {"waiting": {"reason": reason, "message": message}}
    return pod(containerStatuses=statuses, **more)


UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes: no GPU"}


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError"])
def test_what_does_not_pass_by_itself_is_trouble_at_once(reason: str) -> None:
    found = trouble_of(waiting(reason, "no such thing"))
    assert found is not None
    assert (found.reason, found.lasting) == (reason, False)
    assert "no such thing" in found.message


def test_what_may_pass_by_itself_is_trouble_only_if_it_lasts() -> None:
    found = trouble_of(waiting("ErrImagePull"))
    assert found is not None
    assert found.lasting
    found = trouble_of(pod(conditions=[UNSCHEDULABLE]))
    assert found is not None
    assert found.lasting
    assert "no GPU" in found.message


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing"])
def test_a_pod_that_is_on_its_way_is_no_trouble(reason: str) -> None:
    assert trouble_of(waiting(reason)) is None
    assert trouble_of(pod(phase="Running")) is None


def test_a_pod_says_where_it_is() -> None:
    assert phase_of(pod()) == "waiting for a node"
    assert phase_of(pod(conditions=[{"type": "PodScheduled", "status": "True"}])) == "starting"
    init = {"name": "prepare", "image": "", "imageID": "", "ready": False, "restartCount": 0}
    running = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
    assert phase_of(pod(initContainerStatuses=[init | {"state": running}])) == "init prepare"


# --- values


def test_an_image_is_taken_apart_as_registries_understand_it() -> None:
    assert dict(with_image("localhost:5001/giblet:dev")) == {
        "image.repository": "localhost:5001/giblet", "image.tag": "dev", "image.digest": ""
    }  # fmt: skip
    digest = f"sha256:{'a' * 64}"
    assert dict(with_image(f"localhost:5001/giblet@{digest}"))["image.digest"] == digest
    assert dict(with_image("localhost:5001/giblet"))["image.repository"] == "localhost:5001/giblet"
    with pytest.raises(errors.ValuesError, match="REGISTRY/NAME:TAG"):
        with_image("giblet@sha256:short")


def write(folder: Path, values: Any, name: str = "values.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_placeholders_of_configs_name_no_data(tmp_path: Path) -> None:
    base = REPOSITORY / "configs/cpu-smoke.yaml"
    assert not Values((base,)).name_data
    assert Values((base,), ("config.data.prepared=s3://a/datasets/b",)).name_data
    assert Values((base, write(tmp_path, {"data": {"existingClaim": "bids"}}))).name_data
    assert not Values((base, write(tmp_path, {"s3": {"existingSecret": "x"}}))).name_data


def release(tmp_path: Path, **values: Any) -> Release:
    tool("helm")
    return Release("giblet-smoke", "lab", None, Values((write(tmp_path, merged(MINIMAL, values)),)))


def test_a_release_knows_what_the_cluster_must_have(tmp_path: Path) -> None:
    found = release(tmp_path, s3={"existingSecret": "bucket", "accessKeyIdKey": "ID"})
    assert found.secrets() == {"bucket": {"ID", "AWS_SECRET_ACCESS_KEY"}}
    assert found.credentials()["AWS_ACCESS_KEY_ID"] == ("bucket", "ID")
    assert found.job == "giblet-smoke"
    assert found.verifies
    assert found.config.run.name == "giblet-smoke"


def test_a_secret_that_the_chart_makes_itself_need_not_be_there(tmp_path: Path) -> None:
    assert release(tmp_path, s3={"accessKeyId": "a", "secretAccessKey": "b"}).secrets() == {}


def test_wrong_values_are_refused_in_the_charts_words(tmp_path: Path) -> None:
    with pytest.raises(errors.ValuesError, match=r"^These values cannot work:\n +- workers\.min 1") as caught:
        _ = release(tmp_path, workers={"replicas": 3}).objects
    assert "--debug" not in caught.value.message


# --- the verdict


@pytest.mark.parametrize(
    ("job", "verdict", "code"),
    [("Succeeded", "SAFE", 0), ("Succeeded", "SAFE WITH WARNINGS", 0), ("Succeeded", "UNSAFE", 1),
     ("Failed", "SAFE", 3), ("Failed", "UNSAFE", 1)],
)  # fmt: skip
def test_a_verdict_has_its_exit_code(job: str, verdict: str, code: int) -> None:
    assert _judge(Outcome(job, "", verdict, 7, None))[0] == code


def test_the_help_lists_the_exit_codes_that_there_are() -> None:
    kinds = [errors.SmokeError, errors.ValuesError, errors.RunFailedError, errors.CannotStartError]
    codes = {kind.exit_code for kind in [*kinds, errors.TimedOutError]}
    codes |= {errors.EXIT_SAFE, errors.EXIT_UNSAFE, errors.EXIT_INTERRUPTED}
    assert {int(line.split()[0]) for line in EPILOG.splitlines() if line[:3].strip().isdigit()} == codes


# --- watching


def job(condition: str | None = None, annotations: dict[str, str] | None = None) -> Any:
    conditions = [SimpleNamespace(type=condition, status="True", message="word")] if condition else []
    return SimpleNamespace(
        metadata=SimpleNamespace(annotations=annotations), status=SimpleNamespace(conditions=conditions)
    )


class FakeCluster:
    """A cluster whose polls are given; the last one stays."""

    namespace = "lab"

    def __init__(self, *polls: tuple[Any, list[Any]], verification: Any = None, warnings: tuple[str, ...] = ()) -> None:
        self.polls, self.taken = polls, 0
        self.verified, self.said = verification, list(warnings)
        self.training = self
        self.core = SimpleNamespace(read_namespaced_pod_log=self._log)

    def _log(self, **_: Any) -> Any:
        """:rtype: str"""
        raise ApiException(status=404)

    def now(self) -> tuple[Any, list[Any]]:
        return self.polls[min(self.taken, len(self.polls) - 1)]

    def job(self, name: str) -> Any:
        return self.now()[0]

    def pods(self, release: Any) -> list[Any]:
        return self.now()[1]

    def verification(self, name: str) -> Any:
        return self.verified

    def warnings(self, name: str) -> list[str]:
        return self.said

    def wait_for_job_conditions(self, name: str, **given: Any) -> Any:
        while True:
            found = self.now()[0]
            given["callback"](found)
            if found.status.conditions and found.status.conditions[-1].type in given["expected_conditions"]:
                return found
            self.taken += 1
            time.sleep(0.01)


VERIFIED = SimpleNamespace(status=SimpleNamespace(conditions=[SimpleNamespace(type="Complete", status="True")]))
REFUSED = SimpleNamespace(
    status=SimpleNamespace(conditions=[SimpleNamespace(type="Failed", status="True", message="exit code 78")])
)


def watched(
    cluster: FakeCluster, patience: float = 0.1, timeout: float = 60, lines: list[str] | None = None
) -> Outcome:
    said = lines if lines is not None else []
    release: Any = SimpleNamespace(job="giblet", fewest_workers=1)
    given: Any = cluster
    return Watching(given, release, said.append, time.monotonic() + timeout, patience).until_the_end()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "POLL_SECONDS", 0.01)


def test_a_run_that_ends_well_is_told_with_its_verdict() -> None:
    notes = {"giblet.dev/verdict": "SAFE", "giblet.dev/verified-step": "12", "giblet.dev/report": "s3://b/r.json"}
    lines: list[str] = []
    cluster = FakeCluster(
        (job("Created"), [pod()]),
        (job("Running"), [pod(phase="Running")]),
        (job("Succeeded", notes), [pod(phase="Succeeded")]),
        verification=VERIFIED,
    )
    assert watched(cluster, lines=lines) == Outcome("Succeeded", "word", "SAFE", 12, "s3://b/r.json")
    assert "pod w-0: Running" in lines


def test_an_image_that_is_not_there_ends_it_at_once() -> None:
    cluster = FakeCluster((job("Created"), [waiting("ImagePullBackOff", "not found")]))
    with pytest.raises(errors.CannotStartError, match=r"w-0 does not start: ImagePullBackOff.*not found"):
        watched(cluster, patience=3600)


def test_a_node_that_does_not_come_ends_it_after_the_patience_and_not_before() -> None:
    stuck = (job("Created"), [pod(conditions=[UNSCHEDULABLE])])
    with pytest.raises(errors.CannotStartError, match="no GPU"):
        watched(FakeCluster(stuck))
    came = FakeCluster(stuck, stuck, (job("Succeeded", {"giblet.dev/verdict": "SAFE"}), []), verification=VERIFIED)
    assert watched(came, patience=3600).verdict == "SAFE"


def test_workers_beyond_the_fewest_may_wait() -> None:
    pods = [pod("w-0", phase="Running"), pod("w-1", conditions=[UNSCHEDULABLE])]
    done = (job("Succeeded", {"giblet.dev/verdict": "SAFE"}), [])
    polls = [(job("Running"), pods)] * 30
    assert watched(FakeCluster(*polls, done, verification=VERIFIED)).verdict == "SAFE"


def test_workers_that_the_api_server_refuses_are_told_with_its_words() -> None:
    refused = FakeCluster((job("Created"), []), warnings=("FailedCreatePod: violates PodSecurity",))
    with pytest.raises(errors.CannotStartError, match="violates PodSecurity"):
        watched(refused)


def test_an_operator_that_does_not_run_is_told() -> None:
    with pytest.raises(errors.CannotStartError, match="operator is not running"):
        watched(FakeCluster((job(), [])))


def test_a_verification_without_a_verdict_is_a_failure_with_its_reason() -> None:
    with pytest.raises(errors.RunFailedError, match="exit code 78"):
        watched(FakeCluster((job("Succeeded"), []), verification=REFUSED))


def test_a_run_that_takes_too_long_says_where_it_was() -> None:
    with pytest.raises(errors.TimedOutError, match="Running"):
        watched(FakeCluster((job("Running"), [pod(phase="Running")])), patience=3600, timeout=0.3)


# --- the command


def smoke(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(REPOSITORY / "ci/smoke"), *words]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_without_a_cluster_it_says_so_in_json(tmp_path: Path) -> None:
    tool("helm")
    values = write(tmp_path, MINIMAL)
    nowhere = {"KUBECONFIG": str(tmp_path / "none"), "HOME": str(tmp_path)}
    done = smoke("--json", "-f", str(values), **nowhere)
    result = json.loads(done.stdout)
    assert done.returncode == result["exit_code"] == 4
    assert "no cluster" in result["reason"]
    assert "KUBECONFIG" in result["remedy"]


def test_a_values_file_that_is_not_there_is_refused() -> None:
    done = smoke("-f", "nowhere.yaml")
    assert done.returncode == 2
    assert "nowhere.yaml cannot be read" in done.stdout


def test_an_image_that_is_no_reference_is_refused_without_a_traceback() -> None:
    done = smoke("--image", "registry.example.org/giblet@sha256:1")
    assert done.returncode == 2
    assert "is not of the form" in done.stderr
    assert "Traceback" not in done.stderr

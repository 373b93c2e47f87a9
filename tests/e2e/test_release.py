"""`helm install giblet-prod helm/giblet -f configs/prod.yaml` on a real cluster: real operator, real training, real S3.

The values files are those of `configs/`; `tests/e2e/values/small.yaml` makes model, data and resources small. All that
can live side by side in one namespace is installed at once: on two cores a release mostly waits.
"""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from giblet.checkpoint.layout import start_key
from giblet.cli import main
from giblet.storage.s3 import S3Storage
from giblet.verify.pointer import newest_accepted
from tests.support.lab import BUCKET, NAMESPACE, Lab, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

PROD = "configs/prod.yaml"
ELASTIC = "configs/elastic.yaml"
CPU = "configs/cpu-smoke.yaml"
RUN = f"production-{uuid.uuid4().hex[:6]}"
SIGNING = f"signing-{uuid.uuid4().hex[:6]}"
PRODUCTION = {
    "config__run__name": RUN, "config__training__sharding": "fsdp", "verify__signing__existingSecret": SIGNING,
}  # fmt: skip
UNVERIFIED = {"verify__enabled": "false"}
WAITING = f"too-large-{uuid.uuid4().hex[:6]}"
TOO_LARGE = {
    "config__run__name": WAITING, "workers__gpusPerWorker": 9, "config__training__global_batch_samples": 9,
}  # fmt: skip


@pytest.fixture(scope="module")
def public_key(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A signing key as docs/verification.md makes one, in a secret; what is left on this side is its public half."""
    folder = tmp_path_factory.mktemp("keys")
    private, public = folder / "signing.pem", folder / "signing.pub"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    lab.cluster.kubectl("-n", NAMESPACE, "create", "secret", "generic", SIGNING, f"--from-file={private}")
    private.unlink()
    yield public
    lab.cluster.kubectl("-n", NAMESPACE, "delete", "secret", SIGNING)


@pytest.fixture(scope="module")
def notes(lab: Lab, public_key: Path) -> Iterator[Mapping[str, str]]:
    """What `helm install` printed of each release of the namespace, by its name."""
    nothing = lab.dataset.rsplit("/", 1)[0] + "/" + "0" * 64
    releases: dict[str, tuple[str, Mapping[str, object]]] = {
        "giblet-prod": (PROD, PRODUCTION),
        "giblet-two": (CPU, {}),
        "giblet-bad": (CPU, {"config__data__prepared": nothing, **UNVERIFIED}),
        "giblet-bucket": (CPU, {"config__checkpoint__url": "s3://no-such-bucket/x", **UNVERIFIED}),
        "giblet-secret": (CPU, {"s3__existingSecret": "no-such-secret", **UNVERIFIED}),
        "giblet-image": (CPU, {"image__digest": "sha256:" + "0" * 64, **UNVERIFIED}),
        "giblet-large": (PROD, TOO_LARGE),
    }
    try:
        yield lab.install_together(releases)
    finally:
        lab.uninstall_together(*releases)


# ---------------------------------------------------------------------------------- one node, eight processes


@pytest.fixture(scope="module")
def production(lab: Lab, notes: Mapping[str, str]) -> str:
    """The production release, small, at its end."""
    return ended(lab, "giblet-prod")


def ended(lab: Lab, job: str) -> str:
    """A release whose job has ended, and whose verdict is there."""
    try:
        until(lambda: lab.conditions(job) & {"Succeeded", "Failed"}, f"{job} ends")
        until(lambda: lab.verdict(job) is not None, f"the verdict on {job}")
    except BaseException:
        print(lab.story(job))
        raise
    return job


def test_eight_processes_train_on_one_node_of_eight_gpus_and_succeed(lab: Lab, production: str) -> None:
    assert "Succeeded" in lab.conditions(production), lab.story("giblet-prod")
    (pod,) = lab.pods(production)
    container = pod["spec"]["containers"][0]
    assert container["name"] == "pytorch"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    starts = json.loads(lab.storage.get(start_key(RUN, 1)))
    assert starts["world_size"] == 8


def test_what_was_committed_last_was_read_back_and_accepted(lab: Lab, production: str) -> None:
    until(lambda: lab.verified(production), "the verification Job ends")
    assert lab.verdict(production) in ("SAFE", "SAFE WITH WARNINGS")
    accepted = newest_accepted(lab.storage, RUN)
    assert accepted is not None
    assert accepted.step == max(lab.committed_steps(RUN))
    events = lab.get("events", "--field-selector", f"involvedObject.name={production},involvedObject.kind=PyTorchJob")
    assert any("SAFE" in event["message"] for event in events["items"]), events


def test_what_the_verification_pod_accepted_it_signed(
    lab: Lab, production: str, public_key: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its user is none of the image's, and the key's file belongs to root: the pod's group may read it."""
    until(lambda: lab.verified(production), "the verification Job ends")
    accepted = newest_accepted(lab.storage, RUN)
    assert accepted is not None
    assert isinstance(lab.storage, S3Storage)
    command = ["verify", f"{BUCKET}/{accepted.prefix}", f"--set=checkpoint.endpoint_url={lab.storage.endpoint_url}"]
    capsys.readouterr()
    assert main([*command, "--json", "--public-key", str(public_key)]) == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["signed"]["status"] == "passed", checks["signed"]


def test_the_logs_of_each_pod_make_sense_to_a_person(lab: Lab, production: str) -> None:
    (worker,) = [pod["metadata"]["name"] for pod in lab.pods(production)]
    told = lab.logs(worker)
    for word in ("started", "step=", "loss=", "checkpoint", "finished"):
        assert word in told, f"{word!r} is not in the worker's log:\n{told}"
    assert "Traceback" not in told
    assert lab.logs(f"{production}-worker-0", "-c", "prepare")
    verifier = [pod["metadata"]["name"] for pod in lab.pods(production, "verify")][-1]
    told = lab.logs(verifier)
    assert "SAFE" in told
    assert "Traceback" not in told


def test_prometheus_has_seen_the_trainer_and_the_verifier(lab: Lab, production: str) -> None:
    with lab.cluster.port_forward("giblet-monitoring", "service/prometheus", 9090) as address:

        def latest(query: str) -> list[float]:
            return _asked(address, f"last_over_time({query}[1h])")

        run = f'{{run="{RUN}"}}'
        until(lambda: max(latest(f"giblet_train_step{run}"), default=0) > 0, "trainer metrics", 60)
        until(lambda: max(latest(f"giblet_verify_verified_step{run}"), default=0) > 0, "verifier metrics", 60)
        assert max(latest(f"giblet_train_world_size{run}")) == 8


def _asked(prometheus: str, query: str) -> list[float]:
    asked = urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(f"{prometheus}/api/v1/query?{asked}", timeout=10) as answer:
        return [float(row["value"][1]) for row in json.load(answer)["data"]["result"]]


def test_nothing_else_may_talk_to_the_pods_and_the_namespace_is_restricted(lab: Lab, production: str) -> None:
    policies = {row["metadata"]["name"]: row for row in lab.get("networkpolicies")["items"]}
    selected = [row["spec"]["podSelector"] for name, row in policies.items() if name.startswith(production)]
    assert selected
    labels = lab.get("namespace", NAMESPACE)["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def commands(notes: str) -> list[str]:
    """The command lines in what `helm install` printed."""
    return [line.strip() for line in notes.splitlines() if line.startswith(("  kubectl ", "  helm "))]


def test_every_command_that_helm_prints_runs(lab: Lab, notes: Mapping[str, str], production: str) -> None:
    """`helm test` among them: it tries bucket, names and permissions."""
    lines = commands(notes["giblet-prod"])
    assert len(lines) >= 9
    told = {}
    for line in lines:
        if " delete " not in line and " uninstall " not in line:
            done = lab.typed(line)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            assert done.stdout, line
            told[line] = done.stdout
    (preflight,) = [said for line, said in told.items() if line.startswith("helm")]
    assert "conditional put" in preflight
    assert any(said.startswith("SAFE") for said in told.values()), "the verdict"
    assert any("checkpoint" in said and "finished" in said for said in told.values()), "the worker's log"


def test_an_upgrade_that_pods_would_not_follow_is_refused(lab: Lab, production: str) -> None:
    changed = lab.upgrade("giblet-prod", PROD, check=False, **PRODUCTION, config__training__epochs=7)
    assert changed.returncode != 0
    assert "upgrade.allow" in changed.stderr
    same = lab.upgrade("giblet-prod", PROD, **PRODUCTION)
    assert same.returncode == 0
    lab.helm("rollback", "giblet-prod", "1")
    assert "Succeeded" in lab.conditions(production), "an upgrade and a rollback to the same left the job alone"


# ---------------------------------------------------------------------------------- refusals


def test_a_bad_configuration_fails_the_job_for_good(lab: Lab, notes: Mapping[str, str]) -> None:
    """It passes every check of the chart; only the trainer can know that the dataset is not there."""
    job = "giblet-bad"
    until(lambda: "Failed" in lab.conditions(job), "the job fails")
    message = lab.last_words(job)
    assert message["exit_code"] == 65
    assert "no prepared dataset" in message["message"]
    (pod,) = lab.pods(job)
    assert pod["metadata"]["name"] == f"{job}-worker-0"
    assert sum(row["restartCount"] for row in pod["status"]["containerStatuses"]) == 0
    events = lab.get("events", "--field-selector", f"involvedObject.name={job}")["items"]
    created = [event for event in events if event["reason"] == "SuccessfulCreatePod"]
    assert sum(event.get("count") or 1 for event in created) == 1, "one pod was tried, and no more"


def test_without_its_bucket_a_run_says_so_and_ends(lab: Lab, notes: Mapping[str, str]) -> None:
    until(lambda: "Failed" in lab.conditions("giblet-bucket"), "the job fails")
    message = lab.last_words("giblet-bucket")
    assert message["exit_code"] == 78
    assert "no-such-bucket" in message["message"]


@pytest.mark.parametrize(
    ("release", "said"),
    [
        ("giblet-secret", 'secret "no-such-secret" not found'),
        ("giblet-image", "Failed to pull image"),
        ("giblet-large", "Insufficient nvidia.com/gpu"),
    ],
)
def test_a_pod_that_cannot_start_says_why(lab: Lab, notes: Mapping[str, str], release: str, said: str) -> None:
    until(lambda: said in lab.reasons(f"{release}-worker-0"), said)


def test_a_run_that_waits_for_a_node_has_an_alert_pending(lab: Lab, notes: Mapping[str, str]) -> None:
    with lab.cluster.port_forward("giblet-monitoring", "service/prometheus", 9090) as address:
        waiting = f'ALERTS{{alertname="GibletNeverStarted",alertstate="pending",run="{WAITING}"}}'
        until(lambda: _asked(address, waiting), "the alert on it is pending")


# ---------------------------------------------------------------------------------- changing what exists


def advised(said: str) -> str:
    """The one command line that a refusal tells a person to type."""
    (line,) = [line.strip() for line in said.splitlines() if line.startswith("    kubectl ")]
    return line


def test_a_changed_template_needs_what_the_refusal_says(lab: Lab, notes: Mapping[str, str]) -> None:
    """On a job whose pods wait for a node: what the refusals say is the same."""
    release, changed = "giblet-large", TOO_LARGE | {"config__training__epochs": 7}
    refused = lab.upgrade(release, PROD, check=False, **changed)
    assert refused.returncode != 0
    assert f"pytorchjob/{release} job/{release}-verify" in advised(refused.stderr)
    allowed = lab.upgrade(release, PROD, check=False, **changed, upgrade__allow=True)
    assert allowed.returncode != 0
    assert advised(allowed.stderr).endswith(f" job/{release}-verify"), "a Job's template is immutable"
    assert lab.typed(advised(allowed.stderr)).returncode == 0
    lab.upgrade(release, PROD, **changed, upgrade__allow=True)
    assert lab.typed(advised(refused.stderr)).returncode == 0
    lab.upgrade(release, PROD, **changed)
    back = lab.helm("rollback", release, "1", check=False)
    assert back.returncode != 0
    assert advised(refused.stderr) in back.stderr[:1200], (
        "nobody can refuse a rollback, but the error names the way out"
    )
    assert lab.typed(advised(refused.stderr)).returncode == 0
    lab.helm("rollback", release, "1")


# ---------------------------------------------------------------------------------- side by side, and gone


def test_releases_side_by_side_leave_nothing_but_checkpoints_and_logs(
    lab: Lab, notes: Mapping[str, str], production: str, capsys: pytest.CaptureFixture[str]
) -> None:
    other = ended(lab, "giblet-two")
    until(lambda: lab.verified(other), "the verifier accepts")
    steps = {run: lab.committed_steps(run) for run in (RUN, other)}
    assert all(steps.values()), "each release is a run of its own"
    assert lab.objects(production, other)
    for release in (production, other):
        (line,) = [line for line in commands(notes[release]) if " uninstall " in line]
        done = lab.typed(line)
        assert done.returncode == 0, done.stderr
    until(lambda: not lab.objects(production, other), "nothing is left in the namespace")
    assert {run: lab.committed_steps(run) for run in (RUN, other)} == steps
    assert isinstance(lab.storage, S3Storage)
    where = [f"--set=checkpoint.url={BUCKET}", f"--set=checkpoint.endpoint_url={lab.storage.endpoint_url}"]
    for run in (RUN, other):
        capsys.readouterr()
        assert main(["logs", run, *where]) == 0
        told = capsys.readouterr().out
        assert "step=" in told, "the pods are gone, and what they printed is not"
        assert f"run={run}" in told


# ---------------------------------------------------------------------------------- elastic


def test_an_elastic_run_grows_by_a_values_change_loses_a_pod_and_ends_verified(lab: Lab) -> None:
    run = f"elastic-{uuid.uuid4().hex[:6]}"
    values = {"workers__max": 2, "config__run__name": run, "config__training__epochs": 60}
    with lab.release("giblet-elastic", PROD, ELASTIC, workers__replicas=1, **values) as job:

        def world_sizes() -> list[int]:
            keys = sorted(info.key for info in lab.storage.list(f"runs/{run}/starts/"))
            starts = [json.loads(lab.storage.get(key)) for key in keys if key.count(".") == 1]
            return [int(start["world_size"]) for start in starts]

        until(lambda: lab.committed_steps(run), "a first checkpoint of one worker")
        assert world_sizes() == [1]
        lab.upgrade("giblet-elastic", PROD, ELASTIC, workers__replicas=2, **values)
        until(lambda: 2 in world_sizes(), "a second worker joins")
        before = max(lab.committed_steps(run))
        until(lambda: max(lab.committed_steps(run)) > before, "a checkpoint of two workers")
        # worker-0 is no more special than the other: the store where they meet has a pod of its own
        lab.cluster.kubectl("-n", NAMESPACE, "delete", "pod", f"{job}-worker-0", "--wait=false")
        before = max(lab.committed_steps(run))
        until(lambda: max(lab.committed_steps(run)) > before, "the run goes on")
        until(lambda: lab.conditions(job) & {"Succeeded", "Failed"}, "the PyTorchJob ends", 900)
        assert "Succeeded" in lab.conditions(job)
        until(lambda: lab.verified(job), "the verifier accepts")
        assert world_sizes()[0] == 1
        assert 2 in world_sizes()


# ---------------------------------------------------------------------------------- nothing is created


def test_values_that_cannot_work_create_nothing(lab: Lab) -> None:
    done = lab.install("giblet-wrong", PROD, check=False, workers__min=2, workers__replicas=1)
    assert done.returncode != 0
    assert "workers.min" in done.stderr
    assert lab.helm("list", "-q").stdout.count("giblet-wrong") == 0


def test_without_the_operator_helm_names_the_command_that_installs_it(lab: Lab) -> None:
    """The last test of a cluster: it takes the operator's API away, and `ci/cluster up` brings it back."""
    if not lab.own:
        pytest.skip("the cluster is not the tests' own")
    lab.cluster.kubectl("delete", "crd", "pytorchjobs.kubeflow.org")
    try:
        done = lab.install("giblet-early", PROD, check=False)
    finally:
        lab.cluster.run("up", "--nodes", "2", "--gpus", "8")
    assert done.returncode != 0
    assert "k8s/operator" in done.stderr
    assert "giblet-early" not in lab.helm("list", "-q").stdout

"""What a release promises beyond being accepted: who may do what, what is secret, how things find each other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.support.chart import (
    CHART,
    MINIMAL,
    MONITORING_APIS,
    Object,
    Rendering,
    container,
    environment,
    helm,
    labels,
    merged,
    name,
    render,
    values_file,
)
from tests.support.chart_values import ELASTIC, HOOK, SCENARIOS, ours

LONG = "a-release-with-a-name-of-exactly-fifty-three-letters1"
RENDERINGS = {"the smallest values": {}, **SCENARIOS}


def matches(selector: Object, found: dict[str, str]) -> bool:
    """Whether a label selector selects something with these labels."""
    expressions = selector.get("matchExpressions", [])
    assert all(expression["operator"] == "In" for expression in expressions)
    return all(found.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        found.get(expression["key"]) in expression["values"] for expression in expressions
    )


def selected(chart: Rendering, selector: Object) -> set[str]:
    """Components of the pods that a selector selects."""
    pods = [labels(pod) for pod in chart.pods().values()]
    return {pod["app.kubernetes.io/component"] for pod in pods if matches(selector, pod)}


# --- rights


def test_the_trainer_may_do_nothing_and_has_no_token() -> None:
    chart = render(ELASTIC)
    trainer = chart.pod("PyTorchJob/")["serviceAccountName"]
    assert chart.pod("PyTorchJob/")["automountServiceAccountToken"] is False
    assert chart.pod("Deployment/")["automountServiceAccountToken"] is False
    assert [item for item in chart.all("RoleBinding") if trainer in {who["name"] for who in item["subjects"]}] == []


def test_the_verifier_may_touch_its_own_job_and_no_other() -> None:
    chart = render()
    rules = {rule["resources"][0]: rule for rule in chart.one("Role")["rules"]}
    assert set(rules) == {"pytorchjobs", "events"}
    jobs = rules["pytorchjobs"]
    assert jobs["resourceNames"] == [chart.one("PyTorchJob")["metadata"]["name"]]
    assert set(jobs["verbs"]) <= {"get", "list", "watch", "patch"}
    assert rules["events"]["verbs"] == ["create"]
    binding = chart.one("RoleBinding")
    assert binding["roleRef"]["name"] == chart.one("Role")["metadata"]["name"]
    assert [who["name"] for who in binding["subjects"]] == [chart.pod("Job/giblet-prod-verify")["serviceAccountName"]]
    assert {who["namespace"] for who in binding["subjects"]} == {"lab"}


@pytest.mark.parametrize("prepare", [{}, HOOK], ids=["plain", "with a hook"])
def test_the_signing_key_is_the_verifiers_alone(prepare: Object) -> None:
    signing = {"verify": {"signing": {"existingSecret": "giblet-signing", "key": "lab.pem"}}}
    chart = render(merged(prepare, signing))
    pod = chart.pod("Job/giblet-prod-verify")
    item = container(pod, "verify")
    assert item["args"] == ["gate", "--set=verify.signing_key=/etc/giblet/signing/lab.pem"]
    assert {"name": "signing", "mountPath": "/etc/giblet/signing", "readOnly": True} in item["volumeMounts"]
    (volume,) = [volume["secret"] for volume in pod["volumes"] if volume["name"] == "signing"]
    assert volume["secretName"] == "giblet-signing"
    assert volume["defaultMode"] == 0o440
    assert volume["items"] == [{"key": "lab.pem", "path": "lab.pem"}]
    others = [where for where, pod in chart.pods().items() if "giblet-signing" in json.dumps(pod)]
    assert others == ["Job/giblet-prod-verify.spec.template"]
    assert "giblet-signing" not in json.dumps(render(prepare).objects)


@pytest.mark.parametrize("values", RENDERINGS.values(), ids=RENDERINGS)
def test_nothing_is_asked_of_the_cluster_as_a_whole(values: Object) -> None:
    chart = render(values, apis=MONITORING_APIS)
    cluster_wide = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "Namespace", "PriorityClass"}
    assert {item["kind"] for item in chart.objects} & cluster_wide == set()
    elsewhere = {item["kind"] for item in chart.objects if item["metadata"].get("namespace", "lab") != "lab"}
    assert elsewhere <= {"ConfigMap"}, "dashboards, where Grafana's sidecar looks for them"


@pytest.mark.parametrize("values", RENDERINGS.values(), ids=RENDERINGS)
def test_a_secret_value_stands_in_a_secret_and_nowhere_else(values: Object) -> None:
    secret = {"s3": {"existingSecret": "", "accessKeyId": "KEYID7f3a", "secretAccessKey": "KEY9c1b"}}
    chart = render(merged(values, secret))
    for item in chart.objects:
        if item["kind"] != "Secret":
            assert "KEYID7f3a" not in json.dumps(item), name(item)
            assert "KEY9c1b" not in json.dumps(item), name(item)
    assert "KEY9c1b" in chart.one("Secret", "-s3")["stringData"].values()


# --- configuration


def test_large_numbers_stay_numbers() -> None:
    values = {
        "workers": {"maxRestarts": 999, "saveSeconds": 1000000, "shutdownTimeoutSeconds": 2000000}
        | {"terminationGracePeriodSeconds": 10000000, "activeDeadlineSeconds": 100000000},
        "config": {"training": {"max_steps": 123456789}, "model": {"voxels": 1000000}},
    }
    chart = render(values)
    assert "e+" not in chart.text
    assert chart.config["training"]["max_steps"] == 123456789
    assert chart.config["model"]["voxels"] == 1000000
    assert chart.pod("PyTorchJob/")["terminationGracePeriodSeconds"] == 10000000
    assert chart.one("PyTorchJob")["spec"]["runPolicy"]["activeDeadlineSeconds"] == 100000000


def config_hashes(chart: Rendering) -> set[str]:
    return {pod["metadata"]["annotations"]["giblet.dev/config-hash"] for pod in chart.pods().values()}


def test_the_pods_carry_a_hash_of_the_configuration_and_of_nothing_else() -> None:
    plain = config_hashes(render())
    assert len(plain) == 1
    assert config_hashes(render({"config": {"training": {"epochs": 3}}})) != plain
    assert config_hashes(render({"workers": {"max": 4}, "image": {"tag": "2"}, "nodeSelector": {"a": "b"}})) == plain


def test_scaling_leaves_the_pods_and_the_hash_of_the_template_alone() -> None:
    two, three = (render(merged(ELASTIC, {"workers": {"replicas": n}})) for n in (2, 3))
    assert two.pods() == three.pods()
    hashes = [c.one("PyTorchJob")["metadata"]["annotations"]["giblet.dev/template-hash"] for c in (two, three)]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    "values",
    [
        {"image": {"tag": "2"}},
        {"workers": {"max": 3}},
        {"workers": {"restartPolicy": "OnFailure"}},
        {"config": {"run": {"seed": 8}}},
        {"verify": {"mountData": True}},
        {"extraEnv": [{"name": "A", "value": "b"}]},
    ],
)
def test_whatever_a_running_pod_cannot_follow_changes_the_hash_of_the_template(values: Object) -> None:
    data = {"data": {"existingClaim": "bids"}}
    plain, changed = render(data), render(merged(data, values))
    key = "giblet.dev/template-hash"
    assert (
        plain.one("PyTorchJob")["metadata"]["annotations"][key]
        != (changed.one("PyTorchJob")["metadata"]["annotations"][key])
    )


def test_a_run_is_named_after_its_release_unless_the_values_name_it() -> None:
    assert render(release="giblet-a").config["run"]["name"] == "giblet-a"
    assert render({"config": {"run": {"name": "mine"}}}, release="giblet-a").config["run"]["name"] == "mine"


@pytest.mark.parametrize("values", RENDERINGS.values(), ids=RENDERINGS)
def test_every_pod_of_ours_finds_what_it_needs_in_its_environment(values: Object) -> None:
    chart = render(values)
    for where, pod in chart.pods().items():
        for item in ours(pod):
            found = environment(item)
            assert found["GIBLET_CONFIG"] == "/etc/giblet/giblet.yaml", where
            assert found["GIBLET_JOB"] == chart.one("PyTorchJob")["metadata"]["name"]
            assert found["GIBLET_POD"] == {"fieldRef": {"fieldPath": "metadata.name"}}
            assert found["GIBLET_NAMESPACE"] == {"fieldRef": {"fieldPath": "metadata.namespace"}}
            assert {"GIBLET_NODE", "GIBLET_CHART", "GIBLET_IMAGE", "HOME"} <= set(found)
            assert {mount["mountPath"] for mount in item["volumeMounts"]} >= {"/tmp", "/cache"}
            assert labels(pod)["giblet.dev/run"] == chart.config["run"]["name"]


def test_credentials_come_from_the_secret_unless_the_account_brings_an_identity() -> None:
    with_secret = environment(container(render({"s3": {"existingSecret": "bucket"}}).pod("PyTorchJob/"), "pytorch"))
    assert with_secret["AWS_SECRET_ACCESS_KEY"]["secretKeyRef"] == {"name": "bucket", "key": "AWS_SECRET_ACCESS_KEY"}
    without = environment(container(render().pod("PyTorchJob/"), "pytorch"))
    assert {key for key in without if key.startswith("AWS_")} == set()


# --- the PyTorchJob


@pytest.mark.parametrize("values", RENDERINGS.values(), ids=RENDERINGS)
def test_the_job_is_one_that_the_operator_runs_as_meant(values: Object) -> None:
    spec = render(values).one("PyTorchJob")["spec"]
    elastic = spec["elasticPolicy"]
    assert set(spec["pytorchReplicaSpecs"]) == {"Worker"}, "with a Master the operator's node count is wrong"
    worker = spec["pytorchReplicaSpecs"]["Worker"]
    assert isinstance(spec["nprocPerNode"], str)
    assert elastic["minReplicas"] <= worker["replicas"] <= elastic["maxReplicas"]
    assert elastic["rdzvBackend"] == "c10d"
    assert not {"standalone", "metrics", "nProcPerNode"} & set(elastic)
    assert spec["runPolicy"]["cleanPodPolicy"] == "Running"
    assert worker["restartPolicy"] in ("ExitCode", "OnFailure")
    assert not (worker["restartPolicy"] == "ExitCode" and "ttlSecondsAfterFinished" in spec["runPolicy"])
    pod = worker["template"]["spec"]
    assert [item["name"] for item in pod["containers"]] == ["pytorch"]
    shutdown = environment(pod["containers"][0])["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
    assert pod["terminationGracePeriodSeconds"] > int(shutdown)
    shm = next(volume for volume in pod["volumes"] if volume["name"] == "shm")["emptyDir"]
    assert shm["medium"] == "Memory"
    assert shm["sizeLimit"]


def test_a_worker_asks_for_as_many_gpus_as_it_has_processes_and_preparing_for_none() -> None:
    chart = render({"resources": {"limits": {"memory": "64Gi"}}})
    pod = chart.pod("PyTorchJob/")
    assert container(pod, "pytorch")["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": "8"}
    assert "nvidia.com/gpu" not in str(container(pod, "prepare")["resources"])
    assert chart.one("PyTorchJob")["spec"]["nprocPerNode"] == "8"
    assert "nvidia.com/gpu" not in str(chart.pod("Job/giblet-prod-verify"))


# --- names and selectors


@pytest.mark.parametrize("values", RENDERINGS.values(), ids=RENDERINGS)
@pytest.mark.parametrize("release", ["a", LONG])
def test_names_and_labels_fit_whatever_the_release_is_called(release: str, values: Object) -> None:
    chart = render(values, release=release, apis=MONITORING_APIS)
    job = chart.one("PyTorchJob")["metadata"]["name"]
    assert len(f"{job}-worker-127") <= 63, "pods and their headless service"
    for item in chart.objects:
        assert len(item["metadata"]["name"]) <= 63, name(item)
        assert all(len(value) <= 63 for value in labels(item).values()), labels(item)
    for pod in chart.pods().values():
        assert all(len(value) <= 63 for value in labels(pod).values()), labels(pod)


@pytest.mark.parametrize("values", [ELASTIC, HOOK], ids=["elastic", "hook"])
def test_two_releases_share_no_name_and_no_selector(values: Object) -> None:
    first, second = (render(values, release=release, apis=MONITORING_APIS) for release in ("giblet-a", "giblet-b"))
    assert first.names & second.names == set()
    theirs = [labels(pod) for pod in second.pods().values()]
    for selector in selectors(first).values():
        assert not any(matches(selector, pod) for pod in theirs)
    assert first.config["run"]["name"] != second.config["run"]["name"]


def selectors(chart: Rendering) -> dict[str, Object]:
    """Every label selector of a release, by its object."""
    found: dict[str, Any] = {}
    for item in chart.objects:
        spec = item.get("spec", {})
        if item["kind"] == "Service":
            found[name(item)] = {"matchLabels": spec["selector"]}
        elif item["kind"] == "NetworkPolicy":
            found[name(item)] = spec["podSelector"]
            peers = [peer for rule in spec.get("ingress", []) for peer in rule.get("from", [])]
            peers += [peer for rule in spec.get("egress", []) for peer in rule.get("to", [])]
            for index, peer in enumerate(peers):
                if "podSelector" in peer and "namespaceSelector" not in peer:
                    found[f"{name(item)} peer {index}"] = peer["podSelector"]
        elif "selector" in spec:
            found[name(item)] = spec["selector"]
    return found


@pytest.mark.parametrize("values", RENDERINGS.values(), ids=RENDERINGS)
def test_every_selector_selects_pods_of_the_release(values: Object) -> None:
    chart = render(values, apis=MONITORING_APIS)
    assert {where for where, selector in selectors(chart).items() if not selected(chart, selector)} == set()


@pytest.mark.parametrize("values", [{}, ELASTIC, HOOK], ids=["one worker", "elastic", "hook"])
def test_every_pod_has_exactly_one_network_policy_for_each_direction(values: Object) -> None:
    chart = render(values)
    policies = [item["spec"] for item in chart.all("NetworkPolicy")]
    for where, pod in chart.pods().items():
        ours = [policy for policy in policies if matches(policy["podSelector"], labels(pod))]
        assert [policy["policyTypes"] for policy in ours] == [["Ingress", "Egress"]], where


def test_network_policies_let_workers_meet_and_keep_others_out() -> None:
    chart = render(ELASTIC)
    worker = chart.one("NetworkPolicy", "-worker")["spec"]
    inside = [rule for rule in worker["ingress"] if "ports" not in rule]
    assert [selected(chart, peer["podSelector"]) for rule in inside for peer in rule["from"]] == [{"worker"}]
    metrics = [rule for rule in worker["ingress"] if "ports" in rule]
    assert [rule["ports"] for rule in metrics] == [[{"protocol": "TCP", "port": 9464}]]
    store = chart.one("NetworkPolicy", "-rendezvous")["spec"]
    assert [selected(chart, peer["podSelector"]) for rule in store["ingress"] for peer in rule["from"]] == [{"worker"}]
    assert "egress" not in store


def test_network_policies_open_the_port_of_the_s3_endpoint() -> None:
    chart = render({"config": {"checkpoint": {"endpoint_url": "http://s3.giblet-s3.svc:8333"}}})
    for policy in chart.all("NetworkPolicy"):
        ports = {port["port"] for rule in policy["spec"]["egress"] for port in rule.get("ports", [])}
        assert {53, 8333} <= ports, name(policy)


# --- what is there, and when


def test_monitoring_appears_where_the_cluster_has_its_apis() -> None:
    kinds = {"PodMonitor", "PrometheusRule"}
    assert {item["kind"] for item in render().objects} & kinds == set()
    assert "PodMonitor" in {item["kind"] for item in render(apis=MONITORING_APIS).objects}
    assert "PodMonitor" in {item["kind"] for item in render({"monitoring": {"force": True}}).objects}
    assert {item["kind"] for item in render({"monitoring": {"enabled": False}}, apis=MONITORING_APIS).objects} & (
        kinds
    ) == set()


def test_the_pods_that_the_monitor_selects_have_its_port() -> None:
    chart = render(ELASTIC, apis=MONITORING_APIS)
    endpoint = chart.one("PodMonitor")["spec"]["podMetricsEndpoints"][0]["port"]
    having = {
        labels(pod)["app.kubernetes.io/component"]
        for pod in chart.pods().values()
        for item in pod["spec"]["containers"]
        if endpoint in {port["name"] for port in item.get("ports", [])}
    }
    assert having == {"worker", "verify"}


def test_workers_meet_in_a_pod_of_its_own_as_soon_as_there_can_be_two() -> None:
    assert render().all("Deployment") == []
    chart = render(ELASTIC)
    elastic = chart.one("PyTorchJob")["spec"]["elasticPolicy"]
    assert elastic["rdzvHost"] == chart.one("Service")["metadata"]["name"]
    assert elastic["rdzvPort"] == chart.one("Service")["spec"]["ports"][0]["port"]
    assert render(merged(ELASTIC, {"rendezvous": {"mode": "worker"}})).all("Deployment") == []


def test_a_drain_leaves_the_fewest_workers_that_go_on() -> None:
    assert render().all("PodDisruptionBudget") == []
    budget = render(ELASTIC).one("PodDisruptionBudget")["spec"]
    assert budget["minAvailable"] == 1


def test_helm_test_has_a_pod_that_leaves_nothing_behind() -> None:
    pod = render().one("Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert "hook-succeeded" in pod["metadata"]["annotations"]["helm.sh/hook-delete-policy"]
    assert pod["spec"]["containers"][0]["args"] == ["preflight"]
    assert render({"test": {"enabled": False}}).all("Pod") == []


def test_what_a_hook_needs_exists_before_the_hook_and_ends_with_it() -> None:
    chart = render(merged(HOOK, {"s3": {"accessKeyId": "a", "secretAccessKey": "b"}}))
    hooks = [item for item in chart.objects if item["metadata"]["name"].endswith("-prepare")]
    assert {item["kind"] for item in hooks} == {"Job", "ConfigMap", "Secret", "ServiceAccount", "NetworkPolicy"}
    weight = {item["kind"]: int(item["metadata"]["annotations"]["helm.sh/hook-weight"]) for item in hooks}
    assert all(weight[kind] < weight["Job"] for kind in weight if kind != "Job")
    for item in hooks:
        assert "hook-succeeded" in item["metadata"]["annotations"]["helm.sh/hook-delete-policy"]


@pytest.mark.parametrize(
    "values", [{}, ELASTIC, {"verify": {"enabled": False}}], ids=["plain", "elastic", "unverified"]
)
def test_notes_name_what_this_release_has(values: Object) -> None:
    with values_file(merged(MINIMAL, values)) as file:
        command = ["install", "giblet-prod", CHART, "--namespace", "lab", "--dry-run=client", "--values", file]
        done = helm(*command)
    assert done.returncode == 0, done.stderr
    notes = done.stdout.split("NOTES:")[1]
    assert "kubectl -n lab logs -f giblet-prod-worker-0" in notes
    assert ("logs job/giblet-prod-verify" in notes) == (values.get("verify", {}).get("enabled", True))
    assert ("workers.replicas=N" in notes) == (values == ELASTIC)
    assert "%!" not in notes
    assert "<nil>" not in notes


def test_helm_lint_finds_nothing_to_say() -> None:
    with values_file(MINIMAL) as file:
        done = helm("lint", "--strict", CHART, "--values", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr

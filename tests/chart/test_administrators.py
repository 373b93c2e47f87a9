"""What administrators look for in a chart: every extra arrives, nothing is random, nothing goes unsaid."""

from __future__ import annotations

import pytest

from tests.support.chart import (
    CHART,
    MINIMAL,
    MONITORING_APIS,
    Object,
    container,
    helm,
    labels,
    merged,
    refusal,
    render,
    values_file,
)
from tests.support.chart_values import ANOTHER_LAB, ELASTIC, HOOK, SCENARIOS, ours

RENDERINGS = {"the smallest values": {}, **SCENARIOS}


def test_what_another_lab_asks_for_arrives_in_its_pods() -> None:
    """Each extra of tests/chart/values/another-lab.yaml, where Kubernetes has it."""
    chart = render(ANOTHER_LAB, release="night.3", apis=MONITORING_APIS)
    job, pod, lab = chart.one("PyTorchJob"), chart.pod("PyTorchJob/"), ANOTHER_LAB
    assert job["metadata"]["name"] == "movie-night"
    for key in ("nodeSelector", "tolerations", "affinity", "topologySpreadConstraints", "imagePullSecrets",
                "dnsPolicy", "dnsConfig", "hostAliases"):  # fmt: skip
        assert pod[key] == lab[key], key
    for key in ("schedulerName", "priorityClassName", "runtimeClassName"):
        assert pod[key] == lab["scheduling"][key]
    inits = [item["name"] for item in pod["initContainers"]]
    assert inits == ["wait-for-network", "log-shipper", "prepare"]
    trainer = container(pod, "pytorch")
    for item in (trainer, container(pod, "prepare"), chart.pod("Job/movie-night-verify")["containers"][0]):
        assert all(entry in item["env"] for entry in lab["extraEnv"])
        assert item["envFrom"] == lab["extraEnvFrom"]
        assert all(mount in item["volumeMounts"] for mount in lab["extraVolumeMounts"])
    assert trainer["resources"]["limits"] == {
        "memory": "128Gi", "rdma/hca": 1, "ephemeral-storage": "200Gi", "nvidia.com/mig-3g.40gb": "4",
    }  # fmt: skip
    assert pod["securityContext"]["supplementalGroups"] == [3000]
    assert "runAsUser" not in pod["securityContext"]
    for where, own in chart.pods().items():
        assert lab["commonLabels"].items() <= labels(own).items(), where
        assert lab["podLabels"].items() <= labels(own).items(), where
        assert lab["podAnnotations"].items() <= own["metadata"]["annotations"].items(), where
    assert all(lab["commonLabels"].items() <= labels(item).items() for item in chart.objects)


@pytest.mark.parametrize("values", [ELASTIC, HOOK, ANOTHER_LAB], ids=["elastic", "hook", "another lab's"])
def test_the_same_values_render_the_same(values: Object) -> None:
    """Nothing random, no clock: `kubectl diff` and GitOps tools stay quiet."""
    with values_file(merged(MINIMAL, values)) as file:
        words = ("template", "giblet-prod", CHART, "--namespace", "lab", "--values", file)
        first, second = (helm(*words).stdout for _ in range(2))
    assert first == second != ""


@pytest.mark.parametrize("values", RENDERINGS.values(), ids=RENDERINGS)
def test_every_container_says_what_it_needs_and_writes_only_where_it_may(values: Object) -> None:
    chart = render(merged({"resources": {"limits": {"memory": "64Gi"}}}, values))
    recommended = {f"app.kubernetes.io/{label}" for label in ("name", "instance", "version", "managed-by", "component")}
    for where, pod in chart.pods().items():
        for item in ours(pod):
            assert item["resources"], f"{where} {item['name']}"
            assert item["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod["spec"]["automountServiceAccountToken"] in (True, False), "said, not left to the account"
        assert recommended <= set(labels(pod)), where


@pytest.mark.parametrize("release", ["Giblet-Prod", "giblet_prod", "giblet-", "x" * 54])
def test_a_release_name_that_kubernetes_would_not_have_is_refused(release: str) -> None:
    assert "invalid release name" in refusal(MINIMAL, release=release)


def test_a_release_name_with_a_dot_needs_another_name_for_its_objects() -> None:
    assert "set fullnameOverride" in refusal(MINIMAL, release="giblet.prod")
    assert render({"fullnameOverride": "giblet-prod"}, release="giblet.prod").one("PyTorchJob")

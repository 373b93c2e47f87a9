"""The judges themselves: each refuses what it is there to refuse, in a rendering that is otherwise good."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.chart import MONITORING_APIS, Object, Rendering, admission_faults, container, render, schema_faults


def spoiled(spoil: Callable[[Rendering], Any]) -> Rendering:
    """A rendering with one thing changed."""
    chart = render({"workers": {"max": 2}}, apis=MONITORING_APIS)
    chart = Rendering(copy.deepcopy(chart.objects), chart.text)
    spoil(chart)
    return chart


def job(chart: Rendering) -> Object:
    return chart.one("PyTorchJob")["spec"]


def worker(chart: Rendering) -> Object:
    return chart.pod("PyTorchJob/")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda c: worker(c).update(securityContxt={}), "securityContxt"),
        (lambda c: worker(c).update(terminationGracePeriodSeconds="480"), "not of type 'integer'"),
        (lambda c: worker(c).update(terminationGracePeriodSeconds=None), "not of type 'integer'"),
        (lambda c: container(worker(c), "pytorch").pop("name"), "'name' is a required property"),
        (lambda c: job(c).update(nprocPerNode=8), "not of type 'string'"),
        (lambda c: job(c)["elasticPolicy"].update(minReplicas="1"), "not of type 'integer'"),
        (lambda c: job(c)["runPolicy"].update(cleanPodPolicies="Running"), "cleanPodPolicies"),
        (lambda c: c.one("PyTorchJob")["metadata"].update(lables={}), "lables"),
        (lambda c: c.one("Job", "-verify")["spec"].update(backoffLimt=3), "backoffLimt"),
        (lambda c: c.one("ConfigMap", "-config")["data"].update(number=7), "not of type 'string'"),
        (lambda c: c.one("Role")["rules"][0].update(verb=["get"]), "verb"),
        (lambda c: c.one("Deployment")["spec"].pop("selector"), "'selector' is a required property"),
        (lambda c: c.one("NetworkPolicy", "-worker")["spec"].update(podSelectr={}), "podSelectr"),
        (lambda c: c.one("PodMonitor")["spec"].update(podMetricsEndpoint=[]), "podMetricsEndpoint"),
    ],
)  # fmt: skip
def test_the_schemas_refuse(spoil: Callable[[Rendering], Any], said: str) -> None:
    faults = schema_faults(spoiled(spoil))
    assert len(faults) == 1
    assert said in str(faults)


def test_the_schemas_refuse_kinds_that_they_do_not_know() -> None:
    with pytest.raises(KeyError, match=r"no schema for example\.org/v1/Thing"):
        schema_faults(Rendering(({"apiVersion": "example.org/v1", "kind": "Thing", "metadata": {"name": "x"}},), ""))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda c: container(worker(c), "pytorch").update(name="trainer"), "container with name pytorch"),
        (lambda c: container(worker(c), "pytorch").update(image=""), "image: Required"),
        (lambda c: job(c)["pytorchReplicaSpecs"].update(Boss=job(c)["pytorchReplicaSpecs"].pop("Worker")), "Boss"),
        (lambda c: job(c)["elasticPolicy"].update(nProcPerNode=8), "nProcPerNode"),
        (lambda c: c.one("PyTorchJob")["metadata"].update(name="7up"), "DNS-1035"),
        (lambda c: job(c)["runPolicy"].update(managedBy="me"), "managedBy"),
    ],
)  # fmt: skip
def test_the_operators_webhook_refuses(spoil: Callable[[Rendering], Any], said: str) -> None:
    assert said in str(admission_faults({"job": spoiled(spoil).one("PyTorchJob")}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda spec: spec.update(hostNetwork=True), "host namespaces"),
        (lambda spec: spec["securityContext"].pop("seccompProfile"), "seccompProfile"),
        (lambda spec: spec["securityContext"].update(runAsUser=0), "runAsUser=0"),
        (lambda spec: spec["containers"][0]["securityContext"].update(privileged=True), "privileged"),
        (lambda spec: spec["containers"][0]["securityContext"].pop("capabilities"), "unrestricted capabilities"),
        (lambda spec: spec["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), "hostPath"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("owner", ["PyTorchJob/", "Job/giblet-prod-verify", "Deployment/", "Pod/"])
def test_pod_security_refuses_inside_every_kind(owner: str, spoil: Callable[[Object], Any], said: str) -> None:
    chart = spoiled(lambda c: spoil(c.pod(owner)))
    faults = admission_faults(chart.pods())
    assert len(faults) == 1
    assert said in str(faults)

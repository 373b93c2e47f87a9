"""How a PyTorchJob's status reads, and what an API server's answers mean. tests/integration has a real one."""

from __future__ import annotations

import json

import pytest
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import MaxRetryError

from giblet.errors import ConfigError
from giblet.verify.jobs import JobsDeniedError, JobsUnavailableError
from giblet.verify.kubernetes_jobs import api_client, as_job, call


def status(*conditions: tuple[str, str]) -> dict[str, object]:
    listed = [
        {"type": kind, "status": value, "reason": f"R{kind}", "message": f"{kind}!"} for kind, value in conditions
    ]
    return {"metadata": {"uid": "u"}, "status": {"conditions": listed}}


@pytest.mark.parametrize(("conditions", "phase"), [
    ([], "Pending"),
    ([("Created", "True")], "Created"),
    ([("Created", "True"), ("Running", "True")], "Running"),
    ([("Created", "True"), ("Running", "False"), ("Restarting", "True")], "Restarting"),
    ([("Created", "True"), ("Running", "False"), ("Succeeded", "True")], "Succeeded"),
    ([("Created", "True"), ("Restarting", "False"), ("Running", "False"), ("Failed", "True")], "Failed"),
    ([("Created", "True"), ("Suspended", "True"), ("Running", "False")], "Suspended"),
    ([("Created", "True"), ("Suspended", "False"), ("Running", "True")], "Running"),
])  # fmt: skip
def test_the_phase_follows_from_the_conditions(conditions, phase):
    job = as_job(status(*conditions))
    assert job.phase == phase
    assert job.ended == (phase in ("Succeeded", "Failed"))
    assert job.message == (f"{phase}!" if phase != "Pending" else "")


def test_a_job_that_the_operator_has_not_seen():
    assert as_job({"metadata": {"uid": "u"}}).phase == "Pending"


def answer(code: int, message: str) -> ApiException:
    error = ApiException(status=code, reason="")
    error.body = json.dumps({"message": message})
    return error


@pytest.mark.parametrize(("error", "kind", "told"), [
    (answer(403, "gate cannot get pytorchjobs"), JobsDeniedError, "answered 403: gate cannot get"),
    (answer(401, "Unauthorized"), JobsDeniedError, "401"),
    (answer(500, "etcd"), JobsUnavailableError, "500: etcd"),
    (answer(429, "slow down"), JobsUnavailableError, "429"),
    (ApiException(status=0, reason="SSLError\nEOF"), JobsUnavailableError, "does not answer: SSLError EOF"),
    (MaxRetryError(None, "/apis", "refused"), JobsUnavailableError, "does not answer"),
    (ConnectionResetError("reset"), JobsUnavailableError, "ConnectionResetError"),
])  # fmt: skip
def test_what_answers_mean(error, kind, told):
    def request(**_: object) -> None:
        raise error

    with pytest.raises(kind, match=told):
        call(request)


def test_no_cluster_is_an_error_of_configuration(monkeypatch, tmp_path):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="set KUBECONFIG"):
        api_client()

"""A PyTorchJob of a real cluster, through the `kubernetes` client. Needs get and patch on it, and create on events."""

from __future__ import annotations

import datetime
import json
import os
import uuid
from collections.abc import Mapping
from typing import Any

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from urllib3.exceptions import HTTPError

from giblet.errors import ConfigError
from giblet.verify.jobs import EventKind, Job, JobsDeniedError, JobsUnavailableError, Phase

GROUP, VERSION, PLURAL, KIND = "kubeflow.org", "v1", "pytorchjobs", "PyTorchJob"
COMPONENT = "giblet-gate"
TIMEOUT_SECONDS = (5.0, 15.0)
"""To connect, and to wait for an answer."""
_EVENT_MESSAGE_CHARACTERS = 1000
_ORDER: tuple[Phase, ...] = ("Succeeded", "Failed", "Suspended", "Restarting", "Running", "Created")
"""Conditions stay in the status when newer ones come; the first of these that is true says where the job is."""


class KubernetesJobs:
    """See `jobs.Jobs`. A pod's own service account where there is one, else KUBECONFIG."""

    def __init__(self, api: Any, name: str, namespace: str) -> None:
        self.name, self.namespace = name, namespace
        self._custom = client.CustomObjectsApi(api)
        self._core = client.CoreV1Api(api)

    @classmethod
    def open(cls, name: str, namespace: str) -> KubernetesJobs:
        """Connect; no request is made. Raises `ConfigError` where there is no cluster to connect to."""
        return cls(api_client(), name, namespace)

    def look(self) -> Job | None:
        """See `Jobs.look`."""
        try:
            found = call(self._custom.get_namespaced_custom_object, GROUP, VERSION, self.namespace, PLURAL, self.name)
        except _NotFoundError:
            return None
        return as_job(found)

    def annotate(self, job: Job, annotations: Mapping[str, str]) -> bool:
        """See `Jobs.annotate`. The uid in the patch makes the server refuse it for a later job of the same name."""
        body = {"metadata": {"uid": job.uid, "annotations": dict(annotations)}}
        try:
            call(self._custom.patch_namespaced_custom_object, GROUP, VERSION, self.namespace, PLURAL, self.name, body)
        except _NotFoundError:
            return False
        return True

    def record_event(self, job: Job, kind: EventKind, reason: str, message: str) -> None:
        """See `Jobs.record_event`."""
        now = datetime.datetime.now(tz=datetime.UTC)
        pod = os.environ.get("GIBLET_POD") or os.environ.get("HOSTNAME") or COMPONENT
        body = {
            "metadata": {"name": f"{self.name}.{uuid.uuid4().hex[:16]}", "namespace": self.namespace},
            "involvedObject": {
                "apiVersion": f"{GROUP}/{VERSION}", "kind": KIND,
                "name": self.name, "namespace": self.namespace, "uid": job.uid,
            },
            "type": kind, "reason": reason, "action": "Verify", "message": message[:_EVENT_MESSAGE_CHARACTERS],
            "source": {"component": COMPONENT}, "reportingComponent": COMPONENT, "reportingInstance": pod,
            "firstTimestamp": now.isoformat(), "lastTimestamp": now.isoformat(), "count": 1,
        }  # fmt: skip
        try:
            call(self._core.create_namespaced_event, self.namespace, body)
        except _NotFoundError:
            raise JobsUnavailableError(f"namespace {self.namespace} is not there") from None


class _NotFoundError(Exception):
    """There is no such object, or, for a patch, no longer this one."""


def call(function: Any, *arguments: Any) -> Any:
    """One request, with a time limit. Raises `JobsUnavailableError` or `JobsDeniedError` if it is not answered."""
    try:
        return function(*arguments, _request_timeout=TIMEOUT_SECONDS)
    except ApiException as error:
        raise _translated(error) from None
    except (HTTPError, OSError) as error:
        raise JobsUnavailableError(f"the Kubernetes API does not answer: {type(error).__name__}: {error}") from None


def api_client() -> Any:
    """A client of the cluster that this process belongs to, or that KUBECONFIG names. Raises `ConfigError`."""
    settings = client.Configuration()
    try:
        if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
            config.load_incluster_config(client_configuration=settings)
        else:
            path = os.environ.get("KUBECONFIG") or None  # the client itself looks only once, when it is imported
            config.load_kube_config(path, client_configuration=settings)
    except (ConfigException, OSError) as error:
        raise ConfigError(
            f"no cluster to connect to: {error}",
            remedy="run this in a pod whose service account token is mounted, or set KUBECONFIG",
        ) from None
    settings.retries = False  # the gate asks again by itself, and says so
    return client.ApiClient(settings)


def as_job(found: Mapping[str, Any]) -> Job:
    """The object that the API server returns, as far as it matters here."""
    conditions = {
        condition.get("type"): condition
        for condition in (found.get("status") or {}).get("conditions") or ()
        if condition.get("status") == "True"
    }
    phase: Phase = next((phase for phase in _ORDER if phase in conditions), "Pending")
    condition = conditions.get(phase, {})
    return Job(found["metadata"]["uid"], phase, condition.get("reason") or "", condition.get("message") or "")


def _translated(error: ApiException) -> Exception:
    if not error.status:  # so the client says that TLS broke off
        return JobsUnavailableError(f"the Kubernetes API does not answer: {' '.join(str(error.reason).split())}")
    try:
        message = str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        message = str(error.body or error.reason).strip()
    if error.status in (404, 409) or (error.status == 422 and "metadata.uid" in message):
        return _NotFoundError(message)
    told = f"the Kubernetes API answered {error.status}: {message}"
    return JobsDeniedError(told) if error.status in (401, 403) else JobsUnavailableError(told)
